import pytest
import torch
from diffusers import UNet2DConditionModel

from b4m_pipeline.method.layers import inject
from b4m_pipeline.method.riemannian import RiemannianPreconditioner
from tests.method.helpers import forward, make_frame, randomise


@pytest.fixture
def layers_and_model(tiny_sdxl):
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")
    layers = inject(unet, make_frame(unet), "free")
    randomise(layers)
    forward(unet).square().mean().backward()
    return layers, unet


def test_preconditioner_equals_its_closed_form(layers_and_model):
    layers, _ = layers_and_model
    delta = 0.03
    expected = {}
    for name, layer in layers.items():
        a, b = (factor.detach().double() for factor in layer.factors())
        eye = torch.eye(a.shape[0], dtype=torch.float64)
        expected[name] = (
            torch.linalg.inv(b.T @ b + delta * eye) @ layer.a.grad.double(),
            layer.b.grad.double() @ torch.linalg.inv(a @ a.T + delta * eye),
        )
    RiemannianPreconditioner(layers, delta)()
    for name, layer in layers.items():
        for gradient, wanted in zip((layer.a.grad, layer.b.grad), expected[name], strict=True):
            assert torch.allclose(gradient.double(), wanted, rtol=1e-3, atol=1e-7 + 1e-4 * float(wanted.abs().max()))


def test_preconditioner_uses_the_whole_factor_and_changes_the_update(layers_and_model):
    layers, unet = layers_and_model
    raw = {name: layer.a.grad.clone() for name, layer in layers.items()}
    RiemannianPreconditioner(layers, 1e-2)()
    for name, layer in layers.items():
        own = layer.b.detach()  # the learnable part alone would give another metric
        partial = torch.linalg.inv(own.T @ own + 1e-2 * torch.eye(own.shape[1])) @ raw[name]
        assert not torch.allclose(layer.a.grad, raw[name], rtol=0.05)
        assert not torch.allclose(layer.a.grad, partial, rtol=0.05)


def test_confined_halves_are_refused(tiny_sdxl):
    unet = UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")
    layers = inject(unet, make_frame(unet), "orthogonal")
    with pytest.raises(ValueError, match="free halves"):
        RiemannianPreconditioner(layers, 1e-2)


def test_layers_without_a_gradient_are_passed_over(layers_and_model):
    layers, unet = layers_and_model
    names = list(layers)
    skipped = next(name for name in names if sum(layers[n].a.shape == layers[name].a.shape for n in names) > 1)
    whole = {name: layers[name].a.grad.clone() for name in names}
    RiemannianPreconditioner(layers, 1e-2)()
    expected = {name: layers[name].a.grad.clone() for name in names}
    for name in names:
        layers[name].a.grad.copy_(whole[name])
    layers[skipped].b.grad = None
    RiemannianPreconditioner(layers, 1e-2)()
    for name in names:
        wanted = whole[name] if name == skipped else expected[name]
        assert torch.allclose(layers[name].a.grad, wanted, rtol=1e-4, atol=1e-6)
