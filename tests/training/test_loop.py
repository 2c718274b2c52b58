"""The training loop: number of updates, learning rates, best state, early stopping."""

from __future__ import annotations

import itertools
import math
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from peftlib.errors import RunError
from peftlib.strategies.parameters import trained_state
from peftlib.training.loop import train, train_step
from peftlib.training.milestones import keep_best
from peftlib.training.state import Plan, Training
from tests.training.runs import make_run

properties = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fresh_run(folder: Path, **options: Any) -> Training:
    """Call `make_run` for tests that need several runs."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return make_run(folder, **options)


def weights(run: Training) -> dict[str, torch.Tensor]:
    return trained_state(run.model)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ── How many updates ─────────────────────────────────────────────────────────────────────────────────────────────


@properties
@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(1, 4), st.integers(1, 3))
def test_an_epoch_has_as_many_updates_as_windows_the_short_one_included(
    tmp_path: Path, examples: int, micro: int, accumulation: int, epochs: int
) -> None:
    run = fresh_run(
        tmp_path, examples=examples, micro=micro, accumulation=accumulation, epochs=epochs, scores=[0.5] * epochs
    )
    progress = train(run)
    expected = epochs * math.ceil(math.ceil(examples / micro) / accumulation)
    assert progress.step == expected == len(run.watcher.steps)
    assert {int(state["step"]) for state in run.optimizer.state.values()} == {expected}
    assert progress.examples == epochs * examples
    assert progress.epochs == epochs
    assert [step for step, _ in run.watcher.lines] == list(range(1, expected + 1))


@pytest.mark.parametrize(("max_steps", "epochs"), [(2, 0.5), (4, 1.0), (6, 1.5)])
def test_max_steps_ends_the_run_in_the_middle_of_an_epoch(tmp_path: Path, max_steps: int, epochs: float) -> None:
    run = make_run(tmp_path, examples=29, micro=2, accumulation=4, epochs=9, max_steps=max_steps)
    progress = train(run)
    assert run.batches.windows_per_epoch == 4
    assert (progress.step, progress.epochs) == (max_steps, epochs)
    assert set(run.scheduler.get_last_lr()) == {0.0}
    assert progress.last["step"] == max_steps, "the last update is evaluated"
    assert {int(state["step"]) for state in run.optimizer.state.values()} == {max_steps}


@given(st.integers(1, 50), st.integers(1, 5), st.none() | st.integers(1, 100))
def test_the_plan(windows: int, epochs: int, max_steps: int | None) -> None:
    plan = Plan.of(
        windows, epochs, max_steps, eval_steps=None, logging_steps=1, max_grad_norm=0, patience=0, best_metric="f1"
    )
    assert plan.steps == (max_steps or windows * epochs)
    assert (plan.epochs - 1) * windows < plan.steps <= plan.epochs * windows


@pytest.mark.parametrize(
    ("windows", "epochs", "steps", "passes"),
    [(4, 2.5, 10, 3), (4, 2.0, 8, 2), (4, 0.5, 2, 1), (10, 0.01, 1, 1), (427, 1.5, 641, 2), (3, 1.01, 4, 2)],
)
def test_a_part_of_an_epoch_is_that_share_of_its_updates_as_transformers_rounds_it(
    windows: int, epochs: float, steps: int, passes: int
) -> None:
    how: dict[str, Any] = {"eval_steps": None, "logging_steps": 1, "max_grad_norm": 0, "patience": 0}
    plan = Plan.of(windows, epochs, None, **how, best_metric="f1")
    assert (plan.steps, plan.epochs) == (steps, passes) and type(plan.steps) is int


def test_the_last_part_of_an_epoch_is_trained_and_evaluated(tmp_path: Path) -> None:
    run = make_run(tmp_path, examples=29, micro=2, accumulation=4, epochs=1.5)
    progress = train(run)
    assert (progress.step, progress.epochs, progress.last["step"]) == (6, 1.5, 6)
    assert [entry["step"] for entry in progress.history] == [4, 6]


# ── The learning rate ────────────────────────────────────────────────────────────────────────────────────────────


@properties
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_a_linear_schedule_rises_in_warm_up_and_ends_at_zero(
    tmp_path: Path, examples: int, accumulation: int, epochs: int, warmup: int
) -> None:
    run = fresh_run(
        tmp_path,
        examples=examples,
        accumulation=accumulation,
        epochs=epochs,
        rate=1e-3,
        warmup=warmup,
        scores=[0.5] * epochs,
    )
    train(run)
    steps, warmup = run.plan.steps, min(warmup, run.plan.steps)
    rates = [*run.watcher.of("train/learning_rate"), run.scheduler.get_last_lr()[0]]
    expected = [
        1e-3 * (update / warmup if update < warmup else (steps - update) / max(1, steps - warmup))
        for update in range(steps + 1)
    ]
    assert rates == pytest.approx(expected, abs=1e-12)
    assert rates[-1] == 0.0


def test_the_first_update_runs_at_the_first_rate(tmp_path: Path) -> None:
    """Under warm-up its rate is 0: no weight changes before the second update."""
    run = make_run(tmp_path, warmup=2, max_steps=1, scores=[0.5], schedule="constant_with_warmup")
    before = weights(run)
    train(run)
    assert run.watcher.of("train/learning_rate") == [0.0]
    assert same(weights(run), before)


# ── fp16: updates that the scaler skips ────────────────────────────────────────────────────────────────────────


def test_a_skipped_update_moves_neither_the_schedule_nor_the_weights(tmp_path: Path) -> None:
    # A real scaler, on the CPU, where some gradients are made to overflow.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=10_000)
    run = make_run(tmp_path, examples=40, micro=4, epochs=2, rate=1e-3, scaler=scaler, eval_steps=1)
    overflows = {0, 1, 7, 19}
    updates = itertools.count()
    run.model.classifier.bias.register_hook(lambda gradient: gradient * (math.inf if next(updates) in overflows else 1))
    snapshots = [weights(run)]
    evaluate = run.evaluate

    def remembering(between: Any) -> Any:
        snapshots.append(weights(run))
        return evaluate(between)

    run.evaluate = remembering
    progress = train(run)
    skipped = [update in overflows for update in range(20)]
    assert progress.step == 20
    assert progress.skipped == 4
    scales = [2.0**16, *run.watcher.of("train/loss_scale")]
    assert [after / before for before, after in itertools.pairwise(scales)] == [0.5 if it else 1.0 for it in skipped]
    assert run.watcher.of("train/skipped_steps") == list(itertools.accumulate(map(int, skipped)))
    for was_skipped, (before, after) in zip(skipped, itertools.pairwise(snapshots), strict=True):
        assert same(before, after) == was_skipped
    rates = [*run.watcher.of("train/learning_rate"), run.scheduler.get_last_lr()[0]]
    for was_skipped, (before, after) in zip(skipped, itertools.pairwise(rates), strict=True):
        assert (before == after) == was_skipped
    assert rates[-1] == pytest.approx(1e-3 * progress.skipped / 20)
    assert all(math.isfinite(loss) for loss in run.watcher.of("train/loss"))


class Hook:
    """Records what the loop tells it."""

    def __init__(self, run: Training) -> None:
        self._run = run
        self.before: list[torch.Tensor] = []
        self.after: list[torch.Tensor] = []
        self.weights: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.told: list[tuple[int, float | None]] = []

    @property
    def _bias(self) -> torch.nn.Parameter:
        return self._run.model.classifier.bias

    def before_step(self) -> None:
        self.before.append(self._bias.grad.clone())
        self.weights.append((self._bias.detach().clone(), self._bias.detach()))

    def after_step(self, step: int, skipped: torch.Tensor | None) -> None:
        self.after.append(self._bias.grad.clone())
        self.weights[-1] = (self.weights[-1][0], self._bias.detach().clone())
        self.told.append((step, None if skipped is None else float(skipped)))


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e-3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_method_s_hook_gets_every_update(tmp_path: Path, accumulation: int, max_grad_norm: float) -> None:
    run = make_run(tmp_path, examples=40, micro=4, accumulation=accumulation, max_grad_norm=max_grad_norm)
    run.hook = hook = Hook(run)
    train(run)
    assert hook.told == [(step, None) for step in range(1, 10 // accumulation + 1)]
    for before, after in zip(hook.before, hook.after, strict=True):
        assert torch.equal(before, after) == (max_grad_norm == 0)  # clipped in between
    assert all(not torch.equal(*pair) for pair in hook.weights)  # the optimizer stepped in between


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e3])
def test_a_method_s_hook_gets_true_gradients_and_learns_which_updates_fp16_skips(
    tmp_path: Path, max_grad_norm: float
) -> None:
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=10_000)):
        run = make_run(tmp_path, examples=40, micro=4, scaler=scaler, max_grad_norm=max_grad_norm)
        if scaler is not None:
            run.accelerator.native_amp, run.accelerator.state._mixed_precision = True, "fp16"
            factors = iter([1.0, 1.0, 1.0, math.inf, *[1.0] * 6])
            run.model.classifier.weight.register_hook(lambda grad, factors=factors: grad * next(factors))
        run.hook = hook = Hook(run)
        train(run)
        found.append(hook)
    plain, scaled = found
    assert scaled.told == [(step, float(step == 4)) for step in range(1, 11)]
    for expected, got in list(zip(plain.before, scaled.before, strict=True))[:4]:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)
    assert [torch.equal(*pair) for pair in scaled.weights] == [step == 4 for step in range(1, 11)]


# ── Evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("eval_steps", "expected"), [(None, [5, 10]), (3, [3, 6, 9, 10]), (4, [4, 8, 10]), (99, [10])])
def test_when_it_evaluates(tmp_path: Path, eval_steps: int | None, expected: list[int]) -> None:
    run = make_run(tmp_path, micro=4, accumulation=2, epochs=2, eval_steps=eval_steps, logging_steps=7)
    train(run)
    assert [step for step, values in run.watcher.lines if "eval/accuracy" in values] == expected
    # A run logs at every evaluation and every 7 updates, but never twice at one update.
    assert [step for step, _ in run.watcher.lines] == sorted({*expected, 7})


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_evaluating_in_the_middle_changes_nothing(tmp_path: Path, dropout: float) -> None:
    options: dict[str, Any] = {"micro": 4, "accumulation": 2, "epochs": 3, "dropout": dropout}
    plain = fresh_run(tmp_path, **options)
    train(plain)
    watched = fresh_run(tmp_path, **options, eval_steps=1)
    train(watched)
    assert len(watched.watcher.of("eval/accuracy")) == 15
    assert watched.progress.step == plain.progress.step
    assert watched.watcher.of("train/loss") == plain.watcher.of("train/loss")
    assert same(weights(watched), weights(plain))
    assert watched.model.training


def test_the_best_metric_is_logged_at_every_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=4, scores=[0.5, 0.75, 0.25, 0.75])
    train(run)
    assert run.watcher.of("eval/accuracy") == [0.5, 0.75, 0.25, 0.75]
    assert run.watcher.of("eval/best_accuracy") == [0.5, 0.75, 0.75, 0.75]


# ── The best state, and stopping early ───────────────────────────────────────────────────────────────────────────


def states_at_evaluations(run: Training) -> list[dict[str, torch.Tensor]]:
    """A list that fills with the weights at every evaluation."""
    states: list[dict[str, torch.Tensor]] = []
    evaluate = run.evaluate

    def remembering(between: Any) -> Any:
        states.append(weights(run))
        return evaluate(between)

    run.evaluate = remembering
    return states


def test_the_best_state_is_kept_and_put_back(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=4, scores=[0.5, 0.75, 0.25, 0.75])
    states = states_at_evaluations(run)
    progress = train(run)
    assert progress.best == {"accuracy": 0.75, "loss": 1.0, "step": 20}
    assert progress.last["step"] == 40
    assert same(weights(run), states[3])
    assert not same(states[1], states[3])
    keep_best(run)
    assert same(weights(run), states[1]), "of two equal scores and losses, the first"


def test_of_equal_scores_the_smallest_loss_is_the_best_which_ends_no_waiting(tmp_path: Path) -> None:
    pairs = [(0.5, 0.9), (0.75, 0.8), (0.75, 0.6), (0.5, 0.1), (0.75, 0.7), (0.75, math.nan), (0.75, 0.5)]
    scores, losses = zip(*pairs, strict=True)
    run = make_run(tmp_path, epochs=7, scores=list(scores), losses=list(losses), patience=6)
    states = states_at_evaluations(run)
    progress = train(run)
    assert progress.best == {"accuracy": 0.75, "loss": 0.5, "step": 70}
    assert progress.stale == 5 and not progress.stopped_early
    keep_best(run)
    assert same(weights(run), states[6])
    assert run.watcher.of("eval/best_accuracy") == [0.5] + 6 * [0.75]


@pytest.mark.parametrize(
    ("patience", "scores", "evaluations"),
    [
        (1, [0.5, 0.6, 0.6, 0.9, 0.9], 3),  # equal is not better
        (2, [0.5, 0.4, 0.6, 0.5, 0.5], 5),  # a better one resets the count
        (2, [0.5, 0.4, 0.3, 0.9, 0.9], 3),
        (0, [0.5, 0.4, 0.3, 0.2, 0.1], 5),  # never
        (9, [0.5, 0.4, 0.3, 0.2, 0.1], 5),
    ],
)
def test_patience(tmp_path: Path, patience: int, scores: list[float], evaluations: int) -> None:
    run = make_run(tmp_path, epochs=5, scores=scores, patience=patience)
    progress = train(run)
    assert run.watcher.of("eval/accuracy") == scores[:evaluations]
    assert progress.step == 10 * evaluations
    assert progress.best["accuracy"] == max(scores[:evaluations])
    assert progress.stopped_early == (evaluations < 5 or patience == 2)
    assert [line.startswith("stopped early: ") for line in run.watcher.said] == [True] * progress.stopped_early
    run.watcher.said.clear()
    train(run)  # as a resumed run that is to be longer does
    nothing = f"the run stopped early at step {progress.step}: nothing is left to train"
    assert run.watcher.said == [nothing] * progress.stopped_early and progress.step == 10 * evaluations


def test_of_losses_the_smallest_is_the_best(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=6, rate=1e-2, best_metric="loss", patience=2)
    progress = train(run)
    losses = run.watcher.of("eval/loss")
    assert run.watcher.of("eval/best_loss") == list(itertools.accumulate(losses, min))
    assert progress.best["loss"] == min(losses) and progress.best["step"] == 10 * (1 + losses.index(min(losses)))
    assert progress.stopped_early and len(losses) - losses.index(min(losses)) == 1 + 2


def test_a_layer_that_is_dropped_in_a_whole_window_takes_part_in_the_update(tmp_path: Path) -> None:
    """As it does where the window is cut into more micro-batches, in one of which it is not dropped."""
    loha = {"peft_type": "loha", "peft_kwargs": '{"module_dropout": 0.7}'}
    run = make_run(tmp_path, examples=24, micro=4, method="peft", flags=loha)
    progress = train(run)
    assert {int(state["step"]) for state in run.optimizer.state.values()} == {progress.step}
    assert len(run.optimizer.state) == len(run.parameters)


def test_stopping_in_the_middle_of_an_epoch_leaves_no_loader_active(tmp_path: Path) -> None:
    """An active loader would make the next run on this accelerator miss its last update."""
    run = make_run(tmp_path, epochs=5, scores=[0.5, 0.4], patience=1, eval_steps=2)
    progress = train(run)
    assert (progress.step, progress.epochs) == (4, 0.4)
    assert not run.accelerator.gradient_state.in_dataloader


@pytest.mark.parametrize("scores", [[math.nan, 0.25, math.nan], [0.25, math.nan, math.nan]])
def test_a_score_that_is_no_number_is_never_the_best(tmp_path: Path, scores: list[float]) -> None:
    run = make_run(tmp_path, epochs=3, scores=scores)
    assert train(run).best["accuracy"] == 0.25


# ── Non-finite loss, clipping, synchronisation ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("logging_steps", [1, 5])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_the_rate(tmp_path: Path, logging_steps: int) -> None:
    run = make_run(tmp_path, rate=1e-3, logging_steps=logging_steps)
    optimizer, updates = run.optimizer.optimizer, itertools.count(1)

    def break_after_two(*_: object) -> None:
        if next(updates) == 2:
            next(run.model.parameters()).data.fill_(math.inf)

    optimizer.register_step_post_hook(break_after_two)
    with pytest.raises(RunError, match=r"loss is nan at step 3 \(learning rate 0.0008\).*--learning_rate") as caught:
        train(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_clips_once_per_update_to_the_norm_over_the_whole_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    run = make_run(tmp_path, examples=32, micro=16 // accumulation, accumulation=accumulation, max_grad_norm=0.01)
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def counting(parameters: Any, norm: float) -> torch.Tensor:
        kept = list(parameters)
        before = clip(kept, norm)
        after = torch.linalg.vector_norm(torch.stack([parameter.grad.norm() for parameter in kept]))
        norms.append(float(after))
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counting)
    progress = train(run)
    assert norms == pytest.approx([0.01] * progress.step, rel=1e-3)
    assert progress.step == 2
    assert all(norm > 0.1 for norm in run.watcher.of("train/grad_norm")), "the logged norm is that before clipping"


def test_the_clipped_norm_does_not_depend_on_the_accumulation(tmp_path: Path) -> None:
    norms = []
    for accumulation in (1, 4):
        run = fresh_run(
            tmp_path, examples=21, micro=16 // accumulation, accumulation=accumulation, max_grad_norm=1.0, epochs=2
        )
        train(run)
        norms.append(run.watcher.of("train/grad_norm"))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


class Synchronisations(TorchDispatchMode):
    """Count where the host waits for the device: `.item()`, `float()`, `.tolist()`, `if tensor:`.

    This excludes what libraries do: AdamW's counters and the loader's seed are on the CPU anyway, and transformers
    reads the attention mask to choose a kernel.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        tolist = torch.Tensor.tolist  # reads memory without dispatching an operation

        def counting(tensor: torch.Tensor) -> Any:
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counting)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            files = {Path(frame.filename) for frame in traceback.extract_stack()}
            others = ("masking_utils.py", "adam.py", "dataloader.py")
            self.count += not any(file.name in others for file in files)
        return function(*args, **(kwargs or {}))


