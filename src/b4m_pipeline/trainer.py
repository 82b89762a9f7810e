"""A training loop for several objectives at once. It knows neither Kedro nor MLflow nor the method.

An objective has its own parameters, pictures, batch size and learning rate. Its loss touches its own parameters and nothing
else: gradients are taken with `torch.autograd.grad` for exactly these. All randomness of a step is drawn from generators
seeded by (seed, objective, step), so a run that was killed goes on as if it had not been.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm

from b4m_pipeline.checkpoints import load_checkpoint, save_checkpoint
from b4m_pipeline.config import TrainParams
from b4m_pipeline.devices import has_fast_bf16
from b4m_pipeline.seeding import torch_generator

logger = logging.getLogger(__name__)

Loss = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Log = Callable[[dict[str, float], int], None]


class DivergenceError(RuntimeError):
    """A loss or gradient is not finite."""


@dataclass
class Objective:
    """What a loss on some pictures teaches. rows: indices of the training set in one or several strata, (N_i,) each;
    a batch takes from the strata in turn, however many pictures each has."""

    name: str
    parameters: list[torch.nn.Parameter] = field(repr=False)
    rows: list[torch.Tensor]
    batch_size: int
    learning_rate: float

    def batch(self, seed: int, index: int) -> torch.Tensor:
        """The index-th batch (B,) of an endless stream: in each stratum every row comes once an epoch, in a new order."""
        orders: dict[tuple[int, int], torch.Tensor] = {}
        picked = []
        for position in range(index * self.batch_size, (index + 1) * self.batch_size):
            stratum, place = position % len(self.rows), position // len(self.rows)
            rows = self.rows[stratum]
            key = (stratum, place // len(rows))
            if key not in orders:
                orders[key] = torch.randperm(len(rows), generator=torch_generator(seed, self.name, "order", *key))
            picked.append(rows[orders[key][place % len(rows)]])
        return torch.stack(picked)


def resolve_precision(precision: str, device: str) -> str:
    """auto -> bf16 where the machine multiplies it in hardware, else full precision ("no")."""
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bf16(device) else "no"


def learning_rate_factor(step: int, params: TrainParams) -> float:
    """Linear warm-up, then constant or cosine to zero."""
    warm = min(1.0, (step + 1) / params.warmup_steps) if params.warmup_steps else 1.0
    if params.schedule == "constant":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * step / params.steps))


def _parameter_groups(objectives: list[Objective]) -> list[dict]:
    """One group for each objective; a parameter that several share belongs to the first, at one and the same rate."""
    rates: dict[int, float] = {}
    groups = []
    for objective in objectives:
        own = []
        for parameter in objective.parameters:
            known = rates.setdefault(id(parameter), objective.learning_rate)
            if known != objective.learning_rate:
                raise ValueError(f"objective {objective.name} shares parameters with another of a different learning rate")
            if not any(parameter is other for group in groups for other in group["params"]):
                own.append(parameter)
        if own:
            rate = objective.learning_rate
            groups.append({"params": own, "lr": rate, "peak": rate, "name": objective.name})
    return groups


class Trainer:
    """One run of `fit`: its state is what a checkpoint holds."""

    def __init__(self, loss: Loss, objectives: list[Objective], params: TrainParams, seed: int, fingerprint: str, device: str):
        if not objectives:
            raise ValueError("there is nothing to train: no objectives")
        self.loss, self.objectives, self.params, self.seed = loss, objectives, params, seed
        self.fingerprint = fingerprint
        AcceleratorState._reset_state(reset_partial_state=True)  # precision is per stage, accelerate's state per process
        precision = resolve_precision(params.precision, device)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
        groups = _parameter_groups(objectives)
        adamw = torch.optim.AdamW(groups, weight_decay=params.weight_decay)
        self.optimizer = self.accelerator.prepare(adamw)
        self.step = 0
        self.history: list[dict[str, float]] = []

    def _accumulate(self, objective: Objective) -> float:
        """Add the gradients of an objective's loss to its own parameters; returns the loss."""
        p, total = self.params, 0.0
        for part in range(p.gradient_accumulation):
            index = self.step * p.gradient_accumulation + part
            generator = torch_generator(self.seed, objective.name, "noise", index)
            with self.accelerator.autocast():
                loss = self.loss(objective.batch(self.seed, index), generator).mean() / p.gradient_accumulation
            scaler = self.accelerator.scaler
            gradients = torch.autograd.grad(scaler.scale(loss) if scaler else loss, objective.parameters)
            for parameter, gradient in zip(objective.parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            total += loss.item()
        if not math.isfinite(total):
            raise DivergenceError(
                f"the loss of {objective.name} is {total} at step {self.step}: lower its learning rate, or use precision: no"
            )
        return total

    def train_step(self, precondition: Callable[[], None] | None) -> dict[str, float]:
        """One optimizer step on all objectives; returns losses and gradient norms before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        entry = {f"loss_{o.name}": self._accumulate(o) for o in self.objectives}
        self.accelerator.unscale_gradients()
        # All gradients exist now. Each group is clipped by its own norm: one concept's must not scale the other's.
        for group in self.optimizer.param_groups:
            norm = torch.nn.utils.clip_grad_norm_(group["params"], self.params.max_grad_norm)
            entry[f"grad_norm_{group['name']}"] = float(norm)
            group["lr"] = group["peak"] * learning_rate_factor(self.step, self.params)
        if precondition:
            precondition()
        self.optimizer.step()
        self.step += 1
        return entry

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def save(self, path: Path) -> None:
        state = {"fingerprint": self.fingerprint, "step": self.step, "history": self.history}
        scaler = self.accelerator.scaler
        state["scaler"] = scaler.state_dict() if scaler else None
        state["optimizer"] = self.optimizer.state_dict()
        save_checkpoint(path, {**state, "parameters": list(self._parameters())})

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one of this very run; another run's is set aside, said aloud."""
        if not path.exists():
            return
        state = load_checkpoint(path)
        if state["fingerprint"] != self.fingerprint:
            logger.warning("%s belongs to other inputs or parameters: training starts anew", path.name)
            return
        with torch.no_grad():
            for parameter, saved in zip(self._parameters(), state["parameters"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.history = state["step"], state["history"]
        logger.info("Resuming at step %d of %d", self.step, self.params.steps)


def fit(
    loss: Loss,
    objectives: list[Objective],
    params: TrainParams,
    *,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    fingerprint: str = "",
    precondition: Callable[[], None] | None = None,
    log: Log | None = None,
    description: str = "training",
) -> list[dict[str, float]]:
    """Train the objectives' parameters in place for `params.steps` optimizer steps.

    loss: (rows (B,), generator) -> losses (B,). precondition: changes the clipped gradients in place before a step.
    checkpoint: file to write every `checkpoint_every` steps and to resume from if its fingerprint is this run's; removed
    at the end. log: called with the entries of the history and the step, those of a resumed run's past included.
    Returns the history: for each step the losses and gradient norms. Raises DivergenceError if a loss is not finite.
    """
    trainer = Trainer(loss, objectives, params, seed, fingerprint, device)
    if checkpoint:
        trainer.resume(checkpoint)
    for step, entry in enumerate(trainer.history):
        if log:
            log(entry, step)
    bar = tqdm(total=params.steps, initial=trainer.step, desc=description, mininterval=1.0)
    while trainer.step < params.steps:
        entry = trainer.train_step(precondition)
        trainer.history.append(entry)
        if log:
            log(entry, trainer.step - 1)
        bar.update()
        bar.set_postfix({k.removeprefix("loss_"): f"{v:.4f}" for k, v in entry.items() if k.startswith("loss_")})
        if checkpoint and trainer.step % params.checkpoint_every == 0 and trainer.step < params.steps:
            trainer.save(checkpoint)
    bar.close()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return trainer.history
