"""Picture files, and how Kedro-Viz shows pictures."""

import base64
import io

from kedro_datasets._typing import ImagePreview
from kedro_datasets.pillow import ImageDataset
from PIL import Image

_PREVIEW_PIXELS = 1600


def image_preview(image: Image.Image) -> ImagePreview:
    """An image as a base64-coded PNG of at most 1600 pixels a side."""
    image = image.copy()
    image.thumbnail((_PREVIEW_PIXELS, _PREVIEW_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return ImagePreview(base64.b64encode(buffer.getvalue()).decode())


class PreviewPictureDataset(ImageDataset):
    """pillow.ImageDataset with a preview in Kedro-Viz."""

    def preview(self) -> ImagePreview:
        return image_preview(self.load())


class DescribedPictureDataset(ImageDataset):
    """pillow.ImageDataset for PNGs that keeps what a picture says of its origin (see `generation.png_info`) in the file."""

    def save(self, data) -> None:
        from b4m_pipeline.diffusion.sampling import png_info

        before = self._save_args
        self._save_args = before | {"pnginfo": png_info(data)}
        try:
            super().save(data)
        finally:
            self._save_args = before