def test_a_micro_batch_makes_the_host_wait_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    batch = run.loader.collate_fn(run.loader.dataset.__getitems__(next(iter(run.batches))))
    with Synchronisations(monkeypatch) as synchronisations:
        share = train_step(run.accelerator, run.model, batch)
        assert synchronisations.count == 0
        assert share.item() > 0
        assert synchronisations.count == 1, "the counter counts"


def test_the_kernel_of_the_loss_steps_aside_for_scores() -> None:
    """The fused loss is for classes only, and with a single class any logit would be right."""
    batch = {"attention_mask": torch.zeros(3, 1, 1, 32, dtype=torch.int32)}
    batch |= {
        "example": torch.arange(3),
        "labels": torch.tensor([1.0, 5.0, 0.0]),
        "weight": torch.tensor([0.5, 0.5, 0]),
    }
    logits = torch.tensor([[2.0], [3.0], [7.0]], requires_grad=True)
    accelerator = SimpleNamespace(num_processes=1, scaler=None)
    loss = train_step(accelerator, lambda **inputs: SimpleNamespace(logits=logits), batch)
    assert loss.item() == 0.5 * 1 + 0.5 * 4
    assert logits.grad.tolist() == [[1.0], [-2.0], [0.0]]


def test_the_kernel_of_the_loss_steps_aside_for_smoothed_labels() -> None:
    batch = {"attention_mask": torch.zeros(3, 1, 1, 32, dtype=torch.int32)}
    batch |= {"example": torch.arange(3), "labels": torch.tensor([1, 0, 0]), "weight": torch.tensor([0.75, 0.25, 0])}
    logits = torch.tensor([[2.0, 0.0], [3.0, 1.0], [7.0, 0.0]], requires_grad=True)
    accelerator = SimpleNamespace(num_processes=1, scaler=None)
    loss = train_step(accelerator, lambda **inputs: SimpleNamespace(logits=logits), batch, smoothing=0.2)
    right, wrong = -math.log(1 / (1 + math.exp(-2))), -math.log(1 / (1 + math.exp(2)))
    assert loss.item() == pytest.approx(0.75 * (0.9 * wrong + 0.1 * right) + 0.25 * (0.9 * right + 0.1 * wrong))


