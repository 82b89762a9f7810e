"""Parameters of evaluations of the tiny random SDXL."""

from b4m_pipeline.evaluation.params import EvaluationParams

PARAMS = EvaluationParams(
    prompts=["{article} {content} {noun} in {style} style", "{article} {content} {noun} in {style} style, small"],
    content_prompt="{article} {content} {noun}",
    style_prompt="a house {noun} in {style} style",
    samples=2,
    steps=2,
    guidance_scale=3.0,
    batch_size=3,
    truth_path=None,
    clip=None,
)

THINGS = ["a car toy", "a hat toy", None]
"""What three pictures of a style show."""
