"""A training loop for several objectives at once. It knows neither Kedro nor MLflow nor the method.

An objective has its own parameters, pictures, batch size and learning rate. Its loss touches its own parameters and nothing
else: gradients are taken with `torch.autograd.grad` for exactly these, or, where all go through the model together,
`joint_loss` sees to it. All randomness of a step is drawn from generators seeded by (seed, objective, step), so a run that was
killed goes on as if it had not been."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from b4m_pipeline.common.devices import resolve_precision
from b4m_pipeline.common.progress import Progress
from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.training.checkpoint_files import checkpoint_files, other_checkpoints
from b4m_pipeline.training.checkpoints import load_checkpoint, save_checkpoint
from b4m_pipeline.training.objectives import Objective, parameter_groups
from b4m_pipeline.training.optimizers import make_optimizer
from b4m_pipeline.training.params import TrainParams
from b4m_pipeline.training.schedules import warm_cosine, warm_up

logger = logging.getLogger(__name__)

VALIDATION = "validation_loss"
"""Name of a history's entries, at the steps that were measured."""

Loss = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
JointLoss = Callable[[list[tuple[torch.Tensor, torch.Generator]]], list[torch.Tensor]]
Log = Callable[[dict[str, float], int], None]


class DivergenceError(ValueError):
    """A loss or gradient is not finite."""


def learning_rate_factor(step: int, params: TrainParams) -> float:
    """Linear warm-up, then constant or cosine to zero."""
    if params.schedule == "constant":
        return warm_up(step, params.warmup_steps)
    return warm_cosine(step, params.steps, params.warmup_steps)


