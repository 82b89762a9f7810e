"""Methods by name."""

from b4m_pipeline.benchmark.methods import METHODS


def test_base_has_no_adapter(shared) -> None:
    assert METHODS["base"](shared) is None
