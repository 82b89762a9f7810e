"""How much of the content, of the style and of the prompt a picture shows, and how near it is to the true drawing.

Two judges: EfficientNet-lite0, trained on ImageNet alone and so independent of every generator here, and a CLIP model by
parameter. All similarities are cosines, higher is better.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from b4m_pipeline.common.progress import batches
from b4m_pipeline.evaluation.efficientnet import PIXELS, load_efficientnet
from b4m_pipeline.evaluation.measures import Judgement

BATCH = 32  # pictures at once through a judge
# Maps whose Gram matrices tell hands apart best and contents hardly, and contents best: see docs/evaluation.md.
_STYLE_MAP = 5  # (40, 28, 28)
_CONTENT_MAP = 15  # (192, 7, 7)
_DISTANCE_MAPS = (0, 3, 5, 11, 16, 17)  # one for each resolution, as LPIPS takes them


class EfficientNetJudge:
    """Style and content: Gram matrices, channels centred (Gatys et al. 2015, arXiv 1508.06576), of an early and of a late map.
    Maps: for `perceptual_distance`."""

    name = "efficientnet"

    def __init__(self, device: str = "cpu"):
        self.network, self.device = load_efficientnet().to(device), device

    @torch.inference_mode()
    def look(self, images: Sequence[Image.Image], maps: bool = False) -> Judgement:
        """RGB pictures of any size -> their Judgement, on the CPU."""
        contents, styles, kept = [], [], []
        for batch in batches(len(images), BATCH, "measuring"):
            features = self.network.features(_pixels(images[batch]).to(self.device))
            contents.append(F.normalize(_gram(features[_CONTENT_MAP]), dim=-1).cpu())
            styles.append(F.normalize(_gram(features[_STYLE_MAP]), dim=-1).cpu())
            if maps:
                kept.append([F.normalize(features[index], dim=1).cpu() for index in _DISTANCE_MAPS])
        joined = tuple(torch.cat(level) for level in zip(*kept, strict=True)) if maps else ()
        return Judgement(torch.cat(contents), torch.cat(styles), joined)

    @torch.inference_mode()
    def embed(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """RGB pictures -> the network's last features, averaged over places, (N, 1280), on the CPU."""
        parts = []
        for start in range(0, len(images), BATCH):
            parts.append(self.network.features(_pixels(images[start : start + BATCH]).to(self.device))[-1].mean((2, 3)).cpu())
        return torch.cat(parts)


class ClipJudge:
    """A transformers CLIPModel, from a folder or the Hub. Content and style are both its image embedding."""

    name = "clip"

    def __init__(self, path: str, device: str = "cpu"):
        """path: the model's. Raises CaptioningError, naming the parameter, if it cannot be loaded."""
        from transformers import CLIPModel, CLIPProcessor

        from b4m_pipeline.inputs.captioners import load_model

        self.model, self.processor = load_model("evaluation.clip", path, CLIPModel, CLIPProcessor)
        self.model.to(device)
        self.device = device

    @torch.inference_mode()
    def look(self, images: Sequence[Image.Image], maps: bool = False) -> Judgement:
        """RGB pictures of any size -> their Judgement, on the CPU, without maps."""
        parts = []
        for batch in batches(len(images), BATCH, "measuring by CLIP"):
            pixels = self.processor.image_processor(list(images[batch]), return_tensors="pt")
            parts.append(self.model.get_image_features(**pixels.to(self.device)).pooler_output.cpu())
        embedding = F.normalize(torch.cat(parts), dim=-1)
        return Judgement(embedding, embedding)

    @torch.inference_mode()
    def read(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts -> unit text embeddings (N, D), on the CPU."""
        ids = self.processor.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.model.get_text_features(**ids.to(self.device)).pooler_output.cpu(), dim=-1)


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures, their middle square where they are longer -> (N, 3, 224, 224) as EfficientNet-lite wants them,
    (RGB - 127) / 128."""
    resized = [ImageOps.fit(image.convert("RGB"), (PIXELS, PIXELS), Image.Resampling.BICUBIC) for image in images]
    batch = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
    return (batch.permute(0, 3, 1, 2).float() - 127) / 128


def _gram(features: torch.Tensor) -> torch.Tensor:
    """Feature map (N, C, h, w) -> covariances of its channels over places, (N, C (C + 1) / 2)."""
    flat = features.flatten(2)
    flat = flat - flat.mean(-1, keepdim=True)
    gram = flat @ flat.mT / flat.shape[-1]  # (N, C, C)
    rows, columns = torch.triu_indices(gram.shape[1], gram.shape[1])
    return gram[:, rows, columns]
