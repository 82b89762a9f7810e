"""Parameters of the benchmark. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from pathlib import Path

from pydantic import Field, model_validator

from b4m_pipeline.common.config import PathText, Strict


class CompetitorParams(Strict):
    """What the methods that ours is compared with may choose. Pictures, layers, rank and number of pictures seen are ours."""

    learning_rate: float = Field(gt=0)
    """Learning rate of a plain LoRA on one concept."""
    joint_learning_rate: float = Field(gt=0)
    """Learning rate of one LoRA on both concepts."""
    orthogonal_learning_rate: float = Field(gt=0)
    """Learning rate of lora_B where lora_A is frozen (Orthogonal Adaptation)."""
    density: float = Field(gt=0, le=1)
    """Share of the weights that TIES and DARE keep."""
    np_strength: float = Field(ge=0)
    """mu of NP-LoRA: how much of the style's directions is taken out of the content."""
    zip_steps: int = Field(ge=1)
    """Optimizer steps of ZipLoRA's merge."""
    zip_learning_rate: float = Field(gt=0)
    """Learning rate of ZipLoRA's merge."""
    zip_overlap_weight: float = Field(ge=0)
    """lambda of ZipLoRA: weight of the overlap of the two LoRAs."""
    k_lora_alpha: float = Field(ge=0)
    """alpha of K-LoRA: how much style's weight grows from the first denoising step to the last."""
    k_lora_beta: float = Field(ge=0)
    """beta of K-LoRA: style's weight at the first denoising step; content's is 1."""


class PairParams(Strict):
    """A content and a style to be put together."""

    content: PathText
    """Folder of the content's pictures."""
    style: PathText
    """Folder of the style's pictures."""

    @property
    def name(self) -> str:
        return f"{Path(self.content).name}-{Path(self.style).name}"


class BenchmarkParams(Strict):
    """Which methods are tried on which pairs."""

    pairs: list[PairParams] = Field(min_length=1)
    """Pairs that every method is tried on."""
    part: str | None = Field(None, pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")
    """K/N: only the K-th of N parts of the pairs, so that N processes with one folder share the work. Pairs of one style, which
    share its trainings, are in one part; one content in several parts is trained in each. Null: all pairs."""
    methods: list[str] = Field(min_length=1)
    """Names in `all_methods.METHODS`: other methods, ours, and ablations of ours."""
    seeds: list[int] = Field([0], min_length=1)
    """Added to the run's `seed`: each pair is trained and drawn with every one of these. Tables have the means over them."""
    repeated: list[str] | None = None
    """Methods that are tried with every one of the seeds, the others with the first alone. Null: all."""
    ours: str
    """The one that all others are compared with, pair by pair."""
    folder: PathText
    """Where every finished (pair, method, seed) is kept; what is there is not done again."""
    competitors: CompetitorParams

    @model_validator(mode="after")
    def _consistent(self) -> "BenchmarkParams":
        names = [pair.name for pair in self.pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"pairs must have different names (their folders'), got {names}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must differ and not be negative, got {self.seeds}")
        if unknown := set(self.repeated or []) - set(self.methods):
            raise ValueError(f"repeated holds {sorted(unknown)}, which are not among the methods")
        if self.ours not in self.methods:
            raise ValueError(f"ours is {self.ours!r}, which is not among the methods")
        if self.part and not self.chosen_pairs():
            styles = len({pair.style for pair in self.pairs})
            raise ValueError(f"part {self.part} holds no pairs: K must be at most N, and N at most {styles}, one a style")
        return self

    def seeds_of(self, method: str) -> list[int]:
        """Those that a method is tried with."""
        return self.seeds if self.repeated is None or method in self.repeated else self.seeds[:1]

    def chosen_pairs(self) -> list[PairParams]:
        """Those that this run is about."""
        if not self.part:
            return self.pairs
        which, parts = (int(number) for number in self.part.split("/"))
        styles = list(dict.fromkeys(pair.style for pair in self.pairs))
        return [pair for pair in self.pairs if styles.index(pair.style) % parts == which - 1]
