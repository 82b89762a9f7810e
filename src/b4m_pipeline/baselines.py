"""What the method is held against, trained and drawn with by the same code."""

import json

import torch
from peft import LoraConfig

from b4m_pipeline.adapters import Adapter
from b4m_pipeline.config import BaseModelParams, LoraParams, TrainParams
from b4m_pipeline.devices import pick_device
from b4m_pipeline.diffusion import DiffusionLoss, load_family
from b4m_pipeline.plp import ADAPTER, find_layers
from b4m_pipeline.provenance import code_version
from b4m_pipeline.trainer import Objective, fit, resolve_precision
from b4m_pipeline.training_set import TrainingSet


def train_lora(
    name: str,
    training_set: TrainingSet,
    roles: list[str],
    base_model: BaseModelParams,
    lora: LoraParams,
    params: TrainParams,
    seed: int,
) -> tuple[Adapter, list[dict[str, float]]]:
    """Plain LoRA (Hu et al. 2021, arXiv 2106.09685) on the pictures of `roles`, in equal shares: with one role a single
    concept, with content and style joint training. No part is frozen, lora_B starts at zero.

    Returns the adapter, which has no frame and no halves, and the training history.
    """
    family, device = load_family(base_model), pick_device(params.device)
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    unet = family.load_denoiser(device, dtype[resolve_precision(params.precision, device)])
    layers = find_layers(unet, lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(config, adapter_name=ADAPTER)
    factors = {}
    for layer in layers:
        module = unet.get_submodule(layer)
        for side, linear in (("lora_A", module.lora_A[ADAPTER]), ("lora_B", module.lora_B[ADAPTER])):
            factors[f"{layer}.{side}.weight"] = linear.float().weight.requires_grad_(True)
    unet.to(device).eval()
    strata = [training_set.rows(role) for role in roles]
    objective = Objective(name, list(factors.values()), strata, params.batch_size, params.learning_rate)
    loss = DiffusionLoss(family, unet, training_set.tensors, params.noisy_bias)
    history = fit(loss, [objective], params, seed=seed, device=device, description=name)
    recipe = {"lora": lora.model_dump(), "train": params.model_dump(), "seed": seed}
    metadata = {
        "kind": "lora",
        "name": name,
        "base_model": base_model.path,
        "frame": "none",
        "frame_config": "{}",
        "data_digest": training_set.digest(*roles),
        "params": json.dumps(recipe, sort_keys=True),
        "code_version": code_version(),
    }
    tensors = {key: weight.detach().float().cpu().clone() for key, weight in factors.items()}
    return Adapter(tensors, metadata, {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": sorted(layers)}), history
