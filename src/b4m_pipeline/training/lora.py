"""A plain LoRA: what the method is compared with, and what a base model is judged by."""

import json
from collections.abc import Callable

import torch
from peft import LoraConfig

from b4m_pipeline.common.devices import DTYPES, pick_device, resolve_precision
from b4m_pipeline.common.provenance import code_version
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import PEFT_NAME, Adapter
from b4m_pipeline.training.objectives import Objective
from b4m_pipeline.training.params import LoraParams
from b4m_pipeline.training.setup import make_loss
from b4m_pipeline.training.trainer import fit


def train_lora(
    name: str,
    training_set: TrainingSet,
    roles: list[str],
    base_model: BaseModelParams,
    params: LoraParams,
    seed: int,
    frozen_a: Callable[[str, int], torch.Tensor] | None = None,
) -> tuple[Adapter, list[dict[str, float]]]:
    """Plain LoRA (Hu et al. 2021, arXiv 2106.09685) on the pictures of `roles`, in equal shares: with one role a single
    concept, with content and style joint training. lora_B starts at zero.

    frozen_a: layer name and its in_features -> lora_A (r, in), which then stays as it is. Returns the adapter, which has no
    frame and no halves, and the training history. Raises TargetError for targets that name no layer, TrainingSetError for a
    role without pictures.
    """
    family, device = load_family(base_model), pick_device(params.device)
    denoiser = family.load_denoiser(device, DTYPES[resolve_precision(params.precision, device)])
    layers = family.find_layers(denoiser, params.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser.add_adapter(
            LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=list(layers)), adapter_name=PEFT_NAME
        )
    factors = {}
    for layer, (_, inputs) in layers.items():
        module = denoiser.get_submodule(layer)
        for side, linear in (("lora_A", module.lora_A[PEFT_NAME]), ("lora_B", module.lora_B[PEFT_NAME])):
            weight = linear.float().weight.requires_grad_(side == "lora_B" or frozen_a is None)
            if side == "lora_A" and frozen_a:
                weight.data.copy_(frozen_a(layer, inputs))
            factors[f"{layer}.{side}.weight"] = weight
    denoiser.to(device).eval()
    learnt = [weight for weight in factors.values() if weight.requires_grad]
    strata = [training_set.rows(role) for role in roles]
    objective = Objective(name, learnt, strata, params.batch_size, params.learning_rate)
    loss = make_loss(family, denoiser, training_set.tensors, params)
    history = fit(loss, [objective], params, seed=seed, device=device, description=name)
    tensors = {key: weight.detach().float().cpu().clone() for key, weight in factors.items()}
    about = {
        "data_digest": training_set.digest(*roles),
        "params": json.dumps(params.model_dump() | {"seed": seed}, sort_keys=True),
    }
    return lora_adapter(name, tensors, params.rank, params.alpha, base_model, about), history


def lora_adapter(
    name: str, tensors: dict[str, torch.Tensor], rank: int, alpha: float, base_model: BaseModelParams, about: dict[str, str]
) -> Adapter:
    """An adapter without frame and halves from "<module>.lora_A.weight" (r, in) and "<module>.lora_B.weight" (out, r). about:
    further metadata, data_digest and params among it."""
    metadata = {"kind": "lora", "name": name, "frame": "none", "frame_config": "{}"}
    metadata |= {"base_model": base_model.path} | load_family(base_model).metadata()
    modules = sorted({key.rsplit(".lora_", 1)[0] for key in tensors})
    config = {"r": rank, "lora_alpha": alpha, "target_modules": modules}
    return Adapter(tensors, metadata | {"code_version": code_version()} | about, config)
