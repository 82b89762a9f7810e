"""Tiny random models that the tests share."""

import itertools
import os
import shutil
from pathlib import Path

import pytest

PIXELS = 32
LONGEST = ("test_readme.py", "test_environments.py", "test_stages.py", "test_flows.py", "test_serving.py")
_TESTS = itertools.count()

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches the Hub
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # several processes share the cores (make test)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _no_tracking_elsewhere(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test reaches a tracking store that it did not choose. Making a folder for each of thousands takes a while."""
    if "tmp_path" in request.fixturenames:
        folder = request.getfixturevalue("tmp_path")
    else:
        folder = tmp_path_factory.getbasetemp() / f"of-{next(_TESTS)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    for name in ("MAX_RETRIES", "BACKOFF_FACTOR", "TIMEOUT"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables: making one takes seconds, copying it none. All processes of `make test` share it."""
    from filelock import FileLock
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file, partial = folder / "mlflow.db", folder / "partial.db"
    with FileLock(folder / "mlflow.lock"):
        if not file.exists():
            MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
            partial.rename(file)
    return file


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """URI of a tracking store of the test's own, the one that MLFLOW_TRACKING_URI names."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def tracking(store: str, tmp_path: Path):
    """Client of `store`, set up as the one in use, with artifacts beside it."""
    import mlflow

    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(None)
    mlflow.create_experiment("tests", artifact_location=str(tmp_path / "mlartifacts"))
    mlflow.set_experiment("tests")
    yield mlflow.MlflowClient()
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A CLIPTokenizer that knows every byte and no word."""
    from tests.tiny_models import clip_tokenizer

    return clip_tokenizer()


@pytest.fixture(scope="session")
def tiny_flow(tmp_path_factory: pytest.TempPathFactory):
    """Name in `tiny_models.FLOWS` -> BaseModelParams of such a model."""
    from b4m_pipeline.diffusion.params import BaseModelParams
    from tests.tiny_models import SIDE, save_tiny

    made: dict[str, BaseModelParams] = {}

    def base(name: str) -> BaseModelParams:
        if name not in made:
            made[name] = BaseModelParams(path=str(save_tiny(name, tmp_path_factory.mktemp(name))), resolution=SIDE)
        return made[name]

    return base


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """Folder of a random StableDiffusionXLPipeline: 32 px, 16x16 latents, cross-attention that is not square."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    widths, pooled, time_dim = (8, 16), 16, 8

    def text_config(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tiny_tokenizer.model_max_length,
            projection_dim=pooled,
            hidden_act="gelu",
            bos_token_id=tiny_tokenizer.bos_token_id,
            eos_token_id=tiny_tokenizer.eos_token_id,
            pad_token_id=tiny_tokenizer.pad_token_id,
        )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=PIXELS,
            ),
            text_encoder=CLIPTextModel(text_config(widths[0])),
            text_encoder_2=CLIPTextModelWithProjection(text_config(widths[1])),
            tokenizer=tiny_tokenizer,
            tokenizer_2=tiny_tokenizer,
            unet=UNet2DConditionModel(
                sample_size=PIXELS // 2,
                block_out_channels=(8, 16),
                norm_num_groups=4,
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=sum(widths),
                attention_head_dim=2,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=time_dim,
                projection_class_embeddings_input_dim=pooled + 6 * time_dim,
            ),
            scheduler=DDIMScheduler(
                beta_schedule="squaredcos_cap_v2",
                prediction_type="v_prediction",
                clip_sample=False,
                timestep_spacing="trailing",
                set_alpha_to_one=True,
            ),
            add_watermarker=False,
        )
    folder = tmp_path_factory.mktemp("tiny_sdxl")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """Folder of a random StableDiffusionPipeline that predicts noise."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tiny_tokenizer.model_max_length, bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id, pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=32, **blocks
            ),
            text_encoder=CLIPTextModel(text),
            tokenizer=tiny_tokenizer,
            unet=UNet2DConditionModel(
                sample_size=16, layers_per_block=1, cross_attention_dim=16, attention_head_dim=2,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                **blocks,
            ),
            scheduler=DDPMScheduler(),
            safety_checker=None,
            feature_extractor=None,
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny_sd")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def tiny_adapter(tiny_sdxl: Path):
    """See `lora_of`."""
    return lora_of(tiny_sdxl)


