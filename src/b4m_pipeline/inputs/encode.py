"""Encode pictures with the VAE and captions with the text encoders, once: neither is in memory while a stage trains."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.diffusion.families import Family, encoder_id, load_family
from b4m_pipeline.diffusion.families.prompts import split_prompts, stack_prompts
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.encoding_cache import EncodingCache, picture_key, prompt_key
from b4m_pipeline.inputs.folders import Picture
from b4m_pipeline.inputs.training_set import TrainingSet, TrainingSetError

logger = logging.getLogger(__name__)


def encode_training_set(
    manifest: pd.DataFrame,
    pictures: Mapping[str, Picture],
    base_model: BaseModelParams,
    others: Sequence[str] = (),
    cache: str | None = None,
) -> TrainingSet:
    """Encode every picture of the manifest with the VAE, and every distinct caption with the text encoders, once. The table
    gets the column pixels, a digest of each square. others: prompts without pictures, as in TrainingSet. cache: folder of what
    was encoded before (see encoding_cache.py); encoders are loaded only for what is not there. Raises TrainingSetError if a
    caption's token would not be read."""
    family, device = load_family(base_model), pick_device()
    table = manifest.reset_index(drop=True)
    _require_tokens_read(table, family)
    images = [
        picture if isinstance(picture, Image.Image) else picture() for picture in (pictures[key] for key in table["picture"])
    ]
    table["pixels"] = [hashlib.sha256(b"%d %d " % image.size + image.tobytes()).hexdigest()[:16] for image in images]
    store = EncodingCache(Path(cache) if cache else None, family.encoder_digest())

    def encode_latents(wanted: list[Image.Image]) -> list[dict[str, torch.Tensor]]:
        return [{"mean": mean, "std": deviation} for mean, deviation in family.encode_pictures(wanted, device)]

    def encode_prompts(wanted: list[str]) -> list[dict[str, torch.Tensor]]:
        return split_prompts(family.encode_prompts(wanted, device))

    latents = _recall(store, images, picture_key, encode_latents)
    mean, deviation = (_stack_padded([entry[key] for entry in latents]) for key in ("mean", "std"))
    sizes = torch.tensor([entry["mean"].shape[-2:] for entry in latents])
    masks = encode_masks(images, sizes.tolist())
    captions = list(dict.fromkeys(table["caption"]))
    place = torch.tensor([captions.index(caption) for caption in table["caption"]])
    entries = _recall(store, [*captions, *others], prompt_key, encode_prompts)
    encoded = stack_prompts(entries)
    prompts = {key: value[place] for key, value in encoded.items()}
    other_tensors = {key: value[len(captions) :].clone() for key, value in encoded.items()} if others else {}
    logger.debug("Encoded %d pictures and %d distinct captions", len(images), len(captions))
    tensors = {"latents_mean": mean, "latents_std": deviation, **prompts} | ({} if masks is None else {"mask": masks})
    if any(image.size != (base_model.resolution,) * 2 for image in images):
        tensors["latents_size"] = sizes
    return TrainingSet(table, tensors, encoder_id(base_model), list(others), other_tensors)


def _recall(store: EncodingCache, items: list, key_of: Callable, encode: Callable) -> list[dict[str, torch.Tensor]]:
    """What each item is encoded as: from the store, the rest all at once by `encode`, and kept then."""
    keys = [key_of(item) for item in items]
    entries = {key: found for key in dict.fromkeys(keys) if (found := store.get(key)) is not None}
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in entries}
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


def _require_tokens_read(table: pd.DataFrame, family: Family) -> None:
    """Text encoders stop reading after a number of tokens. A caption that is longer is cut, with a warning; one whose concept's
    token is cut off would teach nothing: TrainingSetError."""
    tokenizer = family.load_tokenizer()
    limit = family.token_limit(tokenizer)
    for row in table.drop_duplicates("caption").itertuples():
        if family.prompt_tokens(tokenizer, row.caption) <= limit:
            continue
        upto = row.caption.lower().rfind(row.token.lower()) + len(row.token)
        if family.prompt_tokens(tokenizer, row.caption[:upto]) > limit:
            raise TrainingSetError(
                f"{row.picture}: the text encoder reads {limit} tokens, and {row.token!r} comes after them in "
                f"{row.caption[:80]!r}...: shorten the text beside the picture, or set captioning.max_words lower"
            )
        logger.warning("%s: the end of its caption is not read, it is too long: %s", row.picture, row.caption[:80])
