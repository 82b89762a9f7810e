"""What all parameter schemas share. Each package has its own in params.py."""

import string
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _plain_name(value: str) -> str:
    """Names become folder, registry and file names: no separators, and no dots, which MLflow's model names must not have."""
    if not value or not all(c.isalnum() or c in "-_" for c in value):
        raise ValueError(f"must be letters, digits, '-' or '_', got {value!r}")
    return value


Name = Annotated[str, AfterValidator(_plain_name)]


class Strict(BaseModel):
    """Refuses unknown names, so that a typo is an error instead of a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def template_fields(template: str) -> set[str]:
    """Names in braces of a format string."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
