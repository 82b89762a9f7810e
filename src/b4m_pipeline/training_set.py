"""Pictures and captions encoded once: all that training reads. VAE and text encoders are not in memory after this."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch
from PIL import Image

from b4m_pipeline.config import BaseModelParams
from b4m_pipeline.provenance import digest_of

logger = logging.getLogger(__name__)


class TrainingSetError(ValueError):
    """The training set lacks what a stage needs."""


@dataclass
class TrainingSet:
    """table: the manifest's rows; tensors: latents_mean, latents_std (N, C, h, w), prompt_embeds (N, T, D) and, for SDXL,
    pooled_prompt_embeds (N, P), aligned with the table; base_model: whose encoders made them (see base_model_id)."""

    table: pd.DataFrame
    tensors: dict[str, torch.Tensor] = field(repr=False)
    base_model: str

    def rows(self, role: str) -> torch.Tensor:
        """Indices of a role's pictures. Raises TrainingSetError if there are none."""
        mask = (self.table["role"] == role).to_numpy(copy=True)
        if not mask.any():
            raise TrainingSetError(f"no pictures in the role {role!r}: check the folders in the parameters")
        return torch.from_numpy(mask).nonzero().squeeze(1)

    def has(self, role: str) -> bool:
        return bool((self.table["role"] == role).any())

    def require(self, role: str, name: str, token: str) -> None:
        """Raise TrainingSetError if the role's pictures are of another concept, or call it by another token."""
        rows = self.table.loc[self.rows(role).tolist()]
        found = sorted(set(zip(rows["concept"], rows["token"], strict=True)))
        if found != [(name, token)]:
            listed = ", ".join(f"{concept!r} ({word})" for concept, word in found)
            raise TrainingSetError(
                f"the training set's {role} is {listed}, {name!r} ({token}) is wanted: run the ingestion pipeline again "
                "with this run's parameters"
            )

    def digest(self, *roles: str) -> str:
        """Which pictures with which captions the roles hold, encoded by which base model."""
        table = self.table[self.table["role"].isin(roles)]
        columns = ["role", "concept", "sha256", "caption"]
        return digest_of(self.base_model, list(self.tensors["latents_mean"].shape[1:]), table[columns].values.tolist())


def encode_training_set(
    manifest: pd.DataFrame,
    pictures: dict[str, Image.Image | Callable[[], Image.Image]],
    base_model: BaseModelParams,
) -> TrainingSet:
    """Encode every picture of the manifest with the VAE, and every distinct caption with the text encoders, once."""
    from b4m_pipeline.devices import pick_device
    from b4m_pipeline.diffusion import base_model_id, load_family

    family, device = load_family(base_model), pick_device()
    table = manifest.reset_index(drop=True)
    images = [picture() if callable(picture) else picture for picture in (pictures[key] for key in table["picture"])]
    mean, deviation = family.encode_pictures(images, device)
    captions = list(dict.fromkeys(table["caption"]))
    place = torch.tensor([captions.index(caption) for caption in table["caption"]])
    prompts = {key: value[place] for key, value in family.encode_prompts(captions, device).items()}
    logger.info("Encoded %d pictures and %d distinct captions", len(images), len(captions))
    return TrainingSet(table, {"latents_mean": mean, "latents_std": deviation, **prompts}, base_model_id(base_model))
