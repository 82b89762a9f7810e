"""The loop on a problem small enough to see through: two vectors pulled to targets of their own."""

import os
import signal
import sys
import textwrap

import pytest
import torch

from b4m_pipeline.training.checkpoint_files import checkpoint_files
from b4m_pipeline.training.objectives import Objective
from b4m_pipeline.training.params import TrainParams
from b4m_pipeline.training.trainer import DivergenceError, Trainer, fit
from tests import warm
from tests.conftest import PLAIN_TRAINING

TARGETS = torch.tensor([[1.0, 2.0], [1.2, 1.8], [-3.0, 0.5], [-2.8, 0.7]])


def params(**changes) -> TrainParams:
    defaults = {"steps": 40, "batch_size": 2, "learning_rate": 0.1, "precision": "no", "checkpoint_every": 5}
    return TrainParams(**(defaults | PLAIN_TRAINING | changes))


class Problem:
    """x is asked to be near rows 0-1, y near rows 2-3; every loss depends on both."""

    def __init__(self):
        self.x = torch.nn.Parameter(torch.zeros(2))
        self.y = torch.nn.Parameter(torch.zeros(2))

    def loss(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = 0.01 * torch.randn(len(rows), 2, generator=generator)
        return (self.x + self.y + noise - TARGETS[rows]).square().mean(1)

    def objectives(self, rate: float = 0.1) -> list[Objective]:
        rows = torch.tensor([0, 1]), torch.tensor([2, 3])
        return [Objective("x", [self.x], [rows[0]], 2, rate), Objective("y", [self.y], [rows[1]], 2, rate / 10)]


def run(**changes) -> Problem:
    problem = Problem()
    keywords = {k: changes.pop(k) for k in ("checkpoint", "fingerprint", "log", "precondition") if k in changes}
    seed = changes.pop("seed", 0)
    fit(problem.loss, problem.objectives(), params(**changes), seed=seed, **keywords)
    return problem


def test_an_objective_touches_its_own_parameters_only():
    problem = Problem()
    only_x = [problem.objectives()[0]]
    fit(problem.loss, only_x, params(), seed=0)
    assert problem.x.abs().sum() > 0.1
    assert torch.equal(problem.y, torch.zeros(2)) and problem.y.grad is None


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_a_scaler_unscales_every_optimizers_gradients_once(optimizer):
    """prodigy has an optimizer for each objective."""
    found = []
    for scaled in (False, True):
        problem = Problem()
        own = params(optimizer=optimizer, learning_rate=1.0)
        trainer = Trainer(problem.loss, problem.objectives(1.0), own, 0, "", "cpu")
        if scaled:
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)  # unscaled twice, gradients vanish beside Adam's eps
            trainer.accelerator.scaler = scaler
            own_optimizers = [wrapped.optimizer for wrapped in trainer.optimizers]
            trainer.accelerator.unscale_gradients = lambda s=scaler, o=own_optimizers: [s.unscale_(each) for each in o]
            for wrapped in trainer.optimizers:
                wrapped.scaler = scaler
        for _ in range(5):
            trainer.train_step(None)
        found.append((problem.x.detach(), problem.y.detach()))
    for plain, unscaled in zip(*found, strict=True):
        assert torch.allclose(plain, unscaled, rtol=1e-4, atol=1e-6)


def test_gradients_are_routed_exactly():
    problem, seen = Problem(), {}

    def look():
        seen["x"], seen["y"] = problem.x.grad.clone(), problem.y.grad.clone()

    fit(problem.loss, problem.objectives(), params(steps=1, max_grad_norm=1e9), seed=0, precondition=look)
    for name, rows in (("x", [0, 1]), ("y", [2, 3])):
        alone = -TARGETS[rows].mean(0)  # d/dx mean |x + y - t|^2 / 2 at zero, but for the small noise
        assert torch.allclose(seen[name], alone, atol=0.05)


def test_each_objective_has_its_own_learning_rate():
    problem = run(steps=1)
    assert problem.x.abs().max() > 5 * problem.y.abs().max() > 0  # Adam's first step is the rate itself


def test_same_seed_same_weights_other_seed_other_weights():
    first, second, other = run(), run(), run(seed=1)
    assert torch.equal(first.x, second.x) and torch.equal(first.y, second.y)
    assert not torch.equal(first.x, other.x)


