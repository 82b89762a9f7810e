"""Pictures drawn while a stage is trained, with the UNet that is being trained."""

import torch
from PIL import Image

from b4m_pipeline.common.config import SampleParams
from b4m_pipeline.diffusion.families import Family


class Previews:
    """Draws one picture a prompt, always from the same noise, so that a series of them shows what training changes."""

    def __init__(self, family: Family, prompts: list[str], params: SampleParams, seed: int, device: str):
        """Encodes the prompts; text encoders are not in memory after this."""
        self.family, self.params, self.seed, self.device = family, params, seed, device
        self.prompts = prompts
        self.encoded = family.encode_guided(prompts, device)

    @torch.no_grad()
    def draw(self, unet: torch.nn.Module) -> list[Image.Image]:
        """RGB pictures, one a prompt. The VAE is in memory meanwhile."""
        side = self.family.params.resolution
        pipeline = self.family.drawing_pipeline(unet).to(self.device)
        latents = pipeline(
            **{key: value.to(self.device, unet.dtype) for key, value in self.encoded.items()},
            num_inference_steps=self.params.steps,
            guidance_scale=self.params.guidance_scale,
            height=side,
            width=side,
            generator=[torch.Generator().manual_seed(self.seed + index) for index in range(len(self.prompts))],
            output_type="latent",
        ).images
        with torch.autocast(self.device, enabled=False):
            decoded = pipeline.vae.decode(latents.float() / pipeline.vae.config.scaling_factor).sample
        return pipeline.image_processor.postprocess(decoded.cpu(), output_type="pil")
