"""Parameters of trainings of a few steps, and one that is stopped."""

import pytest
import torch

from b4m_pipeline.pretrain.params import PretrainParams

PARAMS = PretrainParams(
    size=32, device="cpu", output="x", clip_output="x", checkpoints="x",
    corpus={"source": "x", "contents": ["a"], "held_out_contents": [], "hands": ["twemoji"], "held_out_hands": [],
            "procedural_from": "twemoji", "unseen_share": 0.1, "min_hands": 8, "processes": 2},
    vae={"channels": [8, 8], "latent_channels": 8, "steps": 6, "batch_size": 4, "checkpoint_every": 1},
    captions={"alias": 0.0}, further=None,
    text={"vocabulary": 700, "max_length": 16, "widths": [16, 16], "layers": [2, 2], "placeholders": ["snq", "w@z"]},
    denoiser={"channels": [32, 64], "steps": 4, "batch_size": 4, "checkpoint_every": 1, "warmup_steps": 1,
              "ema": 0.998, "coloured": 1, "view_weights": [0.88, 0.09, 0.03]},
    clip={"width": 16, "layers": 2, "heads": 2, "text_width": 16, "text_layers": 2, "embedding": 16, "steps": 4,
          "batch_size": 4, "checkpoint_every": 1},
    report={"pairs": 96, "contents": [], "hands": [], "shown_hands": [], "targets": {}},
)  # fmt: skip


class Stop(Exception):
    pass


def stopped(function, module, monkeypatch, at: int):
    """Run `function`, which is stopped after its `at`-th checkpoint."""
    count, save = [], module.save_progress

    def save_and_stop(*progress):
        save(*progress)
        count.append(1)
        if len(count) == at:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_progress", save_and_stop)
        with pytest.raises(Stop):
            function()


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
