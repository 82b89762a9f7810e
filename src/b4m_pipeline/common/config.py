"""What all parameter schemas share. Each package has its own in params.py.

conf/base has the values that a run has. A field has either no default here, or the one that conf/base states, too
(tests/test_conf.py). What is rarely set has its default in the schema alone.
"""

import string
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo


def _plain_name(value: str) -> str:
    """Names become folder, registry and file names: no separators, and no dots, which MLflow's model names must not have."""
    if not value or not all(c.isalnum() or c in "-_" for c in value):
        raise ValueError(f"must be letters, digits, '-' or '_', got {value!r}")
    return value


Name = Annotated[str, AfterValidator(_plain_name)]


class Strict(BaseModel):
    """Refuses unknown names, so that a typo is an error instead of a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunParams(Strict):
    """What belongs to no group."""

    seed: int = Field(0, strict=True, ge=0, lt=2**31)
    """Decides all randomness; the images of a prompt are drawn with `seed`, `seed` + 1, and so on."""
    data: str = Field("data", min_length=1)
    """Folder that runs write to. A second run at the same time needs another one; pictures and base model are read from where
    their own parameters say."""
    checkpoints: str = "data/06_models/checkpoints"
    """Folder of the checkpoints of trainings under way. A killed run continues from them."""
    encoding_cache: str | None = "data/05_model_input/encoded"
    """Folder of encoded pictures and prompts, for all runs; it may be deleted. Null: none is kept."""
    reuse: bool = Field(True, strict=True)
    """Use an adapter of the registry that was made from the same pictures, parameters and code instead of training it again."""
    memory: int | None = Field(None, strict=True, ge=1)
    """GB of the GPU's memory: settings that fit into it, where the environment has some (its `presets`). What is set for the
    run itself counts more. Null: the environment as it is."""


def with_fields(needed: str, optional: str = "") -> AfterValidator:
    """For Annotated[str, ...]: a format string that must hold some fields and may hold others (names, blanks between them)."""
    must, may = needed.split(), optional.split()

    def check(value: str, info: ValidationInfo) -> str:
        used = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
        if not set(must) <= used <= {*must, *may}:
            rules = [("must", must), ("may", may)]
            said = [f"{verb} hold {', '.join(map('{{{}}}'.format, names))}" for verb, names in rules if names]
            raise ValueError(f"{info.field_name} {' and '.join(said)}; got {value!r}")
        return value

    return AfterValidator(check)
