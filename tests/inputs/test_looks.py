"""The content's pictures in other looks."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from b4m_pipeline.inputs.looks import UnknownLookError, add_content_looks, redraw
from b4m_pipeline.inputs.params import IngestionParams
from tests.conftest import PLAIN_INGESTION


def ingestion(**changes) -> IngestionParams:
    return IngestionParams(**PLAIN_INGESTION | changes)


WHITE = (255, 255, 255)


def ring(side: int = 64, ground=WHITE) -> Image.Image:
    """A red ring around a hole of the ground's colour."""
    image = Image.new("RGB", (side, side), ground)
    drawing = ImageDraw.Draw(image)
    drawing.ellipse([side * 0.15, side * 0.15, side * 0.85, side * 0.85], fill=(200, 30, 30))
    drawing.ellipse([side * 0.4, side * 0.4, side * 0.6, side * 0.6], fill=ground)
    return image


@pytest.mark.parametrize("side", [64, 128, 300])
@pytest.mark.parametrize("look", ["comic", "sketch", "neon", "pixel art"])
def test_a_look_keeps_the_size_and_changes_the_picture(look, side):
    given = ring(side)
    drawn = redraw(given, look, WHITE, "ring")
    assert drawn.mode == "RGB" and drawn.size == (side, side)
    assert np.abs(np.asarray(drawn, int) - np.asarray(given, int)).mean() > 1
    assert drawn.tobytes() == redraw(given, look, WHITE, "ring").tobytes()


def test_the_ground_is_what_the_border_reaches():
    """Denim sews a patch in the shape of the content and leaves the ground; a hole in the content belongs to it."""
    drawn = np.asarray(redraw(ring(128), "denim", WHITE), int)
    assert (drawn[4, 4] > 250).all() and (drawn[64, 64] < 250).any()
    blue = np.asarray(redraw(ring(128, (0, 0, 250)), "denim", (0, 0, 250)), int)
    assert np.abs(blue[4, 4] - [0, 0, 250]).max() < 5


def test_a_photo_has_no_ground_and_is_redrawn_as_a_whole():
    noise = Image.effect_noise((128, 128), 90).convert("RGB")
    drawn = np.asarray(redraw(noise, "denim", WHITE), int)
    assert drawn[2:6, 2:6].mean() < 200  # cloth up to the corner


def test_content_alone_gets_looks_its_pictures_in_turn():
    manifest = pd.DataFrame({
        "picture": ["content/cup/0", "content/cup/1", "style/ink/0"], "role": ["content", "content", "style"],
        "token": ["snq", "snq", "w@z"], "noun": ["toy"] * 3, "caption": ["a snq toy", "a snq toy", "a toy in w@z style"],
        "caption_source": ["sidecar", "sidecar", "template"],
    })  # fmt: skip
    pictures = {"content/cup/0": lambda: ring(), "content/cup/1": ring(80).convert("L").convert("RGB"), "style/ink/0": ring()}
    params = ingestion(content_looks={"pixel art": "pixel art", "sketch": "pencil sketch", "comic": "comic"})
    shown, drawn = add_content_looks(manifest, pictures, params)
    assert shown["picture"].tolist()[3:] == ["content/cup/0+pixel-art", "content/cup/1+sketch", "content/cup/0+comic"]
    words = ["pixel art", "pencil sketch", "comic"]
    assert shown["caption"].tolist()[3:] == [f"a snq toy in {word} style" for word in words]
    assert set(shown["caption_source"][3:]) == {"look"} and set(shown["role"][3:]) == {"content"}
    assert set(drawn) == set(shown["picture"][3:]) and drawn["content/cup/1+sketch"].size == (80, 80)
    assert add_content_looks(manifest, pictures, ingestion())[0].equals(manifest)


def test_another_look_keeps_the_pictures_mask():
    masked = ring().convert("RGBA")
    masked.putalpha(Image.linear_gradient("L").resize(masked.size))
    row = {"picture": "content/cup/0", "role": "content", "token": "snq", "noun": "toy", "caption": "", "caption_source": ""}
    params = ingestion(content_looks={"comic": "comic"})
    _, drawn = add_content_looks(pd.DataFrame([row]), {"content/cup/0": masked}, params)
    look = drawn["content/cup/0+comic"]
    assert look.getchannel("A").tobytes() == masked.getchannel("A").tobytes()
    assert look.convert("RGB").tobytes() == redraw(ring(), "comic", WHITE, "content/cup/0+comic").tobytes()


def test_wrong_looks_are_named():
    with pytest.raises(UnknownLookError, match=r"no filters \['sepia'\].*comic"):
        add_content_looks(pd.DataFrame({"role": ["style"]}), {}, ingestion(content_looks={"sepia": "sepia"}))
    with pytest.raises(ValueError, match="look_template must hold"):
        ingestion(look_template="{content}")


def test_without_a_content_there_is_nothing_to_redraw() -> None:
    manifest = pd.DataFrame({"picture": ["style/ink/0"], "role": ["style"]})
    same, drawn = add_content_looks(
        manifest, {"style/ink/0": Image.new("RGB", (8, 8))}, ingestion(content_looks={"comic": "comic"})
    )
    assert same.equals(manifest) and drawn == {}
