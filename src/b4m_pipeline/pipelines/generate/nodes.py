"""Nodes of `generate`."""

from PIL import Image

from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams


def draw_prompts(
    generate: GenerateParams, base_model: BaseModelParams, seed: int
) -> tuple[dict[str, Image.Image], Image.Image]:
    """Pictures of all prompts, and a sheet with a row for each; both also go to MLflow."""
    from b4m_pipeline.common.sheets import Row, paint_grid
    from b4m_pipeline.diffusion import sampling as generation
    from b4m_pipeline.registry.adapters import fetch_adapter
    from b4m_pipeline.registry.tracking import log_picture

    adapter = fetch_adapter(generate.adapter) if generate.adapter else None
    pictures = generation.generate(adapter, base_model, generate, seed)
    prompts, listed = generation.read_prompts(generate, adapter), list(pictures.values())
    each = generate.images_per_prompt
    sheet = paint_grid([Row(f"{i}", listed[i * each : (i + 1) * each], prompt) for i, prompt in enumerate(prompts)])
    log_picture(sheet, "generated")
    return pictures, sheet
