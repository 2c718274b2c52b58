"""The state of a run: its plan, its progress, and the objects it works with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from peftlib.acceleration.graphs import Step
from peftlib.data.batching import WindowBatches
from peftlib.errors import RunError
from peftlib.evaluation.evaluator import Between, Evaluation
from peftlib.strategies.base import StepHook
from peftlib.tracking.reporter import Reporter
from peftlib.training.interruption import Interruption
from peftlib.training.scaling import Verdict

if TYPE_CHECKING:
    from peftlib.training.checkpointing import CheckpointKeeper

#: What may help when a loss or a weight is not finite.
IF_NOT_FINITE = "try a smaller --learning_rate, more --num_warmup_steps, or --mixed_precision no"


@dataclass(frozen=True)
class Plan:
    """Length of the run, and settings for evaluation, logging, clipping, early stopping and the training loss.

    Attributes:
        steps: updates in the whole run.
        epochs: passes over the data, the last one possibly cut short.
        eval_steps: updates between evaluations; None evaluates after each epoch. The last update is always evaluated.
        logging_steps: updates between logs, for which the loss is fetched from the device.
        max_grad_norm: global L2 norm to clip gradients to; 0 neither clips nor measures it.
        patience: evaluations without a better score before the run stops; 0 never stops it.
        best_metric: the metric, or the loss, that decides early stopping and the best state.
        label_smoothing: share of the uniform distribution in the training loss's targets.
    """

    steps: int
    epochs: int
    eval_steps: int | None
    logging_steps: int
    max_grad_norm: float
    patience: int
    best_metric: str
    label_smoothing: float = 0.0

    @classmethod
    def of(
        cls,
        windows_per_epoch: int,
        epochs: float,
        max_steps: int | None,
        *,
        eval_steps: int | None,
        logging_steps: int,
        max_grad_norm: float,
        patience: int,
        best_metric: str,
        label_smoothing: float = 0.0,
    ) -> Plan:
        """Plan `max_steps` updates if given, else `epochs`, rounded up to whole updates.

        This follows transformers' Trainer (`set_initial_training_values`).
        """
        steps = math.ceil(epochs * windows_per_epoch) if max_steps is None else max_steps
        epochs = math.ceil(steps / windows_per_epoch)
        return cls(steps, epochs, eval_steps, logging_steps, max_grad_norm, patience, best_metric, label_smoothing)

    def evaluates(self, step: int, epoch_ends: bool) -> bool:
        """Return whether to evaluate after this update."""
        due = epoch_ends if self.eval_steps is None else step % self.eval_steps == 0
        return due or step == self.steps


@dataclass
class Progress:
    """The position of a run, and its results so far.

    Attributes:
        epoch: completed passes over the data.
        window: windows completed in the current epoch.
        step: windows completed in total: the x-axis of every curve.
        skipped: updates that fp16's scaler skipped because of an overflow.
        examples: training examples, up to the last log.
        loss_sum: sum of the windows' mean losses, up to the last log.
        train_seconds: wall time of training, evaluation excluded.
        best: the metrics of the best evaluation so far, with its `step`.
        last: the metrics of the latest evaluation.
        history: the metrics of every evaluation, each with its `step`.
        stale: evaluations since the best one.
        stopped_early: whether patience ran out.
        windows_per_epoch: updates in one pass over the data.
        earlier_cuts: how the effective batch was cut before a resumed run changed that, each `until` some step.
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
    earlier_cuts: list[dict[str, int]] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        """Passes over the data, including the fraction of the current one."""
        return self.epoch + self.window / self.windows_per_epoch


@dataclass
class Recent:
    """Statistics of the updates since the last log. Losses stay on the device until they are needed.

    Attributes:
        losses: one scalar per update, this process's share of the window's loss.
        rates: the learning rate of each of these updates.
        norm: gradient norm at the latest update; None if it is not measured.
        examples: training examples, over all processes.
        seconds: wall time of training.
    """

    losses: list[torch.Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    norm: torch.Tensor | None = None
    examples: int = 0
    seconds: float = 0.0


@dataclass
class Training:
    """The prepared objects of a run, and its mutable state.

    Attributes:
        eval_loader: over the validation split, prepared.
        evaluate: scores the model on the validation split; calls its argument between batches.
        cuda_graphs: replay forward and backward as CUDA graphs where possible.
        step: forward and backward of one micro-batch, set by `loop.make_ready`.
        parameters: the trained ones, in the model's order.
        loss_scale: fp16's, after the last update that was settled.
        verdict: of the latest fp16 update, until `settle` reads it.
        hook: what the method does at every update; None does nothing.
        keeper: writes checkpoints; None writes none.
        due: values to log with the last update's evaluation while that is still to come, else None.
        interruption: reports signals; None never stops the run.
        random: every generator's state at the start of the current window. A checkpoint holds it, since a run that is
            stopped inside a window repeats that window. Between windows it is captured when a checkpoint is written.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    loader: DataLoader
    eval_loader: DataLoader
    batches: WindowBatches
    evaluate: Callable[[Between | None], Evaluation]
    watcher: Reporter
    plan: Plan
    cuda_graphs: bool = True
    step: Step | None = None
    parameters: list[nn.Parameter] = field(default_factory=list)
    loss_scale: float = 1.0
    verdict: Verdict | None = None
    hook: StepHook | None = None
    keeper: CheckpointKeeper | None = None
    interruption: Interruption | None = None
    progress: Progress = field(default_factory=Progress)
    recent: Recent = field(default_factory=Recent)
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    due: dict[str, float] | None = None
    _clock: float | None = None

    def set_micro_batch(self, size: int, accumulation_steps: int) -> None:
        """Change how windows are split into micro-batches; call it before or between epochs."""
        self.batches.resize(size, accumulation_steps)
        self.accelerator.gradient_accumulation_steps = accumulation_steps

    def settle(self) -> None:
        """Step the schedule for the latest fp16 update, or count it as skipped, unless that is done already."""
        if self.verdict is None:
            return
        scale, self.verdict = self.verdict.scale(), None
        if scale < self.loss_scale:
            self.progress.skipped += 1
        else:
            self.scheduler.step()
        self.loss_scale = scale

    def losses_since_log(self) -> list[float]:
        """Fetch the losses of the updates since the last log, the same on every process.

        Apart from fp16's `Verdict`, this is the loop's only host-device synchronisation.

        Raises:
            RunError: a loss is not finite.
        """
        recent = self.recent
        if not recent.losses:
            return []
        # A window's loss is the sum of its shares on all processes.
        losses: list[float] = self.accelerator.reduce(torch.stack(recent.losses), reduction="sum").tolist()
        first = self.progress.step - len(losses) + 1
        for step, (loss, rate) in enumerate(zip(losses, recent.rates, strict=True), first):
            if not math.isfinite(loss):
                way = IF_NOT_FINITE
                if step == 1:  # nothing has been trained yet
                    way = (
                        "try --mixed_precision no, another base model (this one's weights may be damaged) or, in "
                        "regression, numbers of the order of 1"
                    )
                raise RunError(f"the loss is {loss} at step {step} (learning rate {rate:.3g}); {way}")
        return losses

    def start_clock(self) -> None:
        """Start counting time as training, unless that has begun."""
        if self._clock is None:
            self._clock = time.perf_counter()

    def stop_clock(self) -> None:
        """Count the time since `start_clock` as training, but not what follows (an evaluation, a checkpoint)."""
        if self._clock is not None:
            seconds = time.perf_counter() - self._clock
            self.progress.train_seconds += seconds
            self.recent.seconds += seconds
            self._clock = None