class Trainer:
    """One run of `fit`: its state is what a checkpoint holds."""

    def __init__(
        self,
        loss: Loss,
        objectives: list[Objective],
        params: TrainParams,
        seed: int,
        fingerprint: str,
        device: str,
        joint_loss: JointLoss | None = None,
    ):
        if not objectives:
            raise ValueError("there is nothing to train: no objectives")
        self.joint_loss = joint_loss
        self.loss, self.objectives, self.params, self.seed = loss, objectives, params, seed
        self.fingerprint = fingerprint
        AcceleratorState._reset_state(reset_partial_state=True)  # precision is per stage, accelerate's state per process
        precision = resolve_precision(params.precision, device)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
        groups = parameter_groups(objectives)
        name = params.optimizer.removeprefix("riemannian_")  # the preconditioner is the caller's
        # Prodigy estimates one rate for all its groups: each objective gets an estimate of its own.
        shares = [[group] for group in groups] if name == "prodigy" else [groups]
        optimizers = [make_optimizer(name, share, params.weight_decay) for share in shares]
        self.optimizers = [self.accelerator.prepare(optimizer) for optimizer in optimizers]
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.average = [p.detach().clone() for p in self._parameters()] if params.ema_decay else None
        self.best: dict | None = None
        """Of validation: loss, step and parameters (those of the average, where there is one)."""
        self.stopped = False
        self.leads = self.accelerator.is_main_process
        """Of the processes that share a training, one writes and shows."""
        self.snapshots: dict[int, list[torch.Tensor]] = {}
        """Weights at some steps (those of the average, where there is one)."""

    def _accumulate(self) -> dict[str, torch.Tensor]:
        """Add the gradients of every objective's loss and penalty to its own parameters; returns the losses alone, by name."""
        totals = {o.name: torch.zeros((), device=self.accelerator.device) for o in self.objectives}
        for part in range(self.params.gradient_accumulation):
            index = self.step * self.params.gradient_accumulation + part
            for objectives in [self.objectives] if self.joint_loss else [[o] for o in self.objectives]:
                for objective, loss in zip(objectives, self._losses(objectives, index), strict=True):
                    totals[objective.name] += loss
        for objective in self.objectives:
            if objective.penalty:
                self._add_gradients(objective.penalty(), [objective], everywhere=False)
        return totals

    def _losses(self, objectives: list[Objective], index: int) -> list[torch.Tensor]:
        """One pass: the index-th batches' losses, whose gradients are added."""
        seeds = [torch_generator(self.seed, o.name, "noise", index) for o in objectives]
        batches = [(o.batch(self.seed, index), generator) for o, generator in zip(objectives, seeds, strict=True)]
        with self.accelerator.autocast():
            measured = self.joint_loss(batches) if self.joint_loss else [self.loss(*batches[0])]
            losses = [each.mean() / self.params.gradient_accumulation for each in measured]
        self._add_gradients(torch.stack(losses).sum(), objectives)
        return [loss.detach() for loss in losses]

    def _add_gradients(self, value: torch.Tensor, objectives: list[Objective], everywhere: bool = True) -> None:
        """everywhere: every parameter of these objectives must have a gradient."""
        touched = list({id(p): p for o in objectives for p in o.parameters}.values())
        scaler = self.accelerator.scaler
        gradients = torch.autograd.grad(scaler.scale(value) if scaler else value, touched, allow_unused=not everywhere)
        for parameter, gradient in zip(touched, gradients, strict=True):
            if gradient is not None:
                # contiguous: the gradient of a sum is one number seen many times, which nothing can clip in place
                parameter.grad = gradient.contiguous() if parameter.grad is None else parameter.grad + gradient

    def train_step(self, precondition: Callable[[], None] | None) -> dict[str, float]:
        """One optimizer step on all objectives; returns losses and gradient norms before clipping."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        measured = {f"loss_{name}": loss for name, loss in self._accumulate().items()}
        if self.accelerator.num_processes > 1:
            self._average(list(measured.values()))
        self.accelerator.unscale_gradients()
        # All gradients exist now. Each group is clipped by its own norm: one concept's must not scale the other's.
        for group in self._groups():
            norm = torch.nn.utils.clip_grad_norm_(group["params"], self.params.max_grad_norm)
            measured[f"grad_norm_{group['name']}"] = norm
            group["lr"] = group["peak"] * learning_rate_factor(self.step, self.params)
        # All figures at once: each reading makes a GPU's queue run dry.
        entry = dict(zip(measured, torch.stack([value.float() for value in measured.values()]).tolist(), strict=True))
        self._require_finite(entry)
        if precondition:
            precondition()
        self._optimize()
        self.step += 1
        if self.average and self.params.ema_decay:
            # Young averages would hold on to the start: the decay grows with the steps done.
            decay = min(self.params.ema_decay, self.step / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list(self._parameters()), 1 - decay)
        return entry

    @torch.no_grad()
    def _average(self, losses: list[torch.Tensor]) -> None:
        """Gradients and these scalars over all processes, in place, in one message."""
        tensors = [p.grad for p in self._parameters() if p.grad is not None] + losses
        means = self.accelerator.reduce(torch.cat([tensor.flatten().float() for tensor in tensors]), "mean")
        for tensor, mean in zip(tensors, means.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def _optimize(self) -> None:
        """Let all optimizers step. A scaler is updated once, after all of them: accelerate's own step updates it each time, and
        the next optimizer's gradients would be unscaled twice."""
        scaler = self.accelerator.scaler
        if scaler is None:
            for optimizer in self.optimizers:
                optimizer.step()
            return
        for optimizer in self.optimizers:
            scaler.step(optimizer.optimizer)
        scaler.update()

    def _require_finite(self, entry: dict[str, float]) -> None:
        """Raise DivergenceError, naming the first figure that is not finite."""
        for name, value in entry.items():
            of_gradient = name.startswith("grad_norm_")
            if math.isfinite(value) or (of_gradient and self.accelerator.scaler):  # a scaler skips such a step
                continue
            what = f"gradient of {name.removeprefix('grad_norm_')}" if of_gradient else f"loss of {name.removeprefix('loss_')}"
            raise DivergenceError(f"the {what} is {value} at step {self.step}: lower its learning rate, or use precision: no")

    @contextmanager
    def holding(self, weights: list[torch.Tensor] | None) -> Iterator[None]:
        """These weights in the parameters' place, if there are any."""
        kept = [parameter.detach().clone() for parameter in self._parameters()] if weights else None
        self._put(weights)
        try:
            yield
        finally:
            self._put(kept)

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights in the parameters' place, where there is an average."""
        return self.holding(self.average)

    def keep_snapshot(self) -> None:
        """Keep the weights as they are now."""
        weights = self.average or [parameter.detach() for parameter in self._parameters()]
        self.snapshots[self.step] = [weight.clone() for weight in weights]

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor] | None) -> None:
        if values:
            for parameter, value in zip(self._parameters(), values, strict=True):
                parameter.copy_(value)

    def validate(self, loss: Callable[[], float]) -> float:
        """Measure, keep the best, and decide whether to stop."""
        p = self.params.validation
        with self.averaged(), self.accelerator.autocast(), torch.no_grad():
            value = loss()
            if self.best is None or value < self.best["loss"]:
                weights = [parameter.detach().clone() for parameter in self._parameters()] if p.keep == "best" else []
                self.best = {"loss": value, "step": self.step, "parameters": weights}
        measured = [index for index, entry in enumerate(self.history, start=1) if VALIDATION in entry]
        since = sum(step > self.best["step"] for step in measured) + (self.step > self.best["step"])
        if p.patience and since >= p.patience:
            logger.info("No lower validation loss since step %d: stopping at step %d", self.best["step"], self.step)
            self.stopped = True
        return value

    def finish(self) -> None:
        """Put the weights that are to be kept into the parameters: the best, or the averaged, or what is there."""
        if self.best and self.best["parameters"]:
            logger.info("Keeping step %d, validation loss %.4f", self.best["step"], self.best["loss"])
            self._put(self.best["parameters"])
        else:
            self._put(self.average)

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self._groups() for parameter in group["params"]]

    def _groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def save(self, path: Path) -> None:
        state = {"fingerprint": self.fingerprint, "step": self.step, "history": self.history}
        scaler = self.accelerator.scaler
        state["scaler"] = scaler.state_dict() if scaler else None
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        state |= {"average": self.average, "best": self.best, "stopped": self.stopped, "snapshots": self.snapshots}
        save_checkpoint(path, {**state, "parameters": list(self._parameters())})

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one and it is not already past this run's end."""
        if not path.exists():
            return
        state = load_checkpoint(path)
        if state["fingerprint"] != self.fingerprint or state["step"] > self.params.steps:
            logger.warning("%s is at step %d of another run: training starts anew", path.name, state["step"])
            return
        self._put(state["parameters"])
        if self.average:
            for own, saved in zip(self.average, state["average"], strict=True):
                own.copy_(saved)
        self.best, self.stopped, self.snapshots = state["best"], state["stopped"], state["snapshots"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
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
    validate: Callable[[], float] | None = None,
    draw: Callable[[int], None] | None = None,
    log: Log | None = None,
    joint_loss: JointLoss | None = None,
    snapshots: dict[int, Callable[[], None]] | None = None,
    description: str = "training",
) -> list[dict[str, float]]:
    """Train the objectives' parameters in place for `params.steps` optimizer steps.

    loss: (rows (B,), generator) -> losses (B,). joint_loss: the same for the batches of all objectives in one pass; what each
    loss teaches is up to it, the sum is differentiated for all parameters. precondition: changes the clipped gradients in
    place before a step. validate: gives the validation loss of the weights as they are, draw: shows them, given the step; both
    come when `params.validation` and `params.samples` say so, and see averaged weights where there is an average. snapshots:
    what to call, in the end, with the weights of some steps before the last in the parameters' place.
    checkpoint: file to write every `checkpoint_every` steps and to resume from; the fingerprint becomes part of its name. A
    finished training's is kept, marked as done, until whoever needs the result has stored it. log: called with the entries of
    the history and the step, those of a resumed run's past included. Returns the history: for each step the losses and gradient
    norms. Raises DivergenceError if one of them is not finite.
    """
    trainer = Trainer(loss, objectives, params, seed, fingerprint, device, joint_loss)
    if checkpoint:
        stem, others = checkpoint.stem, other_checkpoints(checkpoint)
        checkpoint, done = checkpoint_files(checkpoint, fingerprint)
        trainer.resume(checkpoint if checkpoint.exists() else done)
        if not trainer.step and others:
            logger.warning(
                "Checkpoints of %s in %s are of other pictures, parameters or code: it is trained from the start",
                stem,
                checkpoint.parent,
            )
    for step, entry in enumerate(trainer.history):
        if log:
            log(entry, step)
    trainer.accelerator.wait_for_everyone()  # all have read the checkpoint
    saved = checkpoint if trainer.leads else None
    with Progress(description, params.steps, trainer.step, shown=trainer.leads) as bar:
        while trainer.step < params.steps and not trainer.stopped:
            entry = trainer.train_step(precondition)
            if validate and trainer.step % params.validation.every == 0:
                entry[VALIDATION] = trainer.validate(validate)
            if draw and params.samples.every and trainer.step % params.samples.every == 0:
                with trainer.averaged(), trainer.accelerator.autocast(), torch.no_grad():
                    draw(trainer.step)
            if snapshots and trainer.step in snapshots:
                trainer.keep_snapshot()
            trainer.history.append(entry)
            if log:
                log(entry, trainer.step - 1)
            bar.update(1, {key.removeprefix("loss_"): value for key, value in entry.items() if key.startswith("loss_")})
            over = trainer.stopped or trainer.step == params.steps
            if saved and trainer.step % params.checkpoint_every == 0 and not over:
                trainer.save(saved)
    if saved:
        trainer.save(saved)
        saved.replace(done)
    for step, weights in trainer.snapshots.items():
        if snapshots and step in snapshots:
            with trainer.holding(weights):
                snapshots[step]()
    trainer.finish()
    return trainer.history
