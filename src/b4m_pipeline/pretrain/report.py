"""How good the embedded base is: does it draw what it was shown, what it was not, and can it be taught?

Every picture is judged twice where that makes sense: by latent distance in the base's own VAE, and by EfficientNet, which has
seen none of the drawings.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from b4m_pipeline.common.seeding import numpy_generator
from b4m_pipeline.common.sheets import Row, paint_grid
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.judges import EfficientNetJudge
from b4m_pipeline.evaluation.measures import Judgement, kernel_distance, perceptual_distance
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.pretrain.assemble import draw
from b4m_pipeline.pretrain.corpus import Drawings, composite
from b4m_pipeline.pretrain.params import ReportParams
from b4m_pipeline.pretrain.text import standard_caption
from b4m_pipeline.pretrain.vae import encode_means, round_trip, to_tensor
from b4m_pipeline.training.lora import train_lora
from b4m_pipeline.training.params import LoraParams

logger = logging.getLogger(__name__)

JUDGED_SPLITS = ("train", "unseen_pair", "held_out_content")
TOKENS = {"content": "snq", "style": "w@z"}


class Bank:
    """The true drawings, in the eyes of both judges. A drawing is looked at when something is first held against it."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, drawings: Drawings, judge: EfficientNetJudge):
        self.drawings, self.table, self.vae, self.judge = drawings, drawings.table, pipeline.vae, judge
        self._features: dict[int, tuple[torch.Tensor, ...]] = {}

    def pictures(self, rows: Iterable[int]) -> list[Image.Image]:
        """The drawings in these rows on white."""
        white = np.array([255, 255, 255])
        return [Image.fromarray(composite(self.drawings.rgba[row], white)) for row in rows]

    def look(self, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
        """What the judge sees of content (N, D) and style (N, E), and latents (N, L), of the true drawings in these rows."""
        new = [row for row in dict.fromkeys(rows.tolist()) if row not in self._features]
        if new:
            pictures = self.pictures(new)
            latents = encode_means(self.vae, to_tensor(np.stack([np.asarray(picture) for picture in pictures]))).flatten(1)
            seen = self.judge.look(pictures)
            self._features |= dict(zip(new, zip(seen.content, seen.style, latents, strict=True), strict=True))
        return tuple(map(torch.stack, zip(*(self._features[row] for row in rows.tolist()), strict=True)))

    def rivals(self, row: int, column: str) -> np.ndarray:
        """Rows of the true drawings that differ from this one in `column` alone, itself included."""
        fixed = self.table["hand" if column == "content" else "content"].to_numpy()
        return np.flatnonzero(fixed == fixed[row])

    def ranks(self, own: torch.Tensor, rows: np.ndarray, column: str, place: int) -> np.ndarray:
        """For each drawn picture, with features own (N, D), how many true drawings are nearer than that of rows (N,), among
        its rivals. place: of these features in what `look` gives."""
        result = []
        for feature, row in zip(own, rows, strict=True):
            rivals = self.rivals(row, column)
            distance = (self.look(rivals)[place] - feature).square().sum(1).numpy()
            result.append(int((distance < distance[rivals == row]).sum()))
        return np.array(result)

    def measure(self, pictures: list[Image.Image], rows: np.ndarray) -> pd.DataFrame:
        """One row for each picture that should show the drawing of rows (N,): ranks of its content and its style by both
        judges (0: right), similarity and perceptual distance to the true drawing."""
        seen = self.judge.look(pictures, maps=True)
        true = self.judge.look(self.pictures(rows), maps=True)
        latents = encode_means(self.vae, to_tensor(np.stack([np.asarray(picture) for picture in pictures]))).flatten(1)
        distances = [perceptual_distance(_one(seen, index), _one(true, index)).item() for index in range(len(rows))]
        return pd.DataFrame(
            {
                "content": self.ranks(seen.content, rows, "content", 0),
                "style": self.ranks(seen.style, rows, "style", 1),
                "content_latent": self.ranks(latents, rows, "content", 2),
                "style_latent": self.ranks(latents, rows, "style", 2),
                "truth": (seen.content * true.content).sum(1).numpy(),
                "truth_distance": distances,
            }
        )


def _one(judgement: Judgement, index: int) -> Judgement:
    pick = slice(index, index + 1)
    return Judgement(judgement.content[pick], judgement.style[pick], tuple(level[pick] for level in judgement.maps))


def figures_of(measured: pd.DataFrame) -> dict[str, float]:
    """Shares of right answers and means of what `Bank.measure` gives."""
    shares = {f"{name}_top1": float((measured[name] == 0).mean()) for name in ("content", "style")}
    shares["content_top5"] = float((measured["content"] < 5).mean())
    shares |= {f"{name}_top1": float((measured[name] == 0).mean()) for name in ("content_latent", "style_latent")}
    shares["content_latent_top5"] = float((measured["content_latent"] < 5).mean())
    return shares | {name: float(measured[name].mean()) for name in ("truth", "truth_distance")}


def judge_prompts(pipeline: StableDiffusionXLPipeline, bank: Bank, pairs: int, seed: int) -> pd.DataFrame:
    """Draw `pairs` pairs of each split by their plain prompts and measure them; what is held out should fail. kernel_distance:
    of the split's pictures to its true drawings as sets (KID)."""
    rows = []
    for split in JUDGED_SPLITS:
        candidates = np.flatnonzero((bank.table.split == split).to_numpy())
        if not len(candidates):
            continue
        chosen = numpy_generator(seed, "judge", split).choice(candidates, min(pairs, len(candidates)), replace=False)
        captions = [standard_caption(bank.table.content[row], bank.table["style"][row]) for row in chosen]
        pictures = draw(pipeline, captions, seed)
        own, true = (bank.judge.embed(images) for images in (pictures, bank.pictures(chosen)))
        figures = figures_of(bank.measure(pictures, chosen))
        rows.append(
            {"what": f"prompts: {split}", "pairs": len(chosen)} | figures | {"kernel_distance": kernel_distance(own, true)}
        )
    return pd.DataFrame(rows)


def judge_ceiling(bank: Bank, pairs: int, seed: int) -> pd.DataFrame:
    """The true drawings themselves, after the VAE's round trip, in the judges' eyes: no picture that the base draws can be
    found right more often. A row for what it was trained on and one for each held-out hand."""
    table, groups = bank.table, {"trained pairs": bank.table.split == "train"}
    held_out = table.split == "held_out_hand"
    groups |= {hand: held_out & (table.hand == hand) for hand in dict.fromkeys(table.hand[held_out])}
    rows = []
    for name, mask in groups.items():
        candidates = np.flatnonzero(mask.to_numpy())
        if not len(candidates):
            continue
        chosen = numpy_generator(seed, "ceiling", name).choice(candidates, min(pairs, len(candidates)), replace=False)
        images = to_tensor(np.stack([np.asarray(picture) for picture in bank.pictures(chosen)]))
        seen = (round_trip(bank.vae, images) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        measured = bank.measure([Image.fromarray(picture) for picture in seen], chosen)
        rows.append({"what": f"true drawings: {name}", "pairs": len(chosen)} | figures_of(measured))
    return pd.DataFrame(rows)


def _lesson(
    bank: Bank, kind: str, name: str, params: ReportParams, base_model: BaseModelParams
) -> tuple[TrainingSet, list[int]]:
    """The pictures that teach a held-out concept, and the table's rows that the taught base is then asked for: a content in
    the hands that it was shown in, a hand on known contents that it was not shown on."""
    table, token = bank.table, TOKENS[kind]
    known = table.index[(table["content" if kind == "content" else "hand"] == name)].tolist()
    if kind == "content":
        shown = [row for hand in params.shown_hands for row in known if table.hand[row] == hand]
        asked, captions = shown, [standard_caption(token, table["style"][row]) for row in shown]
    else:
        known = [row for row in known if table.split[row] == "held_out_hand"]
        order = numpy_generator("report", name).permutation(len(known))
        shown = [known[place] for place in order[: params.shown_contents]]
        asked = [known[place] for place in order[params.shown_contents : params.shown_contents + params.asked_contents]]
        captions = [standard_caption(table.content[row], token) for row in shown]
    pictures = dict(zip(map(str, shown), bank.pictures(shown), strict=True))
    manifest = pd.DataFrame(
        {
            "picture": list(pictures),
            "role": kind,
            "concept": name,
            "token": token,
            "sha256": [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures.values()],
            "caption": captions,
        }
    )
    return encode_training_set(manifest, pictures, base_model), asked


def judge_teaching(
    pipeline: StableDiffusionXLPipeline, bank: Bank, params: ReportParams, base_model: BaseModelParams, seed: int
) -> tuple[pd.DataFrame, dict[str, list[Image.Image]]]:
    """Teach held-out contents and held-out hands by plain LoRA, for each named list of targets, and draw with the result.

    A content learned from its drawings by a few hands is asked for in these, a hand learned from a few contents is asked for
    others. Returns a row for each (targets, concept) and the pictures, by the row's name.
    """
    own = {"steps": params.steps, "batch_size": params.batch_size, "learning_rate": params.learning_rate}
    own |= {"rank": params.rank, "alpha": params.rank, "schedule": "constant", "noisy_bias": 1.4}
    rows, drawn = [], {}
    lessons = [("content", name.replace("-", " ")) for name in params.contents] + [("style", name) for name in params.hands]
    for kind, name in lessons:
        training_set, asked = _lesson(bank, kind, name, params, base_model)
        asked = np.array([asked[index % len(asked)] for index in range(params.samples)])
        for label, targets in params.targets.items():
            lora = LoraParams(**own, targets=targets)
            adapter, _ = train_lora(f"{kind}-{name}", training_set, [kind], base_model, lora, seed)
            captions = [
                standard_caption(TOKENS[kind], bank.table["style"][row])
                if kind == "content"
                else standard_caption(bank.table.content[row], TOKENS[kind])
                for row in asked
            ]
            with tempfile.TemporaryDirectory() as folder:
                pipeline.load_lora_weights(save_adapter(adapter, Path(folder)).parent)
            pictures = draw(pipeline, captions, seed)
            pipeline.unload_lora_weights()
            what = f"LoRA on {label}: {kind} {name}"
            rows.append({"what": what, "pairs": len(asked)} | figures_of(bank.measure(pictures, asked)))
            drawn[what] = pictures
            logger.info("%s: %s", what, {key: round(value, 2) for key, value in rows[-1].items() if key.endswith("top1")})
    return pd.DataFrame(rows), drawn


def sample_sheet(
    pipeline: StableDiffusionXLPipeline, drawings: Drawings, contents: list[str], hands: list[str], seed: int
) -> Image.Image:
    """Contents (rows) by hands (columns): above what the base draws, below the true drawing."""
    table, white = drawings.table, np.array([255, 255, 255])
    words = dict(zip(table.hand, table["style"], strict=True))
    captions = [standard_caption(content, words[hand]) for content in contents for hand in hands]
    pictures = draw(pipeline, captions, seed)
    rows = []
    for index, content in enumerate(contents):
        found = [np.flatnonzero((table.content == content) & (table.hand == hand)) for hand in hands]
        true = [Image.fromarray(composite(drawings.rgba[places[0]], white)) if len(places) else None for places in found]
        rows += [Row("", pictures[index * len(hands) : (index + 1) * len(hands)]), Row("", true)]
    return paint_grid(rows, cell=drawings.rgba.shape[1], bare=True)
