"""The training loop: `train_step` (a micro-batch), `update` (what follows a window), `train` (the run)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from peftlib.data.batching import WindowBatches
from peftlib.data.encoding import split_inputs
from peftlib.errors import RunError
from peftlib.evaluation.evaluator import Evaluation
from peftlib.strategies.parameters import load_trained_state, trained_state
from peftlib.training.accumulation import backward, weighted_loss


class Watcher(Protocol):
    """Who is told how the run goes (see `tracking/reporter.py`)."""

    def advance(self, step: int) -> None:
        """An update is done."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Values at an update; called at most once per update, on every process."""


@dataclass(frozen=True)
class Plan:
    """How long, how often, by what.

    Attributes:
        steps: updates in the whole run.
        epochs: passes over the data, the last one possibly cut short.
        eval_steps: evaluate every so many updates; None at the end of each epoch. The last update always is.
        logging_steps: fetch the loss from the device every so many updates.
        max_grad_norm: global L2 norm to clip to; 0 does not clip (and does not measure).
        patience: evaluations without a better score before the run stops; 0 for never.
        best_metric: which metric is the score; larger is better.
    """

    steps: int
    epochs: int
    eval_steps: int | None
    logging_steps: int
    max_grad_norm: float
    patience: int
    best_metric: str

    @classmethod
    def of(cls, windows_per_epoch: int, epochs: int, max_steps: int | None, **options: Any) -> Plan:
        """`max_steps`, where given, decides instead of `epochs`."""
        steps = epochs * windows_per_epoch if max_steps is None else max_steps
        return cls(steps=steps, epochs=math.ceil(steps / windows_per_epoch), **options)


@dataclass
class Progress:
    """Where a run is, and what it has seen so far.

    Attributes:
        epoch: complete passes over the data.
        window: windows done in the current epoch.
        step: windows done in all: the x-axis of every curve.
        skipped: updates that fp16's scaler refused because of an overflow.
        examples: training examples done.
        loss_sum: sum of the windows' mean losses.
        train_seconds: wall time of training, evaluation excluded.
        best: the metrics of the best evaluation so far, with its `step`.
        last: the metrics of the latest evaluation.
        stale: evaluations since the best one.
        stopped_early: patience ran out.
        windows_per_epoch: updates in one pass over the data.
    """

    epoch: int = 0
    window: int = 0
    step: int = 0
    skipped: int = 0
    examples: int = 0
    loss_sum: float = 0.0
    train_seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    stopped_early: bool = False
    windows_per_epoch: int = 1

    @property
    def epochs(self) -> float:
        """Passes over the data, the started one as a fraction."""
        return self.epoch + self.window / self.windows_per_epoch


@dataclass
class Training:
    """What a run works with: the prepared objects, and what changes as it goes."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    loader: DataLoader
    batches: WindowBatches
    evaluate: Callable[[], Evaluation]
    watcher: Watcher
    plan: Plan
    progress: Progress = field(default_factory=Progress)
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)


def train_step(accelerator: Accelerator, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Forward and backward of one micro-batch.

    Returns:
        Its share of the window's loss on this process: a scalar that stays on the device.
    """
    inputs, targets = split_inputs(batch)
    loss = weighted_loss(model(**inputs).logits, targets.labels, targets.weight)
    backward(accelerator, loss)
    return loss.detach()


def update(training: Training) -> torch.Tensor | None:
    """Clip, step the optimizer, and step the schedule unless fp16's scaler refused the update.

    Returns:
        The gradient's global L2 norm before clipping, on the device; None when it is not measured.
    """
    accelerator, optimizer = training.accelerator, training.optimizer
    norm = None
    if training.plan.max_grad_norm > 0:
        # Unscales fp16's gradients first; a bare torch.nn.utils.clip_grad_norm_ would clip the scaled ones.
        norm = accelerator.clip_grad_norm_(training.model.parameters(), training.plan.max_grad_norm)
    scaler = accelerator.scaler
    scale = scaler.get_scale() if scaler is not None else 0.0
    optimizer.step()
    optimizer.zero_grad()
    # The scale falls exactly when the update was skipped (`optimizer_step_was_skipped` misses it with a fused
    # AdamW, https://github.com/huggingface/accelerate/issues/4242).
    if scaler is not None and scaler.get_scale() < scale:
        training.progress.skipped += 1
    else:
        training.scheduler.step()
    return norm


