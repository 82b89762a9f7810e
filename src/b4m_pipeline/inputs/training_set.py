"""Pictures and captions encoded once: all that training reads. VAE and text encoders are not in memory after this."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from b4m_pipeline.common.config import BaseModelParams
from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.inputs.captioning import LOOK, VARIANT, contains

if TYPE_CHECKING:
    from b4m_pipeline.inputs.encoding_cache import EncodingCache

logger = logging.getLogger(__name__)


class TrainingSetError(ValueError):
    """The training set lacks what a stage needs."""


@dataclass
class TrainingSet:
    """table: the manifest's rows; tensors: latents_mean, latents_std (N, C, h, w), prompt_embeds (N, T, D), for SDXL
    pooled_prompt_embeds (N, P), and mask (N, 1, h, w) where a picture has one, aligned with the table; where not all pictures
    are squares also latents_size (N, 2), height and width of what counts in each row's latents, the rest of which is zero;
    encoder: what made them (see encoder_id); others: prompts without pictures, for preservation (prompt ->
    whether it names a "content" or a "style" by a token, or neither, ""), and how they are encoded."""

    table: pd.DataFrame
    tensors: dict[str, torch.Tensor] = field(repr=False)
    encoder: str
    others: dict[str, str] = field(default_factory=dict, repr=False)
    other_tensors: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def rows(self, role: str) -> torch.Tensor:
        """Indices of a role's pictures. Raises TrainingSetError if there are none."""
        mask = (self.table["role"] == role).to_numpy(copy=True)
        if not mask.any():
            raise TrainingSetError(f"no pictures in the role {role!r}: check the folders in the parameters")
        return torch.from_numpy(mask).nonzero().squeeze(1)

    def hold_back(self, role: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A role's rows to train on, and those of its last `number` pictures, which are held back: nothing that shows these
        is trained on, and of them only the pictures themselves with their own captions are measured. Raises TrainingSetError
        if no picture would be left."""
        rows = self.rows(role)
        keys = self.table["picture"].str.split("+").str[0]  # a picture in another look is named after it
        pictures = list(dict.fromkeys(keys[rows.tolist()]))
        if number >= len(pictures):
            raise TrainingSetError(
                f"validation.pictures is {number}, and {role} has {len(pictures)}: at least one must be left to train on"
            )
        held = set(pictures[len(pictures) - number :])
        trained = [row for row in rows.tolist() if keys[row] not in held]
        source = self._source()
        measured = [row for row in rows.tolist() if keys[row] in held and source[row] not in (VARIANT, LOOK)]
        return torch.tensor(trained), torch.tensor(measured, dtype=torch.long)

    def has(self, role: str) -> bool:
        return bool((self.table["role"] == role).any())

    def without(self, *roles: str) -> "TrainingSet":
        """All but these roles' pictures."""
        return self._select(~self.table["role"].isin(roles))

    def without_variants(self) -> "TrainingSet":
        """All but the rows of further captions."""
        return self._select(self._source() != VARIANT)

    def without_looks(self) -> "TrainingSet":
        """All but contents' pictures in other looks, whatever their captions."""
        looks = self.table.loc[self._source() == LOOK, "picture"]
        return self._select(~self.table["picture"].isin(looks))

    def _source(self) -> pd.Series:
        return self.table.get("caption_source", pd.Series("", index=self.table.index))

    def _select(self, mask: pd.Series) -> "TrainingSet":
        kept = mask.to_numpy(copy=True)
        tensors = {key: value[torch.from_numpy(kept)] for key, value in self.tensors.items()}
        return dataclasses.replace(self, table=self.table[kept].reset_index(drop=True), tensors=tensors)

    def others_without(self, token: str) -> tuple[list[str], dict[str, torch.Tensor]]:
        """The prompts without pictures that do not hold this token, and how they are encoded (M, ...). Raises TrainingSetError
        if there are not even two."""
        kept = [prompt for prompt in self.others if not contains(prompt, token)]
        if len(kept) < 2:  # shares are of what differs between them
            raise TrainingSetError(
                f"preservation needs prompts without {token!r}: name known words in preservation.contents and styles and run "
                "the ingestion pipeline again, or set preservation_weight to 0"
            )
        return self._others(kept)

    def others_naming(self, kind: str) -> tuple[list[str], dict[str, torch.Tensor]]:
        """The prompts without pictures that name a concept of this kind by a token, and how they are encoded (M, ...). Raises
        TrainingSetError if there are none."""
        kept = [prompt for prompt, named in self.others.items() if named == kind]
        if not kept:
            raise TrainingSetError(
                f"separation needs prompts that name a {kind} by a token: name known words in preservation.contents and styles "
                "and run the ingestion pipeline again, or set separation_weight to 0"
            )
        return self._others(kept)

    def _others(self, prompts: list[str]) -> tuple[list[str], dict[str, torch.Tensor]]:
        place = {prompt: index for index, prompt in enumerate(self.others)}
        rows = [place[prompt] for prompt in prompts]
        return prompts, {key: value[rows] for key, value in self.other_tensors.items()}

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


def encode_training_set(
    manifest: pd.DataFrame,
    pictures: dict[str, Image.Image | Callable[[], Image.Image]],
    base_model: BaseModelParams,
    others: Mapping[str, str] | None = None,
    cache: str | None = None,
) -> TrainingSet:
    """Encode every picture of the manifest with the VAE, and every distinct caption with the text encoders, once. The table
    gets the column pixels, a digest of each square. others: prompts without pictures, as in TrainingSet. cache: folder of what
    was encoded before (see encoding_cache.py); encoders are loaded only for what is not there. Raises TrainingSetError if a
    caption's token would not be read."""
    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.diffusion.families import encoder_id, load_family
    from b4m_pipeline.inputs.encoding_cache import EncodingCache, picture_key, prompt_key

    family, device = load_family(base_model), pick_device()
    table = manifest.reset_index(drop=True)
    _require_tokens_read(table, family.load_tokenizer())
    images = [picture() if callable(picture) else picture for picture in (pictures[key] for key in table["picture"])]
    table["pixels"] = [hashlib.sha256(b"%d %d " % image.size + image.tobytes()).hexdigest()[:16] for image in images]
    store = EncodingCache(Path(cache) if cache else None, family.encoder_digest())

    def encode_latents(wanted: list[Image.Image]) -> list[dict[str, torch.Tensor]]:
        return [{"mean": mean, "std": deviation} for mean, deviation in family.encode_pictures(wanted, device)]

    def encode_prompts(wanted: list[str]) -> list[dict[str, torch.Tensor]]:
        encoded = family.encode_prompts(wanted, device)
        return [{key: value[index] for key, value in encoded.items()} for index in range(len(wanted))]

    latents = _recall(store, images, picture_key, encode_latents)
    mean, deviation = (_stack_padded([entry[key] for entry in latents]) for key in ("mean", "std"))
    sizes = torch.tensor([entry["mean"].shape[-2:] for entry in latents])
    masks = encode_masks(images, sizes.tolist())
    captions = list(dict.fromkeys(table["caption"]))
    place = torch.tensor([captions.index(caption) for caption in table["caption"]])
    others = dict(others or {})
    entries = _recall(store, [*captions, *others], prompt_key, encode_prompts)
    encoded = {key: torch.stack([entry[key] for entry in entries]) for key in entries[0]}
    prompts = {key: value[place] for key, value in encoded.items()}
    other_tensors = {key: value[len(captions) :].clone() for key, value in encoded.items()} if others else {}
    logger.info("Encoded %d pictures and %d distinct captions", len(images), len(captions))
    tensors = {"latents_mean": mean, "latents_std": deviation, **prompts} | ({} if masks is None else {"mask": masks})
    if any(image.size != (base_model.resolution,) * 2 for image in images):
        tensors["latents_size"] = sizes
    return TrainingSet(table, tensors, encoder_id(base_model), others, other_tensors)


def _recall(store: "EncodingCache", items: list, key_of: Callable, encode: Callable) -> list[dict[str, torch.Tensor]]:
    """What each item is encoded as: from the store, the rest all at once by `encode`, and kept then."""
    keys = [key_of(item) for item in items]
    entries = {key: store.get(key) for key in dict.fromkeys(keys)}
    missing = {key: item for key, item in zip(keys, items, strict=True) if entries[key] is None}
    if missing:
        for key, encoded in zip(missing, encode(list(missing.values())), strict=True):
            entries[key] = encoded
            store.put(key, encoded)
    logger.debug("%d of %d were encoded before", len(entries) - len(missing), len(entries))
    return [entries[key] for key in keys]


def encode_masks(images: Sequence[Image.Image], sizes: Sequence[Sequence[int]]) -> torch.Tensor | None:
    """Alpha channels of pictures, shrunk to the size (h, w) of each one's latents -> (N, 1, h, w) in 0 to 1, 1 for pictures
    without, padded with 0 to the largest. None if none has one."""
    if all(image.mode != "RGBA" for image in images):
        return None
    masks = []
    for image, (height, width) in zip(images, sizes, strict=True):
        mask = torch.ones(1, height, width)
        if image.mode == "RGBA":
            small = image.getchannel("A").resize((width, height), Image.Resampling.BOX)
            mask[0] = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)
        masks.append(mask)
    return _stack_padded(masks)


def _stack_padded(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """(C, h_i, w_i) each -> (N, C, h, w), with zeros below and at the right."""
    height, width = (max(one.shape[axis] for one in maps) for axis in (-2, -1))
    return torch.stack([F.pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in maps])


def _require_tokens_read(table: pd.DataFrame, tokenizer) -> None:
    """Text encoders stop reading after `model_max_length` tokens. A caption that is longer is cut, with a warning; one whose
    concept's token is cut off would teach nothing: TrainingSetError."""

    def length(text: str) -> int:
        return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])  # start and end included

    for row in table.drop_duplicates("caption").itertuples():
        if length(row.caption) <= tokenizer.model_max_length:
            continue
        upto = row.caption.lower().rfind(row.token.lower()) + len(row.token)
        if length(row.caption[:upto]) > tokenizer.model_max_length:
            raise TrainingSetError(
                f"{row.picture}: the text encoder reads {tokenizer.model_max_length} tokens, and {row.token!r} comes after "
                f"them in {row.caption[:80]!r}...: shorten the text beside the picture, or set captioning.max_words lower"
            )
        logger.warning("%s: the end of its caption is not read, it is too long: %s", row.picture, row.caption[:80])
