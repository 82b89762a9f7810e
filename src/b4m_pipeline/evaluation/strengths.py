"""One picture of what the two strengths of an adapter do."""

from itertools import product

from PIL import Image

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.progress import progress
from b4m_pipeline.common.sheets import Row, paint_grid
from b4m_pipeline.common.words import fill_prompt
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import ImageRequest, draw, put_on, settings_of
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.combine import with_strengths

STRENGTHS = (0.6, 1.0, 1.4)


def draw_strengths(adapter: Adapter, base_model: BaseModelParams, params: EvaluationParams, seed: int) -> Image.Image:
    """RGB sheet of one seed and the first prompt: a row for each strength of the style, a column for each of the content. Drawn
    in half of the denoising steps, as one image at a time is slow."""
    about, settings = adapter.metadata, settings_of(params, base_model.resolution)
    settings["steps"] = max(1, params.steps // 2)
    words = {"content": about["content_token"], "style": about["style_token"]}
    request = ImageRequest(fill_prompt(params.prompts[0], words, about["noun"]), seed)
    pipeline = load_family(base_model).load_pipeline(pick_device(params.device))
    images = []
    for style, content in progress(product(STRENGTHS, STRENGTHS), "drawing strengths", len(STRENGTHS) ** 2, settings["steps"]):
        pipeline.unload_lora_weights()
        put_on(pipeline, with_strengths(adapter, content, style))
        images += [image for _, image in draw(pipeline, [request], **settings)]
    rows = []
    for style in STRENGTHS:
        own, images = images[: len(STRENGTHS)], images[len(STRENGTHS) :]
        rows.append(Row(f"style {style}", own, request.prompt if style == 1 else ""))
    return paint_grid(rows, headings=[f"content {content}" for content in STRENGTHS])