class _Recent:
    """Losses and norms of the updates since the last log, kept on the device until they are wanted."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.rates: list[float] = []
        self.norm: torch.Tensor | None = None
        self.examples = 0
        self.seconds = 0.0


def train(training: Training) -> Progress:
    """Run to the end of the plan, or until patience runs out; leaves the best trained state in `best_state`.

    Raises:
        RunError: the loss is no longer finite.
    """
    plan, progress, batches = training.plan, training.progress, training.batches
    progress.windows_per_epoch = batches.windows_per_epoch
    training.model.train()
    recent = _Recent()
    clock = time.perf_counter()
    while progress.step < plan.steps and not progress.stopped_early:
        left = plan.steps - progress.step
        windows = batches.windows(progress.epoch)
        batches.set_position(progress.epoch, progress.window, progress.window + left)
        shares: list[torch.Tensor] = []
        for batch in training.loader:
            rate = float(training.scheduler.get_last_lr()[0])
            with training.accelerator.accumulate(training.model):
                shares.append(train_step(training.accelerator, training.model, batch))
                if not training.accelerator.sync_gradients:
                    continue
                norm = update(training)
            recent.losses.append(torch.stack(shares).sum())
            shares = []
            recent.rates.append(rate)
            recent.norm = norm
            recent.examples += len(windows[progress.window])
            progress.step += 1
            progress.window += 1
            training.watcher.advance(progress.step)

            epoch_ends = progress.window == len(windows)
            last = progress.step == plan.steps
            evaluates = last or (epoch_ends if plan.eval_steps is None else progress.step % plan.eval_steps == 0)
            if not (evaluates or last or progress.step % plan.logging_steps == 0):
                continue
            values = _flush(training, recent)
            now = time.perf_counter()
            progress.train_seconds += now - clock
            recent.seconds += now - clock
            if recent.seconds > 0:
                values["train/samples_per_second"] = recent.examples / recent.seconds
            recent = _Recent()
            if evaluates:
                values |= _evaluate(training)
            training.watcher.log(values, progress.step)
            clock = time.perf_counter()
            if progress.stopped_early:
                training.loader.end()  # a prepared loader that is left early stays "active" otherwise
                break
        else:
            if progress.window == len(windows):
                progress.epoch, progress.window = progress.epoch + 1, 0
    return progress


def keep_best(training: Training) -> None:
    """Put the trained state of the best evaluation back into the model."""
    load_trained_state(training.accelerator.unwrap_model(training.model), training.best_state)


def _flush(training: Training, recent: _Recent) -> dict[str, float]:
    """Fetch the losses since the last log: the loop's only host-device synchronisation."""
    progress = training.progress
    # A window's loss is the sum of the processes' shares.
    losses = training.accelerator.reduce(torch.stack(recent.losses), reduction="sum").tolist()
    for step, (loss, rate) in enumerate(zip(losses, recent.rates, strict=True), progress.step - len(losses) + 1):
        if not math.isfinite(loss):
            raise RunError(
                f"the loss is {loss} at step {step} (learning rate {rate:.3g}); try a smaller "
                "--learning_rate, more --num_warmup_steps, or --mixed_precision no"
            )
    progress.loss_sum += sum(losses)
    progress.examples += recent.examples
    values = {
        "train/loss": sum(losses) / len(losses),
        "train/learning_rate": recent.rates[-1],
        "train/epoch": progress.epochs,
        "train/global_step": float(progress.step),
    }
    if recent.norm is not None:
        values["train/grad_norm"] = float(recent.norm)
    if training.accelerator.scaler is not None:
        values["train/loss_scale"] = training.accelerator.scaler.get_scale()
        values["train/skipped_steps"] = float(progress.skipped)
    return values


def _evaluate(training: Training) -> dict[str, float]:
    """Score the model, keep it if it is the best so far, and decide whether patience has run out.

    Every process computes the same metrics from the same gathered logits, so all decide alike.
    """
    progress, metric = training.progress, training.plan.best_metric
    progress.last = training.evaluate().metrics | {"step": progress.step}
    score = progress.last[metric]
    # A NaN is never better, and anything is better than a NaN.
    if not progress.best or score > progress.best[metric] or (math.isnan(progress.best[metric]) and score == score):
        progress.best, progress.stale = dict(progress.last), 0
        training.best_state = trained_state(training.accelerator.unwrap_model(training.model))
    else:
        progress.stale += 1
        progress.stopped_early = 0 < training.plan.patience <= progress.stale
    values = {f"eval/{name}": value for name, value in progress.last.items() if name != "step"}
    return values | {f"eval/best_{metric}": progress.best[metric]}
