"""The training loop, smallest first: `train_step` (a micro-batch), `update` (a window), `train_epoch`, `train`."""

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
from peftlib.errors import Interrupted, RunError
from peftlib.evaluation.evaluator import Evaluation
from peftlib.strategies.parameters import load_trained_state, trained_state
from peftlib.training.accumulation import backward, weighted_loss
from peftlib.training.interruption import EXIT_STATUS, Interruption
from peftlib.training.randomness import capture_random, restore_random


class Watcher(Protocol):
    """Who is told how the run goes (see `tracking/reporter.py`)."""

    def advance(self, step: int) -> None:
        """An update is done."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Values at an update; called at most once per update, on every process."""


class Keeper(Protocol):
    """Who writes checkpoints (see `training/checkpointing.py`)."""

    def is_due(self, step: int, epoch_ends: bool) -> bool:
        """Whether one is wanted after this update."""

    def save(self, training: Training) -> bool:
        """Write one, called on every process; False when it could not be written (the run goes on)."""


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
        history: the metrics of every evaluation, each with its `step`.
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
    history: list[dict[str, float]] = field(default_factory=list)
    stale: int = 0
    stopped_early: bool = False
    windows_per_epoch: int = 1

    @property
    def epochs(self) -> float:
        """Passes over the data, the started one as a fraction."""
        return self.epoch + self.window / self.windows_per_epoch


