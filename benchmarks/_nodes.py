"""A log that has Kedro's line for every node that is done."""

from pathlib import Path

import yaml


def with_nodes(project: Path, folder: Path) -> Path:
    """The project's logging.yml with these lines, as a file in `folder`."""
    config = yaml.safe_load((project / "conf/logging.yml").read_text(encoding="utf-8"))
    for name in ("kedro.framework.session", "kedro.runner", "b4m_pipeline.runner"):
        config["loggers"][name] = {"level": "INFO"}
    file = folder / "logging_of_nodes.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file
