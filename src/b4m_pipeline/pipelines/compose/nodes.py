"""Nodes of `compose`."""

from PIL import Image

from b4m_pipeline.datasets.adapter import UNCHANGED
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import MakeParams


def fetch_and_compose(
    compose: ComposeParams,
    frame: FrameParams,
    base_model: BaseModelParams,
    make: MakeParams,
    generate: GenerateParams,
    seed: int,
) -> tuple[Adapter | str, dict[str, Adapter], dict[str, Image.Image]]:
    """The joined halves, if they are asked for; every merge by "CONTENT-STYLE/METHOD"; and, of several ways, a sheet by
    "CONTENT-STYLE", which also goes to MLflow."""
    from b4m_pipeline.library import compose as library
    from b4m_pipeline.registry.tracking import log_picture

    content, style, made = library.compose(compose, base_model, frame.content_side, make, seed)
    name = f"{content.adapter.metadata['name']}-{style.adapter.metadata['name']}"
    sheets = {}
    if len(made) > 1:
        sheets[name] = library.draw_side_by_side(content, style, made, compose, base_model, generate, seed)
        log_picture(sheets[name], "composed")
    merged = {f"{name}/{method}": adapter for method, adapter in made.items() if method != "halves"}
    return made.get("halves", UNCHANGED), merged, sheets
