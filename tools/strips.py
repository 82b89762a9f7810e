"""The README's first picture: what goes in and what comes out of finished runs, a strip a pair.

    python -m tools.strips docs/images/strips.png RUN [RUN ...]

RUN is a project folder in which `kedro run --pipelines=break_make` has ended. Only the first prompt's images are shown.
"""

import argparse
from pathlib import Path

import pandas as pd
from PIL import Image

from b4m_pipeline.common.sheets import Row, paint_grid

REFERENCES, MADE = 3, 4
"""Pictures of each concept and images of a strip."""
HEADINGS = ["content", *[""] * REFERENCES, "style", *[""] * REFERENCES, "made"]


def strip(data: Path) -> Row:
    """The row of one run, from the `data` folder of its project."""
    folders = [next((data / "03_primary/pictures" / concept).iterdir()) for concept in ("content", "style")]  # one each
    files = [sorted(file for file in folder.iterdir() if "+" not in file.name) for folder in folders]  # no looks
    samples = pd.read_csv(data / "07_model_output/samples.csv", keep_default_na=False)
    made = samples[samples["system"] == "made"]
    made = made[made["prompt"] == made["prompt"].iloc[0]]["picture"].iloc[:MADE]
    drawn = [data / "07_model_output/samples" / f"{name}.png" for name in made]
    content, style, images = (
        [Image.open(file) for file in some] for some in (files[0][:REFERENCES], files[1][:REFERENCES], drawn)
    )
    return Row(title=" in ".join(folder.name for folder in folders), images=[*content, None, *style, None, *images])


def main() -> None:
    """Paint the strips of all runs into one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    paint_grid([strip(run / "data") for run in arguments.runs], headings=HEADINGS).save(arguments.file)


if __name__ == "__main__":
    main()
