"""Pictures and captions encoded once: all that training reads. Free of torch until it is used, so that Kedro's nodes can name
it (encode.py makes it)."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.common.words import contains
from b4m_pipeline.inputs.captions import LOOK, VARIANT

if TYPE_CHECKING:
    import torch


class TrainingSetError(ValueError):
    """The training set lacks what a stage needs."""


@dataclass
class TrainingSet:
    """table: the manifest's rows; tensors: latents_mean, latents_std (N, C, h, w), prompt_embeds (N, T, D), for SDXL
    pooled_prompt_embeds (N, P), and mask (N, 1, h, w) where a picture has one, aligned with the table; where not all pictures
    are squares also latents_size (N, 2), height and width of what counts in each row's latents, the rest of which is zero;
    encoder: what made them (see encoder_id); others: prompts without pictures, for preservation, and how they are
    encoded."""

    table: pd.DataFrame
    tensors: "dict[str, torch.Tensor]" = field(repr=False)
    encoder: str
    others: list[str] = field(default_factory=list, repr=False)
    other_tensors: "dict[str, torch.Tensor]" = field(default_factory=dict, repr=False)

    def rows(self, role: str) -> "torch.Tensor":
        """Indices of a role's pictures. Raises TrainingSetError if there are none."""
        import torch

        mask = (self.table["role"] == role).to_numpy(copy=True)
        if not mask.any():
            raise TrainingSetError(f"no pictures in the role {role!r}: check the folders in the parameters")
        return torch.from_numpy(mask).nonzero().squeeze(1)

    def hold_back(self, role: str, number: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """A role's rows to train on, and those of its last `number` pictures, which are held back: nothing that shows these
        is trained on, and of them only the pictures themselves with their own captions are measured. Raises TrainingSetError
        if no picture would be left."""
        import torch

        rows = self.rows(role)
        keys = self.table["picture"].str.split("+").str[0]  # a picture in another look is named after it
        pictures = list(dict.fromkeys(keys[rows.tolist()]))
        if number >= len(pictures):
            raise TrainingSetError(
                f"validation.pictures is {number}, and {role} has {len(pictures)}: at least one must be left to train on"
            )
        held = set(pictures[len(pictures) - number :])
        trained = [row for row in rows.tolist() if keys[row] not in held]
        source = self.caption_source()
        measured = [row for row in rows.tolist() if keys[row] in held and source[row] not in (VARIANT, LOOK)]
        return torch.tensor(trained), torch.tensor(measured, dtype=torch.long)

    def has(self, role: str) -> bool:
        return bool((self.table["role"] == role).any())

    def without(self, *roles: str) -> "TrainingSet":
        """All but these roles' pictures."""
        return self.select(~self.table["role"].isin(roles))

    def without_variants(self) -> "TrainingSet":
        """All but the rows of further captions."""
        return self.select(self.caption_source() != VARIANT)

    def caption_source(self) -> pd.Series:
        return self.table.get("caption_source", pd.Series("", index=self.table.index))

    def select(self, mask: pd.Series) -> "TrainingSet":
        kept = mask.to_numpy(copy=True)
        tensors = {key: value[kept] for key, value in self.tensors.items()}
        return dataclasses.replace(self, table=self.table[kept].reset_index(drop=True), tensors=tensors)

    def others_without(self, token: str) -> "tuple[list[str], dict[str, torch.Tensor]]":
        """The prompts without pictures that do not hold this token, and how they are encoded (M, ...). Raises TrainingSetError
        if there are not even two."""
        kept = [prompt for prompt in self.others if not contains(prompt, token)]
        if len(kept) < 2:  # shares are of what differs between them
            raise TrainingSetError(
                f"preservation needs prompts without {token!r}: name known words in preservation.contents and styles and run "
                "the ingestion pipeline again, or set preservation_weight to 0"
            )
        rows = [self.others.index(prompt) for prompt in kept]
        return kept, {key: value[rows] for key, value in self.other_tensors.items()}

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
        """Which pictures, as they were cropped and laid on their ground, with which captions the roles hold, and by what they
        were encoded."""
        table = self.table[self.table["role"].isin(roles)]
        return digest_of(self.encoder, table[["role", "concept", "sha256", "pixels", "caption"]].values.tolist())

    def provenance(self, *roles: str) -> dict[str, dict]:
        """How many pictures the roles hold, by licence (SPDX, as far as known), and which: the beginnings of their files'
        sha256. A picture counts once, whatever its captions and looks. Roles without pictures are left out."""
        found = {}
        for role in roles:
            files = self.table[self.table["role"] == role].drop_duplicates("sha256")
            licences = files.get("licence", pd.Series("unknown", index=files.index)).value_counts()
            if len(files):
                counts = {name: int(licences[name]) for name in sorted(licences.index)}
                found[role] = {"number": len(files), "licences": counts, "sha256": [sha[:12] for sha in files["sha256"]]}
        return found
