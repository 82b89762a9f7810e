"""The command and the Python that are copied give the very picture."""

import re
import shlex
import subprocess

import numpy as np
import pytest
import yaml
from kedro.framework.cli.utils import _split_params
from PIL import Image

from b4m_pipeline.library.compose import compose
from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.studio.recipes import commands, kedro_runs, python_code
from tests.studio.conftest import asked, drawn


def first(canvas, **changes):
    drawing = drawn(canvas, **changes)
    assert drawing.state == "done", drawing.message
    return drawing.request, drawing.pictures[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"content_strength": 0.5, "style_strength": 1.25, "seed": 5},
        {"ways": ["dare"], "content_strength": 0.5, "prompt": 'it\'s "so", [yes]: 5 % {x}\\'},
    ],
)
def test_the_python_draws_the_picture(canvas, changes, tmp_path, monkeypatch) -> None:
    request, picture = first(canvas, **changes)
    monkeypatch.chdir(tmp_path)
    exec(compile(python_code(canvas, request, picture.cell), "copied", "exec"), {})
    (made,) = tmp_path.glob("*.png")
    assert np.array_equal(np.asarray(Image.open(made)), np.asarray(picture.image))


def params_of(command: str, project) -> dict:
    """What a copied command gives Kedro, read by a shell, Click and Kedro."""
    words = shlex.split(command)
    assert words[:2] == ["kedro", "run"]
    given = dict(word.removeprefix("--").split("=", 1) for word in words[2:])
    if "config" in given:
        return yaml.safe_load((project / given["config"]).read_text(encoding="utf-8"))["run"]
    return {"pipelines": given["pipelines"], "params": _split_params(None, None, given["params"])}


@pytest.mark.parametrize(
    "prompt",
    ["a snq toy in w@z style", "a cup, red", 'say "$HOME"', "null", "a: b # c", "50", "it's `x`", "ein Käse", "[x]", "100 %"],
)
def test_any_prompt_survives_the_command(canvas, project, prompt) -> None:
    request = asked(prompt=prompt, negative_prompt="grey, dull", content_strength=0.5)
    runs = kedro_runs(canvas, request, drawn_cell(request))
    lines = commands(runs, "sdxl", project, project / "out")
    assert len(lines) == 2 and all(" --env=sdxl" in line for line in lines)
    told = params_of(lines[1].replace(" --env=sdxl", ""), project)["params"]
    assert told["generate"]["prompts"] == [prompt] and told["generate"]["negative_prompt"] == "grey, dull"
    assert told["generate"]["content_scale"] == 0.5 and "style_scale" not in told["generate"] and told["seed"] == 0


def drawn_cell(request):
    from b4m_pipeline.studio.canvas import cells

    return cells(request)[0]


def test_a_plain_command_is_one_that_can_be_read(canvas, project) -> None:
    request = asked(seed=3)
    lines = commands(kedro_runs(canvas, request, drawn_cell(request)), None, project, project / "out")
    assert lines[0] == (
        'kedro run --pipelines=compose --params="compose.content=models:/b4m-content-cup/1,'
        'compose.style=models:/b4m-style-ink/1,compose.methods=halves"'
    )
    assert "generate.prompts=[a snq toy in w@z style]" in lines[1] and "seed=3" in lines[1]
    assert params_of(lines[1], project)["params"]["generate"]["prompts"] == ["a snq toy in w@z style"]
    assert subprocess.run(["bash", "-nc", lines[1]]).returncode == 0


def test_a_merges_command_is_read_as_its_settings(canvas, project, parameters) -> None:
    request = asked(ways=["ties"], content_strength=0.5, style_strength=1.5)
    cell = drawn_cell(request)
    runs = kedro_runs(canvas, request, cell)
    told = params_of(commands(runs, None, project, project / "out")[0], project)["params"]["compose"]
    given = ComposeParams(**told)
    assert given.merge.content_weight == 0.5 and given.merge.style_weight == 1.5 and given.methods == ["ties"]
    own = compose(given, parameters["base_model"], "lora_A", parameters["make"], 0)[2]["ties"]
    ours = canvas.adapter(request, cell)
    assert all((own.tensors[key] == ours.tensors[key]).all() for key in own.tensors)
    assert runs[1]["params"]["generate"]["adapter"] == "data/06_models/adapters/merged/cup-ink/ties"
    assert not re.search("scale", str({k: v for k, v in runs[1]["params"]["generate"].items() if k != "guidance_scale"}))
