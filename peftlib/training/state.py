"""What a run is made of: its plan, how far it is, and the objects it works with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from peftlib.acceleration.graphs import Step
from peftlib.data.batching import WindowBatches
from peftlib.evaluation.evaluator import Between, Evaluation
from peftlib.training.interruption import Interruption
from peftlib.training.scaling import Verdict


class Watcher(Protocol):
    """Who is told how the run goes (see `tracking/reporter.py`)."""

    def advance(self, step: int) -> None:
        """An update is done."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Values at an update; called at most once per update, on every process."""

    def update(self, **facts: Any) -> None:
        """Facts about the whole run."""

    def warn(self, line: str) -> None:
        """What must not be overlooked."""


class Keeper(Protocol):
    """Who writes checkpoints (see `training/checkpointing.py`), into `folder`, which is in the run's."""

    folder: Path

    def is_due(self, step: int, epoch_ends: bool, run_ends: bool) -> bool:
        """Whether one is wanted after this update."""

    def goes_on_from(self, checkpoint: Path) -> None:
        """The run was restored from this one."""

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
    def of(cls, windows_per_epoch: int, epochs: float, max_steps: int | None, **options: Any) -> Plan:
        """`max_steps`, where given, decides instead of `epochs`, of which a part is rounded up to whole updates.

        As transformers' Trainer does it (`set_initial_training_values`).
        """
        steps = math.ceil(epochs * windows_per_epoch) if max_steps is None else max_steps
        return cls(steps=steps, epochs=math.ceil(steps / windows_per_epoch), **options)

    def evaluates(self, step: int, epoch_ends: bool) -> bool:
        """Whether the model is scored after this update."""
        due = epoch_ends if self.eval_steps is None else step % self.eval_steps == 0
        return due or step == self.steps


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
        eval_loader: over the validation split, prepared.
        evaluate: scores the model on the validation split; calls its argument between batches.
        cuda_graphs: replay forward and backward as CUDA graphs where that is possible.
        step: forward and backward of one micro-batch, which `loop.train` chooses.
        parameters: those that train, in the model's order.
        loss_scale: fp16's, after the updates whose verdict is known.
        verdict: of the latest update in fp16, until somebody needs to know.
        keeper: writes checkpoints; None keeps nothing.
        due: the last update's values, while its evaluation is still to come and they wait to be logged with it.
        interruption: tells of signals; None never stops.
        random: every generator's state at the start of the window that is under way: what a checkpoint has to hold,
            since a run that is stopped inside a window starts that window anew. Where none is, a checkpoint takes it.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    loader: DataLoader
    eval_loader: DataLoader
    batches: WindowBatches
    evaluate: Callable[[Between | None], Evaluation]
    watcher: Watcher
    plan: Plan
    cuda_graphs: bool = True
    step: Step | None = None
    parameters: list[nn.Parameter] = field(default_factory=list)
    loss_scale: float = 1.0
    verdict: Verdict | None = None
    keeper: Keeper | None = None
    interruption: Interruption | None = None
    progress: Progress = field(default_factory=Progress)
    recent: Recent = field(default_factory=Recent)
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    due: dict[str, float] | None = None
    _clock: float | None = None

    def start_clock(self) -> None:
        """What follows is training, if it was not already."""
        if self._clock is None:
            self._clock = time.perf_counter()

    def stop_clock(self) -> None:
        """Book the time since `start_clock` as training; what follows (evaluation, a checkpoint) is not."""
        if self._clock is not None:
            seconds = time.perf_counter() - self._clock
            self.progress.train_seconds += seconds
            self.recent.seconds += seconds
            self._clock = None