def lora_of(tiny_sdxl: Path):
    """A made Adapter of rank 4 for `tiny_sdxl`, with random weights in every to_q, to_k, to_v and to_out.0, frozen parts
    included."""
    import torch
    from diffusers import UNet2DConditionModel

    from b4m_pipeline.diffusion.families import base_model_id
    from b4m_pipeline.diffusion.params import BaseModelParams
    from b4m_pipeline.method.adapter import Adapter
    from b4m_pipeline.method.frame import Frame

    targets, rank = ["to_q", "to_k", "to_v", "to_out.0"], 4
    generator = torch.Generator().manual_seed(1)
    tensors, layers = {}, {}
    for name, module in UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet").named_modules():
        if name.endswith(tuple(targets)):
            m, n = layers[name] = tuple(module.weight.shape)
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, n, generator=generator)
            tensors[f"{name}.lora_B.weight"] = torch.randn(m, rank, generator=generator)
    base = base_model_id(BaseModelParams(path=str(tiny_sdxl), resolution=PIXELS))
    frame = Frame(0, rank, rank, 0.5, "exact", 1.0, base, layers)
    metadata = {
        "kind": "made",
        "name": "cup-ink",
        "base_model": str(tiny_sdxl),
        "frame": frame.fingerprint,
        "frame_config": frame.describe(),
        "half": "both",
        "content_side": "lora_A",
        "content_name": "cup",
        "style_name": "ink",
        "content_token": "snq",
        "style_token": "w@z",
        "noun": "toy",
        "style_noun": "toy",
        "data_digest": "d" * 16,
        "parents": "[]",
        "params": '{"train": {"steps": 2}, "seed": 0}',
        "code_version": "0",
        "created": "2026-11-28T12:00:00+00:00",
        "architecture": "other",
        "prediction_type": "v_prediction",
        "resolution": str(PIXELS),
        "example_prompt": "a snq cup in w@z style",
    }
    return Adapter(tensors, metadata, {"r": rank, "lora_alpha": rank, "target_modules": targets})


@pytest.fixture
def joined_adapter(tiny_sdxl: Path):
    """See `framed_lora_of`."""
    return framed_lora_of(tiny_sdxl)


def framed_lora_of(tiny_sdxl: Path):
    """`lora_of` with its frame's frozen parts, so that its halves can be scaled. What is learnt is random."""
    from b4m_pipeline.method.frame import frame_of

    adapter = lora_of(tiny_sdxl)
    frame = frame_of(adapter)
    for name in adapter.modules():
        blocks, (d_b, d_a) = frame.blocks(name), frame.sizes(name)
        adapter.tensors[f"{name}.lora_A.weight"][:, :d_a] = blocks.frozen_a
        adapter.tensors[f"{name}.lora_B.weight"][:d_b] = blocks.frozen_b
    return adapter


TINY_FRAME = {
    "seed": 0,
    "rank": 4,
    "alpha": 4.0,
    "split": 0.5,
    "init": "exact",
    "scale": 1.0,
    "halves": "orthogonal",
    "content_side": "lora_A",
    "basis": "none",
    "targets": ["to_q", "to_k", "to_v", "to_out.0", "add_embedding.linear_1"],
}
PLAIN_TRAINING = {"schedule": "constant", "noisy_bias": 1.0}
PLAIN_MAKE = PLAIN_TRAINING | {"keep": "last"}
PLAIN_BREAK = PLAIN_TRAINING | {"preservation_weight": 0.0}
PLAIN_EVALUATION = {"guidance_scale": 3.0, "batch_size": 8, "truth_path": None, "clip": None}
PLAIN_INGESTION = {
    "background": (255, 255, 255),
    "crop": "center",
    "buckets": None,
    "max_pixels": 64_000_000,
    "near_duplicate_bits": 3,
    "content_looks": None,
    "look_template": "{article} {content} {noun} in {look} style",
}
PLAIN_CAPTIONING = {
    "vision_language_model": None,
    "content_instruction": "What is around {article} {noun}?",
    "style_instruction": "Name it.",
    "clip": None,
    "content_words": [],
    "style_words": [],
    "min_confidence": 0.25,
    "max_words": 40,
    "content_template": "{article} {content} {noun}",
    "style_template": "{article} {content} {noun}",
    "style_suffix": " in {style} style",
    "content_variants": [],
    "style_variants": [],
}
TINY_ROLES = {
    # role -> concept, token, pictures
    "content": ("cup", "snq", 3),
    "style": ("ink", "w@z", 3),
    "counterpart_content": ("hat", "ohwx", 2),
    "counterpart_style": ("oil", "qrv", 2),
}


