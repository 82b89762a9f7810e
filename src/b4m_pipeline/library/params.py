"""Parameters of `library` and `compose`. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from typing import Literal

from pydantic import Field

from b4m_pipeline.common.config import Name, Strict


class RayParams(Strict):
    """A Ray cluster, and what each job is given of it."""

    address: str | None = None
    """Of a running cluster: "auto", HOST:PORT or ray://HOST:PORT. Null: one on this machine, started for the run."""
    workers: int = Field(2, ge=1)
    """Jobs at once; more than the cluster has room for wait."""
    cpus: float = Field(1, gt=0)
    """CPU cores of each job."""
    gpus: float = Field(0, ge=0)
    """GPUs of each job. 1: one each, 0.5: two jobs share one."""
    retries: int = Field(3, ge=0)
    """So often a job is begun again if its worker dies; it goes on from its checkpoint where that is on shared storage."""


class LibraryPairParams(Strict):
    """Names in the library's table."""

    content: Name
    """Name of a content in the table."""
    style: Name
    """Name of a style in the table."""


class LibraryParams(Strict):
    """A table of contents and styles, and what is made of it."""

    table: str = Field(min_length=1)
    """CSV or YAML with the columns kind (content | style), path and, if wanted, name, noun, licence, source."""
    pairs: Literal["all", "none"] | list[LibraryPairParams]
    """Which pairs are put together."""
    folder: str = Field(min_length=1)
    """Where each adapter is kept, besides the registry."""
    prefix: str = "b4m"
    """First part of the registered names."""
    alias: str = "candidate"
    """Alias of the new versions."""
    ray: RayParams | None = None
    """The Ray cluster that jobs run on at once. Null: one job after another in this process."""


class ComposeParams(Strict):
    """Two halves of one frame, from wherever they are."""

    content: str = Field(min_length=1)
    """The content's half: models:/NAME@ALIAS or models:/NAME/VERSION in the registry, or a folder."""
    style: str = Field(min_length=1)
    """The style's half, likewise."""
