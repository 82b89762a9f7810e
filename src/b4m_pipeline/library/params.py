"""Parameters of `library` and `compose`. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from b4m_pipeline.common.config import Alias, Name, PathText, Strict
from b4m_pipeline.method.params import MergeParams
from b4m_pipeline.training.params import ZipParams


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


class TrialParams(Strict):
    """Adapters that are a first look at a setting."""

    alias: str = Field("trial", min_length=1)
    """Alias of their versions, so that they take no finished adapter's."""
    break_steps: int = Field(200, ge=0)
    """Halves that were trained in fewer optimizer steps than this are meant; 0: none."""
    make_steps: int = Field(75, ge=0)
    """Made adapters that were trained in fewer, likewise."""


class LibraryPairParams(Strict):
    """Names in the library's table."""

    content: Name
    """Name of a content in the table."""
    style: Name
    """Name of a style in the table."""


class LibraryParams(Strict):
    """A table of contents and styles, and what is made of it."""

    table: PathText
    """CSV or YAML with the columns kind (content | style), path and, if wanted, name, noun, licence, source."""
    pairs: Literal["all", "none"] | list[LibraryPairParams]
    """Which pairs are put together."""
    folder: PathText
    """Where each adapter is kept, besides the registry."""
    prefix: Name = "b4m"
    """First part of the registered names."""
    alias: Alias = "candidate"
    """Alias of the new versions."""
    trial: TrialParams = TrialParams()
    ray: RayParams | None = None
    """The Ray cluster that jobs run on at once. Null: one job after another in this process."""


class PictureZipParams(ZipParams):
    """`zip` of compose."""

    training_set: PathText = "data/05_model_input/training_set.safetensors"
    """The pictures: what the pipeline ingestion wrote for this content and this style."""


Method = Literal["halves", "sum", "ties", "dare", "svd", "np", "zip"]
"""Ways to put two LoRAs together."""


def _words(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


class ComposeParams(Strict):
    """Two LoRAs of one base model, from wherever they are, and the ways to put them together."""

    content: PathText
    """The content's LoRA: models:/NAME@ALIAS or models:/NAME/VERSION in the registry, a folder, or a .safetensors file of
    diffusers, kohya's scripts or ComfyUI."""
    style: PathText
    """The style's LoRA, likewise."""
    methods: Annotated[list[Method], BeforeValidator(_words)] = Field(["halves"], min_length=1)
    """One way or several, with blanks between them on the command line. `halves`: two halves of one frame side by side; the
    others merge any two LoRAs. Several are drawn on one sheet."""
    merge: MergeParams = MergeParams()
    zip: PictureZipParams = PictureZipParams()
    prompts: list[str] | None = Field(None, min_length=1)
    """What the sheet shows. Null: the prompt of the two LoRAs' own words, where these are known."""

    @field_validator("methods")
    @classmethod
    def _different(cls, methods: list[str]) -> list[str]:
        if len(set(methods)) < len(methods):
            raise ValueError(f"names a method twice: {methods}")
        return methods
