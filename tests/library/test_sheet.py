"""A library's grid: contents down, styles across."""

from PIL import Image

from b4m_pipeline.library.sheet import draw_grid
from b4m_pipeline.library.table import Composed

LEFT, TOP, PITCH = 232, 38, 120  # pixels


def test_each_pair_stands_where_its_content_and_its_style_meet() -> None:
    def square(number: int) -> Image.Image:
        return Image.new("RGB", (20, 20), (number, 0, 200))

    pairs = [
        Composed("cup", "ink", pictures=[square(1), square(9)]),
        Composed("cup", "oil", error="E: no"),
        Composed("hat", "ink", pictures=[square(3)]),
        Composed("hat", "oil", pictures=[square(4)]),
    ]
    references = {"content cup": square(10), "style ink": square(20), "style oil": square(30)}  # hat's could not be read
    sheet = draw_grid(pairs, references)
    middles = [[sheet.getpixel((LEFT + x * PITCH + 56, TOP + y * PITCH + 56))[0] for x in range(3)] for y in range(3)]
    assert middles == [[255, 20, 30], [10, 1, 255], [255, 3, 4]]
    assert sheet.size == (LEFT + 3 * PITCH, TOP + 3 * PITCH)
