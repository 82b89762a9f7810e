"""Images drawn while a stage is trained, with the UNet that is being trained."""

import torch
from diffusers import UNet2DConditionModel
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
    def draw(self, unet: UNet2DConditionModel) -> list[Image.Image]:
        """RGB images, one a prompt. The VAE is in memory meanwhile, in float32."""
        side = self.family.params.resolution
        pipeline = self.family.drawing_pipeline(unet).to(self.device)

        def decode(latents: torch.Tensor) -> list[Image.Image]:
            with torch.autocast(self.device, enabled=False):
                decoded = pipeline.vae.decode(latents.float() / pipeline.vae.config.scaling_factor).sample
            return pipeline.image_processor.postprocess(decoded.cpu(), output_type="pil")

        drawn = draw(
            pipeline,
            self.requests,
            steps=self.params.steps,
            guidance_scale=self.params.guidance_scale,
            batch_size=len(self.requests),
            size=(side, side),
            encoded={key: value.to(self.device, unet.dtype) for key, value in self.encoded.items()},
            decode=decode,
        )
        return [image for _, image in drawn]
