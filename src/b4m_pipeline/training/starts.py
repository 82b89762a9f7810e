"""A break that goes on from a half that is there already: which halves it can go on from."""

import json
from typing import Literal

from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.frame import Frame, half_side
from b4m_pipeline.method.params import FrameParams


class StartError(ValueError):
    """A half that a break cannot start from; the message names the parameter."""


def check_start(start: Adapter, kind: Literal["content", "style"], params: FrameParams, frame: Frame) -> None:
    """Raise StartError unless this is a half of the kind, the base model and the frame. frame: what `params` describe on the
    run's base model."""
    about = start.metadata
    name = f"{kind}_break.start_from: {about['name']}"
    if about["kind"] != kind:
        raise StartError(f"{name} is a {about['kind']} adapter, and not a {kind} half")
    own = json.loads(about["frame_config"])
    if own["base_model"].rsplit("@", 1)[-1] != frame.base_model.rsplit("@", 1)[-1]:  # a folder may have another name by now
        raise StartError(f"{name} is a half of the base model {own['base_model']}, and this run's is {frame.base_model}")
    if about["frame"] != frame.fingerprint:
        now = json.loads(frame.describe())
        differing = ", ".join(key for key in now if now[key] != own.get(key))
        raise StartError(f"{name} is a half of another frame ({differing}): set the parameters of `frame` as it has them")
    for parameter, before, wanted in (
        ("content_side", about["half"], half_side(kind, params.content_side)),
        ("halves", json.loads(about["params"])["frame"]["halves"], params.halves),
    ):
        if before != wanted:
            raise StartError(f"{name} was trained with another frame.{parameter} ({before} instead of {wanted})")


def weights_digest(adapter: Adapter) -> str:
    """What of an adapter decides a training that starts from it."""
    return digest_of({name: tensor.double().sum().item() for name, tensor in adapter.tensors.items()})