@dataclass
class Recent:
    """The updates since the last log. Losses stay on the device until they are wanted.

    Attributes:
        losses: one scalar per update, this process's share of the window's loss.
        rates: the learning rate of each of these updates.
        norm: the gradient's norm at the latest update, where it is measured.
        examples: over all processes.
        seconds: wall time spent on them.
    """

    losses: list[torch.Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    norm: torch.Tensor | None = None
    examples: int = 0
    seconds: float = 0.0


@dataclass
class Training:
    """What a run works with: the prepared objects, and what changes as it goes.

    Attributes:
        evaluate: scores the model on the validation split.
        keeper: writes checkpoints; None keeps nothing.
        interruption: tells of signals; None never stops.
        random: every generator's state at the start of the current window: what a checkpoint has to hold, since a
            run that is stopped inside a window starts that window anew.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    loader: DataLoader
    batches: WindowBatches
    evaluate: Callable[[], Evaluation]
    watcher: Watcher
    plan: Plan
    keeper: Keeper | None = None
    interruption: Interruption | None = None
    progress: Progress = field(default_factory=Progress)
    recent: Recent = field(default_factory=Recent)
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    _clock: float = 0.0

    def start_clock(self) -> None:
        """What follows is training."""
        self._clock = time.perf_counter()

    def stop_clock(self) -> None:
        """Book the time since `start_clock` as training; what follows (evaluation, a checkpoint) is not."""
        seconds = time.perf_counter() - self._clock
        self.progress.train_seconds += seconds
        self.recent.seconds += seconds
        self.start_clock()


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


def train(training: Training) -> Progress:
    """Run to the end of the plan, or until patience runs out; leaves the best trained state in `best_state`.

    `training` may come from a checkpoint: it goes on where that one was.

    Raises:
        RunError: the loss is no longer finite, or a process that prepares batches died.
        Interrupted: a signal asked for it, and the run can be resumed.
    """
    progress = training.progress
    progress.windows_per_epoch = training.batches.windows_per_epoch
    training.model.train()
    if training.random:
        restore_random(training.random)
    else:
        training.random = capture_random()
    training.start_clock()
    while progress.step < training.plan.steps and not progress.stopped_early:
        try:
            train_epoch(training)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # torch says so where it notices; else the pipe to the worker breaks.
            if "DataLoader worker" not in str(error) and isinstance(error, RuntimeError):
                raise
            # No checkpoint now: torch raises this from a signal handler, maybe in the middle of an update.
            raise RunError(
                f"a process that prepares batches died ({' '.join(str(error).split())[:200]}); use "
                "--dataloader_num_workers 0; a run with checkpoints goes on with --resume_from_checkpoint auto"
            ) from error
    return progress


def train_epoch(training: Training) -> None:
    """From the current window to the end of the epoch, or of the run."""
    progress, accelerator = training.progress, training.accelerator
    windows = training.batches.windows(progress.epoch)
    left = training.plan.steps - progress.step
    training.batches.set_position(progress.epoch, progress.window, progress.window + left)
    shares: list[torch.Tensor] = []
    for batch in training.loader:
        with accelerator.accumulate(training.model):
            shares.append(train_step(accelerator, training.model, batch))
            if accelerator.sync_gradients:
                training.recent.rates.append(float(training.scheduler.get_last_lr()[0]))
                training.recent.norm = update(training)
        if accelerator.sync_gradients:
            training.recent.losses.append(torch.stack(shares).sum())
            training.recent.examples += len(windows[progress.window])
            shares = []
            finish_window(training)
        stop_if_asked(training)
        if progress.stopped_early:
            training.loader.end()  # type: ignore[attr-defined] # a prepared loader that is left early stays "active" otherwise
            return


def finish_window(training: Training) -> None:
    """After an update: count it, and log, evaluate and keep a checkpoint where one is due."""
    progress, plan, keeper = training.progress, training.plan, training.keeper
    progress.step += 1
    progress.window += 1
    if epoch_ends := progress.window == progress.windows_per_epoch:
        progress.epoch, progress.window = progress.epoch + 1, 0
    training.watcher.advance(progress.step)

    evaluates = epoch_ends if plan.eval_steps is None else progress.step % plan.eval_steps == 0
    if evaluates or progress.step == plan.steps or progress.step % plan.logging_steps == 0:
        values = _flush(training)
        if evaluates or progress.step == plan.steps:
            values |= _evaluate(training)
        training.watcher.log(values, progress.step)
        training.start_clock()
    training.random = capture_random()
    if keeper is not None and keeper.is_due(progress.step, epoch_ends):
        _keep(training, keeper)


def stop_if_asked(training: Training) -> None:
    """Between micro-batches: end the run at a signal, with a checkpoint of the last whole update.

    Raises:
        Interrupted: a signal arrived.
    """
    if training.interruption is None or training.progress.step == training.plan.steps:
        return
    number = training.interruption.requested()
    if number is None:
        return
    kept = training.keeper is not None and _keep(training, training.keeper)
    raise Interrupted(number.name, training.progress.step, EXIT_STATUS[number], kept)


def losses_since_log(training: Training) -> list[float]:
    """Fetch the losses of the updates since the last log, the same on every process.

    The loop's only synchronisation of host and device.

    Raises:
        RunError: one of them is not finite.
    """
    recent = training.recent
    if not recent.losses:
        return []
    # A window's loss is the sum of the processes' shares.
    losses: list[float] = training.accelerator.reduce(torch.stack(recent.losses), reduction="sum").tolist()
    for step, (loss, rate) in enumerate(
        zip(losses, recent.rates, strict=True), training.progress.step - len(losses) + 1
    ):
        if not math.isfinite(loss):
            raise RunError(
                f"the loss is {loss} at step {step} (learning rate {rate:.3g}); try a "
                "smaller --learning_rate, more --num_warmup_steps, or --mixed_precision no"
            )
    return losses


def keep_best(training: Training) -> None:
    """Put the trained state of the best evaluation back into the model."""
    load_trained_state(training.accelerator.unwrap_model(training.model), training.best_state)


def _keep(training: Training, keeper: Keeper) -> bool:
    """Write a checkpoint; its time is not training time."""
    training.stop_clock()
    kept = keeper.save(training)
    training.start_clock()
    return kept


def _flush(training: Training) -> dict[str, float]:
    """The values of a log, and a fresh start for what follows it."""
    progress = training.progress
    losses = losses_since_log(training)
    training.stop_clock()
    recent, training.recent = training.recent, Recent()
    progress.loss_sum += sum(losses)
    progress.examples += recent.examples
    values = {
        "train/loss": sum(losses) / len(losses),
        "train/learning_rate": recent.rates[-1],
        "train/epoch": progress.epochs,
        "train/global_step": float(progress.step),
    }
    if recent.seconds > 0:
        values["train/samples_per_second"] = recent.examples / recent.seconds
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
    progress.history.append(progress.last)
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