def test_global_rng_is_neither_read_nor_moved():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = run()
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.x, run().x)


def test_accumulation_equals_one_large_batch_without_noise():
    def train(batch, accumulation):
        problem = Problem()
        loss = lambda rows, generator: (problem.x - TARGETS[rows]).square().mean(1)  # noqa: E731
        objective = Objective("x", [problem.x], [torch.arange(4)], batch, 0.1)
        fit(loss, [objective], params(steps=6, gradient_accumulation=accumulation), seed=0)
        return problem.x.detach()

    assert torch.allclose(train(4, 1), train(2, 2), atol=1e-6)


def test_clipping_sees_whole_gradients_of_each_objective():
    problem, norms = Problem(), {}

    def look():
        norms["x"], norms["y"] = float(problem.x.grad.norm()), float(problem.y.grad.norm())

    fit(problem.loss, problem.objectives(), params(steps=1, max_grad_norm=0.5), seed=0, precondition=look)
    assert norms["x"] == pytest.approx(0.5, rel=1e-3) and norms["y"] == pytest.approx(0.5, rel=1e-3)


def test_resuming_equals_not_having_stopped(tmp_path):
    class Stop(Exception):
        pass

    def stop_at_17(entry, step):
        if step == 17:
            raise Stop

    checkpoint = tmp_path / "x.safetensors"
    under_way, done = checkpoint_files(checkpoint, "f")
    with pytest.raises(Stop):
        run(checkpoint=checkpoint, fingerprint="f", log=stop_at_17)
    assert under_way.exists() and not done.exists()
    steps = []
    resumed = run(checkpoint=checkpoint, fingerprint="f", log=lambda entry, step: steps.append(step))
    whole = run()
    assert torch.equal(resumed.x, whole.x) and torch.equal(resumed.y, whole.y)
    assert steps == list(range(40))  # the past is logged again, once
    assert done.exists() and not under_way.exists()


def test_a_finished_training_is_not_done_again_until_its_checkpoint_is_removed(tmp_path):
    first = run(checkpoint=tmp_path / "x", fingerprint="f")
    steps = []
    again = run(
        checkpoint=tmp_path / "x",
        fingerprint="f",
        log=lambda entry, step: steps.append(step),
        precondition=lambda: pytest.fail("a step was taken"),
    )
    assert torch.equal(first.x, again.x) and len(steps) == 40


def test_resuming_after_the_number_of_steps_grew(tmp_path):
    def stop(entry, step):
        if step == 19:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "x", fingerprint="f", steps=20, log=stop)
    assert torch.equal(run(checkpoint=tmp_path / "x", fingerprint="f", steps=60).x, run(steps=60).x)


def test_a_finished_training_goes_on_when_the_number_of_steps_grew(tmp_path):
    run(checkpoint=tmp_path / "x", fingerprint="f", steps=20, ema_decay=0.9)
    longer = run(checkpoint=tmp_path / "x", fingerprint="f", steps=60, ema_decay=0.9)
    assert torch.equal(longer.x, run(steps=60, ema_decay=0.9).x)


def test_fewer_steps_than_were_done_start_anew(tmp_path, caplog):
    run(checkpoint=tmp_path / "x", fingerprint="f", steps=20)
    assert torch.equal(run(checkpoint=tmp_path / "x", fingerprint="f", steps=10).x, run(steps=10).x)
    assert "training starts anew" in caplog.text


def test_a_checkpoint_of_other_inputs_is_neither_used_nor_lost(tmp_path):
    def stop(entry, step):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "x", fingerprint="one", log=stop, seed=4)
    kept = checkpoint_files(tmp_path / "x", "one")[0].read_bytes()
    again = run(checkpoint=tmp_path / "x", fingerprint="two")
    assert torch.equal(again.x, run().x)
    assert checkpoint_files(tmp_path / "x", "one")[0].read_bytes() == kept


