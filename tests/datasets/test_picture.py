import base64
import io

from PIL import Image

from b4m_pipeline.datasets.picture import PreviewPictureDataset


def test_saves_loads_and_previews(tmp_path):
    dataset = PreviewPictureDataset(filepath=str(tmp_path / "sheet.png"))
    dataset.save(Image.new("RGB", (2000, 400), "red"))
    assert dataset.load().size == (2000, 400)
    preview = Image.open(io.BytesIO(base64.b64decode(dataset.preview())))
    assert preview.size == (1600, 320)
    assert preview.getpixel((9, 9)) == (255, 0, 0)


def test_kedro_viz_takes_the_preview_for_an_image():
    assert PreviewPictureDataset.preview.__annotations__["return"].__name__ == "ImagePreview"
