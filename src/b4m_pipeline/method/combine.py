"""Halves put together (B4M section 3.3), and the strengths of each in the whole."""

import json

from b4m_pipeline.common.provenance import code_version, digest_of, recipe_code
from b4m_pipeline.method.adapter import BASE_DETAILS, CREATED, DIRECTIONS_KEY, PIPELINE_KEY, RECIPE_KEY, URI_KEY, Adapter
from b4m_pipeline.method.directions import differing_layer, unpack_directions
from b4m_pipeline.method.frame import FrameMismatchError, frame_of, require_same_frame
from b4m_pipeline.method.params import Side

_OF_BASE = (
    "base_model", "resolution", "architecture", "prediction_type", *(f"base_{key}" for key in BASE_DETAILS), PIPELINE_KEY,
)  # fmt: skip
_OF_CONTENT = (*_OF_BASE, "params", "code_version", "noun")

_STRENGTH = 1 / 3
"""Exponent from a strength to the factor on a half's weights."""


def reconstruct(half_a: Adapter, half_b: Adapter, metadata: dict[str, str]) -> Adapter:
    """Join one adapter's lora_A = [F_A | L_A] with another's lora_B = [F_B ; L_B].

    lora_A (r, n) and lora_B (m, r) are taken over bit for bit. Raises FrameMismatchError if the frames differ or a half
    is not the one that is asked for.
    """
    require_same_frame(half_a.metadata["frame"], half_b.metadata["frame"])
    for half, wanted in ((half_a, "lora_A"), (half_b, "lora_B")):
        if (got := half.metadata.get("half")) != wanted:
            raise FrameMismatchError(f"{half.metadata['name']} is a half of {got}, where one of {wanted} is needed")
    _require_same_directions(half_a, half_b)
    tensors = {}
    for name in half_a.modules():
        tensors[f"{name}.lora_A.weight"] = half_a.tensors[f"{name}.lora_A.weight"].clone()
        tensors[f"{name}.lora_B.weight"] = half_b.tensors[f"{name}.lora_B.weight"].clone()
    shared = {
        key: half_a.metadata[key] for key in ("base_model", "frame", "frame_config", DIRECTIONS_KEY) if key in half_a.metadata
    }
    return Adapter(tensors, {**metadata, **shared, "half": "both"}, dict(half_a.lora_config))


def _require_same_directions(half_a: Adapter, half_b: Adapter) -> None:
    """The fingerprint knows the words, not the text encoders that read them."""
    first, second = (unpack_directions(half.metadata.get(DIRECTIONS_KEY, "[]")) for half in (half_a, half_b))
    if layer := differing_layer(first, second):
        raise FrameMismatchError(
            f"{half_a.metadata['name']} and {half_b.metadata['name']} were trained with different text encoders: their "
            f"known words differ in other directions ({layer}). Train both on one base model"
        )


def join_halves(content: Adapter, style: Adapter, content_side: Side) -> Adapter:
    """`reconstruct` for a content and a style, whichever side is whose, with the lineage of both. The halves' versions in the
    registry, where they have one, are the result's parents. Raises FrameMismatchError, also for halves that were confined to
    subspaces and ones that were not: they would not add up."""
    half_a, half_b = (content, style) if content_side == "lora_A" else (style, content)
    for half, kind in ((content, "content"), (style, "style")):
        if half.metadata["kind"] != kind:
            raise FrameMismatchError(f"{half.metadata['name']} is a {half.metadata['kind']} adapter, no {kind} half")
    ways = [json.loads(half.metadata["params"])["frame"]["halves"] for half in (content, style)]
    if ways[0] != ways[1]:
        raise FrameMismatchError(
            f"{content.metadata['name']} was trained with frame.halves {ways[0]}, {style.metadata['name']} with {ways[1]}: "
            "the two would not add up; train both one way"
        )
    metadata = {key: content.metadata[key] for key in _OF_CONTENT if key in content.metadata}
    metadata |= {
        "kind": "reconstructed",
        "name": f"{content.metadata['name']}-{style.metadata['name']}",
        "data_digest": digest_of(content.metadata["data_digest"], style.metadata["data_digest"]),
        "code_version": code_version(),
        "content_side": content_side,
        "style_noun": style.metadata["noun"],
        "parents": json.dumps([half.metadata[URI_KEY] for half in (content, style) if URI_KEY in half.metadata]),
    }
    if dates := [half.metadata[CREATED] for half in (content, style) if CREATED in half.metadata]:
        metadata[CREATED] = max(dates)
    recipes = [half.metadata[RECIPE_KEY] for half in (content, style)]
    metadata[RECIPE_KEY] = digest_of("reconstructed", recipes, recipe_code("method/combine"))
    for kind, half in (("content", content), ("style", style)):
        metadata |= {f"{kind}_name": half.metadata["name"], f"{kind}_token": half.metadata["token"]}
    return reconstruct(half_a, half_b, metadata)


def with_strengths(adapter: Adapter, content: float = 1.0, style: float = 1.0) -> Adapter:
    """The adapter with content and style as strong as asked: 1 as trained, 0 without. Between 0.5 and 1.5 the image changes
    gradually; by the factors themselves nearly all of the change lies between 0.8 and 1.1. Raises as `scale_halves`."""
    return scale_halves(adapter, content**_STRENGTH, style**_STRENGTH)


def scale_halves(adapter: Adapter, content: float = 1.0, style: float = 1.0) -> Adapter:
    """The adapter with content's and style's learnt parts scaled: the block of each concept alone is scaled by its own factor,
    the cross term L_B L_A by the product of both. With a factor of 0 its concept is gone, and with it the cross term.

    A merged adapter is given back as it is for factors of 1. Raises FrameMismatchError for other factors, if the adapter has no
    frame, or if it does not say whose side is whose.
    """
    about = adapter.metadata
    if about.get("kind") == "merged":
        if (content, style) == (1.0, 1.0):
            return adapter
        raise FrameMismatchError(
            f"content_scale and style_scale are {content} and {style}, but {about['name']} is a merge and has no halves that "
            "could be scaled. Merge again with other weights: compose.merge.content_weight and compose.merge.style_weight"
        )
    factors: dict[str, float]
    if about.get("kind") in ("content", "style"):
        factors = {about["half"]: content if about["kind"] == "content" else style}
    elif "content_side" in about:
        other = "lora_B" if about["content_side"] == "lora_A" else "lora_A"
        factors = {about["content_side"]: content, other: style}
    else:
        raise FrameMismatchError(f"{about.get('name', '?')} has no halves that could be scaled")
    frame, tensors = frame_of(adapter), {key: tensor.clone() for key, tensor in adapter.tensors.items()}
    for module in adapter.modules():
        lora_a = tensors[f"{module}.lora_A.weight"]
        lora_a += (factors.get("lora_A", 1.0) - 1) * frame.learnt_columns(module, lora_a)
        tensors[f"{module}.lora_B.weight"][frame.sizes(module)[0] :] *= factors.get("lora_B", 1.0)
    return Adapter(tensors, dict(about), dict(adapter.lora_config))