def test_kill_minus_9_loses_nothing_but_time(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, signal, sys, torch
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from tests.training.test_trainer import run
        def kill(entry, step):
            if step == int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGKILL)
        problem = run(checkpoint=Path({str(tmp_path / "x")!r}), fingerprint="f", log=kill)
        print(problem.x.tolist(), problem.y.tolist())
        """
    )
    killed = warm.run(["python", "-c", script, "23"], tmp_path, dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    finished = warm.run(["python", "-c", script, "-1"], tmp_path, dict(os.environ))
    whole = run()
    assert finished.stdout.strip() == f"{whole.x.tolist()} {whole.y.tolist()}"


def test_kill_minus_9_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from b4m_pipeline.training import checkpoints
        from tests.training.test_trainer import run
        write, calls = checkpoints.save_file, []
        def kill(tensors, path, **options):
            calls.append(path)
            write(tensors, path, **options)
            if len(calls) == int(sys.argv[1]):
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        checkpoints.save_file = kill
        problem = run(checkpoint=Path({str(tmp_path / "x")!r}), fingerprint="f")
        print(len(calls), problem.x.tolist(), problem.y.tolist())
        """
    )
    killed = warm.run(["python", "-c", script, "3"], tmp_path, dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    finished = warm.run(["python", "-c", script, "-1"], tmp_path, dict(os.environ))
    writes, weights = finished.stdout.strip().split(" ", 1)
    whole = run()
    assert weights == f"{whole.x.tolist()} {whole.y.tolist()}"
    fresh = tmp_path / "another"
    script = script.replace(str(tmp_path / "x"), str(fresh))
    once = warm.run(["python", "-c", script, "-1"], tmp_path, dict(os.environ))
    assert int(writes) == int(once.stdout.split()[0]) - 2  # it went on from the second of them


def test_a_loss_that_is_not_finite_stops_with_its_name():
    problem = Problem()
    bad = Objective("content", [problem.x], [torch.arange(2)], 2, 0.1)
    with pytest.raises(DivergenceError, match="loss of content is nan at step 0"):
        fit(lambda rows, generator: problem.x.sum() * torch.full((2,), float("nan")), [bad], params(), seed=0)


def test_a_gradient_that_is_not_finite_stops_too():
    problem = Problem()
    steep = Objective("content", [problem.x], [torch.arange(2)], 2, 0.1)
    with pytest.raises(DivergenceError, match="gradient of content is nan at step 0"):
        fit(lambda rows, generator: (0 * problem.x).sqrt().sum() + torch.zeros(2), [steep], params(), seed=0)


def test_a_penalty_counts_once_a_step_and_is_no_part_of_the_loss():
    def pulled(accumulation: int, weight: float) -> tuple[float, float]:
        problem, rows = Problem(), torch.tensor([0, 1])
        penalty = (lambda: weight * (problem.x - 50).square().sum()) if weight else None
        objective = Objective("x", [problem.x], [rows], 2, 0.1, penalty)
        keys = {"steps": 1, "max_grad_norm": 1e9, "gradient_accumulation": accumulation}
        seen = []
        history = fit(
            problem.loss, [objective], params(**keys), seed=0, precondition=lambda: seen.append(problem.x.grad.clone())
        )
        return seen[0], history[0]["loss_x"]

    plain, own_loss = pulled(1, 0.0)
    once, loss = pulled(1, 2.0)
    assert torch.allclose(once - plain, torch.full((2,), -200.0)) and loss == own_loss
    assert torch.allclose(pulled(4, 2.0)[0] - pulled(4, 0.0)[0], torch.full((2,), -200.0))


def test_prodigy_trains_and_goes_on_after_a_stop(tmp_path):
    def stop(entry, step):
        if step == 17:
            raise KeyboardInterrupt

    whole = run(optimizer="prodigy", learning_rate=1.0)
    assert whole.x.abs().sum() > 1e-3 and not torch.equal(whole.x, run().x)
    with pytest.raises(KeyboardInterrupt):
        run(optimizer="prodigy", learning_rate=1.0, checkpoint=tmp_path / "x", fingerprint="f", log=stop)
    assert torch.equal(run(optimizer="prodigy", learning_rate=1.0, checkpoint=tmp_path / "x", fingerprint="f").x, whole.x)


def test_the_average_is_kept_in_the_end_and_training_does_not_see_it():
    seen = []
    problem = Problem()
    fit(
        problem.loss,
        problem.objectives(),
        params(ema_decay=0.5, steps=12),
        seed=0,
        log=lambda entry, step: seen.append(problem.x.detach().clone()),
    )
    plain = run(steps=12)
    assert torch.equal(seen[-1], plain.x)  # the weights went the same way
    average = torch.zeros(2)
    for step, weights in enumerate(seen, start=1):
        average = average.lerp(weights, 1 - min(0.5, step / (10 + step)))
    assert torch.allclose(problem.x, average, atol=1e-6) and not torch.allclose(problem.x, plain.x, atol=1e-3)


def validated(losses: list[float], checkpoint=None, log=None, **changes) -> tuple[Problem, list[dict], list[torch.Tensor]]:
    """A run that measures these losses, one a validation; also the weights that were there then."""
    problem, weights = Problem(), []

    def validate() -> float:
        weights.append(problem.x.detach().clone())
        return losses[len(weights) - 1]

    wanted = params(validation={"pictures": 1, "every": 5} | changes.pop("validation", {}), **changes)
    keys = {"seed": 0, "validate": validate, "checkpoint": checkpoint, "fingerprint": "f", "log": log}
    history = fit(problem.loss, problem.objectives(), wanted, **keys)
    return problem, history, weights


def test_validation_is_measured_and_the_best_kept():
    losses = [5.0, 2.0, 3.0, 4.0, 2.5, 6.0, 7.0, 8.0]
    problem, history, weights = validated(losses, validation={"keep": "best"})
    assert [entry["validation_loss"] for entry in history if "validation_loss" in entry] == losses
    assert [step for step, entry in enumerate(history, start=1) if "validation_loss" in entry] == list(range(5, 41, 5))
    assert torch.equal(problem.x, weights[1])
    last, _, _ = validated(losses)
    assert torch.equal(last.x, run().x) and not torch.equal(last.x, weights[1])


def test_patience_stops_early_and_a_resumed_run_stays_stopped(tmp_path):
    losses = [5.0, 2.0, 3.0, 1.0, 2.5, 1.5, 7.0, 0.0]
    _, history, _ = validated(losses, checkpoint=tmp_path / "x", validation={"patience": 2})
    assert len(history) == 30  # best at 20, none lower at 25 and 30
    _, again, measured = validated([], checkpoint=tmp_path / "x", validation={"patience": 2})
    assert again == history and not measured


def test_best_and_average_survive_a_stop(tmp_path):
    losses = [5.0, 2.0, 3.0, 4.0, 2.5, 6.0, 7.0, 8.0]
    options = {"validation": {"keep": "best"}, "ema_decay": 0.9}

    def stop(entry, step):
        if step == 17:
            raise KeyboardInterrupt

    whole, _, weights = validated(losses, **options)
    with pytest.raises(KeyboardInterrupt):
        validated(losses, checkpoint=tmp_path / "x", log=stop, **options)
    resumed, history, rest = validated(losses[3:], checkpoint=tmp_path / "x", **options)
    assert torch.equal(resumed.x, whole.x) and len(rest) == 5 and len(history) == 40
    assert torch.equal(whole.x, weights[1])


def test_pictures_are_drawn_when_due_with_averaged_weights():
    problem, seen = Problem(), []
    wanted = params(samples={"every": 15}, ema_decay=0.9, steps=31)
    fit(problem.loss, problem.objectives(), wanted, seed=0, draw=lambda step: seen.append((step, problem.x.clone())))
    assert [step for step, _ in seen] == [15, 30]
    plain = {step: run(steps=step).x for step, _ in seen}
    assert all(not torch.allclose(weights, plain[step], atol=1e-4) for step, weights in seen)
    assert torch.equal(seen[0][1], run(steps=15, ema_decay=0.9).x)


def test_snapshots_hold_the_weights_of_their_steps_also_after_a_stop(tmp_path):
    def run_on(problem, seen, log=None, **changes):
        take = {10: lambda: seen.append(problem.x.detach().clone())}
        keys = {"seed": 0, "checkpoint": tmp_path / "x", "fingerprint": "f", "log": log, "snapshots": take}
        fit(problem.loss, problem.objectives(), params(**changes), **keys)

    def stop(entry, step):
        if step == 17:
            raise KeyboardInterrupt

    first, resumed = [], []
    with pytest.raises(KeyboardInterrupt):
        run_on(Problem(), first, log=stop)
    assert first == []  # they are shown in the end
    problem = Problem()
    run_on(problem, resumed)
    assert len(resumed) == 1 and torch.equal(resumed[0], run(steps=10).x)
    assert torch.equal(problem.x, run().x)  # training goes on from where it was
