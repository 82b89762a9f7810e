"""Images drawn while a stage is trained, with the denoiser that is being trained."""

from typing import Any

import torch
from PIL import Image

from b4m_pipeline.diffusion.families import Family
from b4m_pipeline.diffusion.sampling import ImageRequest, draw
from b4m_pipeline.training.params import SampleParams


class Previews:
    """Draws one image a prompt, always from the same noise, so that a series of them shows what training changes."""

    def __init__(self, family: Family, prompts: list[str], params: SampleParams, seed: int, device: str):
        """Encodes the prompts; text encoders are not in memory after this."""
        self.family, self.params, self.device = family, params, device
        self.requests = [ImageRequest(prompt, seed + index) for index, prompt in enumerate(prompts)]
        self.encoded = family.encode_guided(prompts, device)

    @torch.no_grad()
    def draw(self, denoiser: Any) -> list[Image.Image]:
        """RGB images, one a prompt. The VAE is in memory meanwhile, in float32."""
        side = self.family.params.resolution
        drawn = draw(
            self.family.drawing_pipeline(denoiser).to(self.device),
            self.requests,
            steps=self.params.steps,
            guidance_scale=self.params.guidance_scale,
            batch_size=len(self.requests),
            size=(side, side),
            encoded={key: _moved(value, self.device, denoiser.dtype) for key, value in self.encoded.items()},
        )
        return [image for _, image in drawn]


def _moved(value: Any, device: str, dtype: torch.dtype) -> Any:
    """A tensor, or a list of tensors of different lengths; whole numbers stay whole."""
    if isinstance(value, list):
        return [_moved(each, device, dtype) for each in value]
    return value.to(device, dtype if value.is_floating_point() else None)