@pytest.fixture(scope="session")
def tiny_manifest():
    """Manifest and pictures by key for `TINY_ROLES`: noise with a coloured block."""
    import pandas as pd
    from PIL import Image

    rows, pictures = [], {}
    for number, (role, (concept, token, count)) in enumerate(TINY_ROLES.items()):
        for index in range(count):
            picture = Image.effect_noise((PIXELS, PIXELS), 80).convert("RGB")
            picture.paste((60 * number, 70 * index, 120), (4, 4, 20, 20 + index))
            key = f"{role}/{concept}/{index}"
            pictures[key] = picture
            rows.append(
                {
                    "picture": key,
                    "role": role,
                    "concept": concept,
                    "token": token,
                    "noun": "toy",
                    "sha256": f"{number}{index}",
                    "caption": f"a {token} toy" if "content" in role else f"a toy in {token} style",
                }
            )
    return pd.DataFrame(rows), pictures


@pytest.fixture(scope="session")
def tiny_base(tiny_sdxl: Path):
    """BaseModelParams of `tiny_sdxl`."""
    from b4m_pipeline.diffusion.params import BaseModelParams

    return BaseModelParams(path=str(tiny_sdxl), resolution=PIXELS)


@pytest.fixture(scope="session")
def tiny_training_set(tiny_manifest, tiny_base):
    """The manifest encoded by `tiny_sdxl`."""
    from b4m_pipeline.inputs.encode import encode_training_set

    return encode_training_set(*tiny_manifest, tiny_base)


@pytest.fixture(scope="session")
def tiny_halves(tiny_training_set, tiny_base):
    """A content half and a style half, trained for four steps."""
    from tests.training.helpers import train_half

    return [train_half(kind, tiny_training_set, tiny_base)[0] for kind in ("content", "style")]


@pytest.fixture(scope="session")
def tiny_joined(tiny_halves):
    """`tiny_halves` put together."""
    from b4m_pipeline.method.combine import join_halves

    return join_halves(*tiny_halves, "lora_A")


def train_half(kind, training_set, base_model, frame, concept, params, seed, **io):
    """The half as an adapter, and the training history. io: fields of TrainingIO."""
    from b4m_pipeline.training.stages import BreakStage, TrainingIO

    return BreakStage(kind, training_set, base_model, frame, concept, params, seed).train(TrainingIO(**io))


def train_make(reconstructed, training_set, base_model, frame, params, seed, **io):
    """The made adapter, and the training history. io: fields of TrainingIO."""
    from b4m_pipeline.training.stages import MakeStage, TrainingIO

    return MakeStage(reconstructed, training_set, base_model, frame, params, seed).train(TrainingIO(**io))


def captioning_params(**changes):
    """CaptioningParams without models and further captions."""
    from b4m_pipeline.inputs.params import CaptioningParams

    return CaptioningParams(**PLAIN_CAPTIONING | changes)


def ingestion_params(**changes):
    """IngestionParams without looks."""
    from b4m_pipeline.inputs.params import IngestionParams

    return IngestionParams(**PLAIN_INGESTION | changes)


def preservation_params(**changes):
    """PreservationParams without words."""
    from b4m_pipeline.inputs.params import PreservationParams

    return PreservationParams(
        **{"contents": [], "styles": [], "template": "{article} {content} toy in {style} style"} | changes
    )


def drawn_counterparts(folder: Path, **changes):
    """CounterpartParams of one content and one style that the base model draws, an image each."""
    own = {"contents": [{"word": "dog", "token": "ohwx"}], "styles": [{"word": "neon", "token": "qrv"}]}
    own |= {"images": 1, "steps": 1, "folder": str(folder)}
    return counterpart_params(source="drawn", drawn=own | changes)


def counterpart_params(**changes):
    """CounterpartParams without concepts."""
    from b4m_pipeline.inputs.params import CounterpartParams

    return CounterpartParams(**{"contents": [], "styles": []} | changes)