def test_a_run_s_label_smoothing_changes_its_training_loss_and_no_evaluation(tmp_path: Path) -> None:
    found = {}
    for smoothing in (0.0, 0.5):
        run = fresh_run(tmp_path, rate=0.0, label_smoothing=smoothing)
        train(run)
        found[smoothing] = run.watcher.of("train/loss"), run.watcher.of("eval/loss")
    assert found[0.0][0] != found[0.5][0]
    assert found[0.0][1] == found[0.5][1] != []


def test_class_weights_change_the_training_loss_and_no_evaluation(tmp_path: Path) -> None:
    found = {}
    for weights in ((), (1.0, 9.0)):
        run = fresh_run(tmp_path, rate=0.0, class_weights=weights)
        train(run)
        found[weights] = run.watcher.of("train/loss"), run.watcher.of("eval/loss")
    assert found[()][0] != found[1.0, 9.0][0]
    assert found[()][1] == found[1.0, 9.0][1] != []


@pytest.mark.parametrize("method", ["full", "adalora"])
@pytest.mark.parametrize("logging_steps", [1, 5, 10])
@pytest.mark.parametrize(("max_grad_norm", "per_log"), [(0.0, 1), (1.0, 2)])
def test_the_host_waits_for_the_losses_of_a_log_and_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logging_steps: int, max_grad_norm: float, per_log: int, method: str
) -> None:
    run = make_run(
        tmp_path,
        examples=40,
        micro=1,
        accumulation=4,
        logging_steps=logging_steps,
        max_grad_norm=max_grad_norm,
        scores=[0.5],
        method=method,
    )
    with Synchronisations(monkeypatch) as synchronisations:
        train(run)
    assert synchronisations.count == per_log * 10 // logging_steps


