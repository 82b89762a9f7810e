"""The penalty on changing the output for other prompts, against its definition."""

import dataclasses

import pytest
import torch

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.training_set import TrainingSetError
from b4m_pipeline.method.frame import TargetError
from b4m_pipeline.method.layers import load_halves
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.method.preservation import Preservation
from b4m_pipeline.training.params import BreakParams
from b4m_pipeline.training.setup import set_up
from tests.conftest import PLAIN_BREAK, TINY_FRAME, train_half

OTHERS = ["a cat toy in oil style", "a dog toy in pencil style", "a snq toy in oil style", "a cat toy in w@z style"]
READS_PROMPT = ["attn2.to_k", "attn2.to_v", "add_embedding.linear_2"]
BREAK = {
    "steps": 12,
    "batch_size": 2,
    "learning_rate": 2e-2,
    "counterpart_batch_size": 2,
    "counterpart_learning_rate": 1e-3,
    "precision": "no",
} | PLAIN_BREAK


def frame(targets=READS_PROMPT) -> FrameParams:
    return FrameParams(**(TINY_FRAME | {"targets": targets}))


@pytest.fixture(scope="module")
def setup(tiny_training_set, tiny_base):
    """A training setup with prompts to preserve, its halves moved away from zero."""
    others = load_family(tiny_base).encode_prompts(OTHERS)
    params = BreakParams(**BREAK)
    made = set_up(tiny_training_set, tiny_base, frame(), params, "orthogonal", 0, (others, 1.0))
    assert made.preservation().item() < 1e-7  # the exact frame leaves the base model alone
    with torch.no_grad():
        for layer in made.layers.values():
            layer.a.normal_(generator=torch.Generator().manual_seed(1))
            layer.b.normal_(generator=torch.Generator().manual_seed(2))
    return made


def test_it_is_the_share_of_change_that_the_unet_itself_shows(setup, tiny_base):
    """Brute force: pass the prompts through the UNet and look at what every adapted layer reads and writes."""
    family, unet, read = load_family(tiny_base), setup.loss.denoiser, {}
    hooks = [
        layer.module.register_forward_hook(lambda _, given, __, name=name: read.update({name: given[0].detach()}))
        for name, layer in setup.layers.items()
    ]
    encoded = family.encode_prompts(OTHERS)
    with torch.no_grad():
        unet.disable_adapters()  # what linear_2 reads is the base model's in any case: linear_1 is no target here
        unet(torch.zeros(len(OTHERS), 4, 16, 16), torch.tensor(10), **family.conditions(encoded))
        unet.enable_adapters()
    for hook in hooks:
        hook.remove()
    shares = []
    for name, layer in setup.layers.items():
        x = read[name].flatten(0, -2)
        lora_a, lora_b = (factor.detach() for factor in layer.factors())
        written = x @ layer.module.get_base_layer().weight.T
        changed = layer.scaling * x @ lora_a.T @ lora_b.T
        shares.append(changed.square().sum(1).mean() / written.var(0, correction=0).sum())
    assert len(shares) > 3
    assert torch.allclose(setup.preservation().detach(), torch.stack(shares).mean(), rtol=1e-4)


def test_a_penalised_half_changes_other_prompts_less(tiny_training_set, tiny_base):
    family = load_family(tiny_base)
    data = dataclasses.replace(tiny_training_set, others=OTHERS, other_tensors=family.encode_prompts(OTHERS))
    concept = ConceptParams(name="cup", path="cup", token="snq", noun="toy")
    shares, halves = {}, {}
    for weight in (0.0, 10.0):
        params = BreakParams(**BREAK | {"preservation_weight": weight})
        half = halves[weight] = train_half("content", data, tiny_base, frame(), concept, params, 0)[0]
        prompts, others = data.others_without("snq")
        assert prompts == [prompt for prompt in OTHERS if "snq" not in prompt] and len(prompts) == 3
        made = set_up(data, tiny_base, frame(), params, "orthogonal", 0, (others, 1.0))
        load_halves(made.layers, half, made.frame)
        shares[weight] = made.preservation().item()
    assert shares[10.0] < 0.7 * shares[0.0]
    digests = [halves[weight].metadata["data_digest"] for weight in (0.0, 10.0)]
    assert digests[0] != digests[1]  # the prompts are part of what a half was made from


def test_it_needs_prompts_and_a_layer_that_reads_them(tiny_training_set, tiny_base):
    concept = ConceptParams(name="cup", path="cup", token="snq", noun="toy")
    params = BreakParams(**BREAK | {"preservation_weight": 0.1})
    with pytest.raises(TrainingSetError, match=r"preservation\.contents"):
        train_half("content", tiny_training_set, tiny_base, frame(), concept, params, 0)
    others = load_family(tiny_base).encode_prompts(OTHERS)
    with pytest.raises(TargetError, match=r"attn2\.to_k"):
        set_up(tiny_training_set, tiny_base, frame(["to_out.0"]), params, "orthogonal", 0, (others, 1.0))
    with pytest.raises(TargetError, match="preservation_weight"):
        Preservation({}, {"up.attn2.to_k": torch.ones(2, 2)}, 1.0)
