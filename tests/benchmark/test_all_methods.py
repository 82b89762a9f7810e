"""Methods by name."""

import yaml

from b4m_pipeline.benchmark.all_methods import METHODS
from tests.test_startup import ROOT


def test_base_has_no_adapter(shared) -> None:
    assert METHODS["base"](shared) is None


def test_every_method_of_the_configuration_is_there() -> None:
    configured = yaml.safe_load((ROOT / "conf/base/parameters_benchmark.yml").read_text())["benchmark"]["methods"]
    assert set(configured) <= METHODS.keys() and "ours" in configured


def test_every_method_and_ablation_is_in_the_documentation() -> None:
    page = (ROOT / "docs/benchmark.md").read_text()
    assert not [name for name in METHODS if name not in page]
