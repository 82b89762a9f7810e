"""ZipLoRA: two LoRAs merged with the base model and both concepts' pictures at hand."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.diffusion.families import QuantizationError, load_family
from b4m_pipeline.diffusion.families.gguf_files import is_gguf
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.merge import delta, stack
from b4m_pipeline.training.objectives import Objective
from b4m_pipeline.training.params import TrainParams, ZipParams
from b4m_pipeline.training.setup import make_loss
from b4m_pipeline.training.trainer import fit


class _Zipped(nn.Module):
    """Parametrisation of a frozen weight: plus content's LoRA, style's, or both with a learnt factor for each column. content,
    style: (m, n), n being the inputs of a patch for a convolution; None where it does not adapt the layer."""

    content: torch.Tensor
    style: torch.Tensor

    def __init__(self, content: torch.Tensor | None, style: torch.Tensor | None):
        super().__init__()
        self.shared = content is not None and style is not None
        given = content if content is not None else style
        assert given is not None
        self.register_buffer("content", torch.zeros_like(given) if content is None else content, persistent=False)
        self.register_buffer("style", torch.zeros_like(given) if style is None else style, persistent=False)
        self.columns = nn.Parameter(torch.ones(2, given.shape[1]))
        self.mode = "zipped"

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        change = self.content * self.columns[0] + self.style * self.columns[1]
        if self.mode != "zipped":
            change = getattr(self, self.mode)
        return weight + change.to(weight.dtype).view_as(weight)


def zip_lora(
    content: Adapter,
    style: Adapter,
    training_set: TrainingSet,
    base_model: BaseModelParams,
    train: TrainParams,
    params: ZipParams,
    seed: int,
) -> Adapter:
    """ZipLoRA (Shah et al. 2023, arXiv 2311.13600): two LoRAs summed with a learnt factor for each column of each layer, so
    that the sum predicts on content's pictures what content's LoRA does, on style's what style's does, and the factors
    overlap little. With each column's factor on lora_A the result is an ordinary LoRA, of their ranks' sum, without metadata.

    train: batch, precision and all else that `params` does not say. Raises TrainingSetError for a role without pictures,
    QuantizationError for a base model whose weights are quantised: here they are changed themselves."""
    if base_model.quantization or is_gguf(base_model.path):
        raise QuantizationError(
            f"the base model's weights are quantised (base_model.quantization: {base_model.quantization}, path: "
            f"{base_model.path!r}), with which ZipLoRA cannot work: use its own weights"
        )
    family, device = load_family(base_model), pick_device(train.device)
    pictures = training_set.without_variants()
    rows = {kind: pictures.rows(kind) for kind in ("content", "style")}
    denoiser = family.load_denoiser(device).eval()
    zipped = {}
    for module in sorted({*content.modules(), *style.modules()}):
        held = [delta(part, module) if f"{module}.lora_A.weight" in part.tensors else None for part in (content, style)]
        zipped[module] = _Zipped(*held).to(device)
        parametrize.register_parametrization(denoiser.get_submodule(module), "weight", zipped[module], unsafe=True)
    denoise = make_loss(family, denoiser, pictures.tensors, train)
    kind_of = {int(row): kind for kind, indices in rows.items() for row in indices}

    def switch(mode: str) -> None:
        for layer in zipped.values():
            layer.mode = mode

    def loss(picked: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        state, parts = generator.get_state(), []
        for kind in ("content", "style"):
            chosen = picked[[kind_of[int(row)] == kind for row in picked]]
            for group in denoise.group_by_size(chosen) if len(chosen) else []:
                with torch.no_grad():
                    switch(kind)
                    generator.set_state(state)
                    wanted, _, _ = denoise.predict(chosen[group], generator)
                switch("zipped")
                generator.set_state(state)
                given, _, _ = denoise.predict(chosen[group], generator)
                parts.append(F.mse_loss(given, wanted, reduction="none").flatten(1).mean(1))
        shared = [layer.columns for layer in zipped.values() if layer.shared]
        overlap = sum(F.cosine_similarity(columns[0], columns[1], dim=0).abs() for columns in shared)
        return torch.cat(parts) + params.overlap_weight * overlap

    fields = {name: getattr(train, name) for name in TrainParams.model_fields} | {"optimizer": "adamw"}
    own = TrainParams(**fields | {"steps": params.steps, "learning_rate": params.learning_rate, "weight_decay": 0.0})
    learnt = [layer.columns for layer in zipped.values()]
    objective = Objective("zip", learnt, list(rows.values()), own.batch_size, own.learning_rate)
    fit(loss, [objective], own, seed=seed, device=device, description="zip")
    parts = []
    for place, part in enumerate((content, style)):
        tensors = dict(part.tensors)
        for module in part.modules():
            lora_a, factors = tensors[f"{module}.lora_A.weight"], zipped[module].columns[place].detach().cpu()
            tensors[f"{module}.lora_A.weight"] = (lora_a.flatten(1) * factors).reshape(lora_a.shape)
        parts.append(Adapter(tensors, part.metadata, part.lora_config))
    return stack(parts)
