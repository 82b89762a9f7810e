"""The ingestion pipeline on its own catalog: what lies on disk after it, and errors before anything is written."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from PIL import Image

from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.folders import PicturesError
from b4m_pipeline.inputs.params import CaptioningParams, ConceptParams, CounterpartParams, IngestionParams
from b4m_pipeline.pipelines.ingestion import create_pipeline
from b4m_pipeline.training.params import BreakParams, MakeParams
from tests.conftest import PLAIN_MAKE, PLAIN_TRAINING, drawn_counterparts, preservation_params

CONF = Path(__file__).parents[3] / "conf" / "base"


def break_params(preservation_weight: float) -> BreakParams:
    sizes = {"steps": 1, "batch_size": 1, "counterpart_batch_size": 1}
    rates = {"learning_rate": 1e-3, "counterpart_learning_rate": 1e-3}
    return BreakParams(**sizes, **rates, preservation_weight=preservation_weight, **PLAIN_TRAINING)


def parameters(root, **changed):
    make = yaml.safe_load((CONF / "parameters_ingestion.yml").read_text())
    captioning = {**make["captioning"], "clip": None}
    values = {
        "content": ConceptParams(name="toy", path=str(root / "toy"), token="snq", noun="toy"),
        "style": ConceptParams(name="ink", path=str(root / "ink"), token="w@z"),
        "counterparts": CounterpartParams(contents=[], styles=[ConceptParams(name="oil", path=str(root / "oil"), token="qrv")]),
        "make": MakeParams(steps=1, batch_size=1, learning_rate=1e-3, union_path=str(root / "both"), **PLAIN_MAKE),
        "base_model": BaseModelParams(path="none", resolution=32),
        "ingestion": IngestionParams(**make["ingestion"]),
        "captioning": CaptioningParams(**captioning),
        "preservation": preservation_params(contents=["cat", "dog"], styles=["oil", "gold"], number=12),
        "content_break": break_params(0.0),
        "style_break": break_params(0.1),
        "seed": 0,
        "encoding_cache": "encoded",
    }
    return {f"params:{key}": MemoryDataset(value) for key, value in {**values, **changed}.items()}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("toy", "ink", "oil", "both")):
        (tmp_path / name).mkdir()
        for index in range(2):
            picture = Image.effect_noise((50, 40), 90).convert("RGB")
            picture.paste((60 * number, 200 * index, 100), (0, 0, 25, 10 + 10 * number))
            picture.save(tmp_path / name / f"{index}.jpg")
    (tmp_path / "ink" / "0.txt").write_text("red apple")
    (tmp_path / "ink" / "broken.png").write_bytes(b"")
    return tmp_path


def run(root, last="input_sheet", **changed):
    config = (CONF / "catalog_ingestion.yml").read_text().replace("${_data}", "data")
    catalog = DataCatalog.from_config(yaml.safe_load(config))
    for name, dataset in parameters(root, **changed).items():
        catalog[name] = dataset
    SequentialRunner().run(create_pipeline().to_outputs(*([last] if isinstance(last, str) else last)), catalog)
    return catalog


def test_pictures_manifest_quarantine_and_sheet_are_written(root):
    catalog = run(root)
    manifest, pictures = catalog.load("manifest"), catalog.load("pictures")
    assert sorted(pictures) == sorted(set(manifest.picture))
    assert sorted(manifest.role.unique()) == ["content", "counterpart_style", "style", "union"]
    square = pictures["style/ink/0"]()
    assert (square.mode, square.size) == ("RGB", (32, 32))
    given = manifest[~manifest.caption_source.isin(["look", "variant"])]
    captions = given.set_index("picture").caption
    assert captions["content/toy/0"] == "a snq toy"
    assert captions["style/ink/0"] == "a red apple emoji in w@z style"
    assert captions["counterpart_style/oil/1"] == "an emoji in qrv style"
    assert captions["union/toy-ink/1"] == "a snq toy in w@z style"
    assert manifest.sha256.str.fullmatch("[0-9a-f]{64}").all()
    quarantine = catalog.load("quarantine")
    assert quarantine[["concept", "file", "reason"]].values.tolist() == [["ink", "broken.png", "empty file"]]
    assert catalog.load("input_sheet").width > 500


def test_pictures_and_captions_are_encoded(root, tiny_sdxl):
    catalog = run(root, "training_set", base_model=BaseModelParams(path=str(tiny_sdxl), resolution=32))
    encoded, manifest = catalog.load("training_set"), catalog.load("manifest")
    # 2 pictures of the content, 4 in further looks, each of these 6 with 2 further captions, and the style's 2 with one
    assert len(encoded.tensors["latents_mean"]) == len(encoded.tensors["prompt_embeds"]) == 8 + 4 + 6 * 2 + 2
    pd.testing.assert_frame_equal(encoded.table.drop(columns="pixels"), manifest, check_dtype=False)
    looks, variants = encoded.table[8:12], encoded.table[12:]
    assert sorted(set(variants["caption"])) == ["a snq toy", "a snq toy in w@z style", "an emoji in w@z style"]
    assert "a snq toy in pixel art style" in set(looks["caption"]) and looks["pixels"].nunique() == 4
    assert set(looks["role"]) == {"content"} and set(variants["role"]) == {"content", "style"}
    assert encoded.others and all(len(value) == len(encoded.others) for value in encoded.other_tensors.values())
    none = {f"{kind}_break": break_params(0.0) for kind in ("content", "style")}
    encoded = run(root, "training_set", base_model=BaseModelParams(path=str(tiny_sdxl), resolution=32), **none).load(
        "training_set"
    )
    assert not encoded.others and not encoded.other_tensors  # large text encoders need long for prompts that nobody reads


def test_counterparts_that_the_base_model_draws_are_on_the_sheet_and_encoded(root, tiny_sdxl):
    changes = {"base_model": BaseModelParams(path=str(tiny_sdxl), resolution=32)}
    catalog = run(root, ["input_sheet", "training_set"], counterparts=drawn_counterparts(root / "drawn", images=2), **changes)
    listed = catalog.load("counterparts")
    assert [concept["token"] for kind in ("contents", "styles") for concept in listed[kind]] == ["ohwx", "qrv"]
    encoded = catalog.load("training_set")
    captions = encoded.table.groupby("role")["caption"].agg(set)
    assert captions["counterpart_content"] == {"an ohwx dog in neon style"}
    assert captions["counterpart_style"] == {"a dog emoji in qrv style"}
    assert any("ohwx" in prompt for prompt in encoded.others) and any("qrv" in prompt for prompt in encoded.others)
    assert {file.parent for file in (root / "drawn").rglob("*.png")} == {
        root / "drawn" / Path(concept["path"]).name for kind in ("contents", "styles") for concept in listed[kind]
    }
    with_them = catalog.load("input_sheet").height
    assert run(root, counterparts=CounterpartParams(contents=[], styles=[])).load("input_sheet").height < with_them


def test_a_missing_folder_is_said_before_counterparts_are_drawn(root, tiny_sdxl):
    base, wrong = BaseModelParams(path=str(tiny_sdxl), resolution=32), ConceptParams(name="ink", path="nowhere", token="w@z")
    with pytest.raises(PicturesError, match=r"style 'ink' \(style.path\): there is no folder"):
        run(root, style=wrong, base_model=base, counterparts=drawn_counterparts(root / "drawn"))
    assert not (root / "drawn").exists()


def test_a_second_run_leaves_nothing_of_the_first(root):
    run(root)
    (root / "toy" / "1.jpg").unlink()
    assert "content/toy/1" not in run(root).load("pictures")


def test_everything_reads_back_without_a_quarantined_file(root):
    (root / "ink" / "broken.png").unlink()
    assert isinstance(run(root).load("quarantine"), pd.DataFrame)


def test_a_missing_folder_ends_the_run_before_anything_is_written(root):
    with pytest.raises(PicturesError, match=r"style 'ink' \(style.path\): there is no folder"):
        run(root, style=ConceptParams(name="ink", path="nowhere", token="w@z"))
    assert [file.name for file in (root / "data").rglob("*.*")] == ["counterparts.json"]  # their list alone


def test_every_entry_has_a_layer():
    for entry in yaml.safe_load((CONF / "catalog_ingestion.yml").read_text()).values():
        assert entry["metadata"]["kedro-viz"]["layer"]


def test_the_default_parameters_are_the_declared_ones():
    stated = yaml.safe_load((CONF / "parameters_ingestion.yml").read_text())
    assert set(stated["ingestion"]) == set(IngestionParams.model_fields)
    assert set(stated["captioning"]) == set(CaptioningParams.model_fields)
    CaptioningParams(**stated["captioning"])


def test_the_pipeline_is_known_without_torch():
    code = (
        "import sys; from b4m_pipeline.pipelines.ingestion import create_pipeline; create_pipeline(); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(CONF.parents[1] / "src")})