def test_the_logged_loss_is_the_windows_mean(tmp_path: Path) -> None:
    """At rate 0 the weights do not change, so every split of the same examples has the same losses."""
    losses = {}
    for micro, accumulation in ((16, 1), (4, 4), (1, 16)):
        run = fresh_run(tmp_path, micro=micro, accumulation=accumulation, rate=0.0)
        progress = train(run)
        losses[micro] = run.watcher.of("train/loss")
        assert progress.loss_sum / progress.step == pytest.approx(sum(losses[micro]) / 3)
    assert len(losses[16]) == 3
    assert losses[4] == pytest.approx(losses[16], abs=1e-6)
    assert losses[1] == pytest.approx(losses[16], abs=1e-6)


def test_training_time_leaves_evaluation_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from peftlib.training import state

    now = [0.0]
    monkeypatch.setattr(state, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    run = make_run(tmp_path, examples=40, epochs=2, scores=[0.5, 0.6])
    advance, evaluate = run.watcher.advance, run.evaluate

    def second_of_training(step: int) -> None:
        now[0] += 1.0
        advance(step)

    def minute_of_evaluation(between: Any) -> Any:
        now[0] += 60.0
        return evaluate(between)

    run.watcher.advance = second_of_training
    run.evaluate = minute_of_evaluation
    progress = train(run)
    assert progress.train_seconds == 20.0
    assert run.watcher.of("train/samples_per_second") == [4.0] * 20
