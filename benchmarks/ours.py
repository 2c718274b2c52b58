"""Our runs: set up as in `scripts/train.py`, with a meter that listens to the reporter."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn

from benchmarks.jobs import EVALUATIONS, Job
from benchmarks.meter import Meter, Speed, accuracy, resident_after_imports
from peftlib.acceleration import accelerate_model
from peftlib.arguments import parse_train_arguments
from peftlib.data.loading import build_loaders, load_splits, longest_inputs
from peftlib.data.tasks import TASKS
from peftlib.evaluation.evaluator import Between, Evaluation, predict
from peftlib.fingerprint import Fingerprint
from peftlib.modeling import find_model, load_classifier, load_tokenizer
from peftlib.strategies.parameters import ParameterCount, freeze_unread, size
from peftlib.tracking.record import describe_run
from peftlib.tracking.reporter import Reporter
from peftlib.training.data_parallel import prepare
from peftlib.training.devices import build_accelerator
from peftlib.training.loop import train
from peftlib.training.memory import fit_micro_batch
from peftlib.training.optimization import build_optimizer, build_scheduler
from peftlib.training.state import Plan, Training

#: An interval between evaluations that leaves only the one after the last update, which is not timed.
ONLY_AT_THE_END = 10**9


class TellingReporter(Reporter):
    """A reporter that also notifies a listener of every update."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.listener: Callable[[int], None] | None = None

    def advance(self, step: int) -> None:
        super().advance(step)
        if self.listener is not None:
            self.listener(step)


class Counted:
    """A loader whose batches are counted by a meter: a hook on forward would miss the replays of CUDA graphs."""

    def __init__(self, loader: Any, meter: Meter) -> None:
        self._loader, self._meter = loader, meter

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._loader:
            self._meter.count(batch)
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


@contextmanager
def prepared(job: Job, epochs: int, eval_steps: int | None) -> Iterator[tuple[Training, TellingReporter]]:
    """Set up a run as `scripts/train.py` does, ready for `train`; yield it and its reporter.

    What costs no time in an update is left out: checks of the input, checkpoints, signals, early stopping. Accuracy is
    computed without the `evaluate` package.
    """
    args = parse_train_arguments(job.argv())
    data, how, strategy = args.data, args.training, args.strategy
    task, rate = TASKS[args.task_name], args.learning_rate
    with tempfile.TemporaryDirectory(prefix="bench-run-") as name:
        folder = Path(name) / "run"
        accelerator, precision = build_accelerator(
            how.mixed_precision, how.gradient_accumulation_steps, [], folder, how.num_cpu_threads,
            accelerated=how.accelerates,
        )  # fmt: skip
        reporter = TellingReporter(accelerator, folder, args.flat(), [])
        set_seed(how.seed)
        source = find_model(args.model.model_name_or_path, args.model.model_revision)
        tokenizer = load_tokenizer(source)
        with accelerator.local_main_process_first():
            splits = load_splits(task, tokenizer, data.data_dir, data.max_length, *data.limits, how.class_weights)
        train_loader, eval_loader, batches = build_loaders(
            splits, tokenizer, how.batch_sizes,
            how.gradient_accumulation_steps, accelerator.num_processes, seed=how.seed,
            group_by_length=data.group_by_length, pad_to=data.pad_to, num_workers=data.dataloader_num_workers,
        )  # fmt: skip
        base, head, new = load_classifier(source, task.labels, args.dropout)
        base_size, fingerprint = size(base), Fingerprint.of(base, new)
        adapted = freeze_unread(strategy.apply(base, head), longest_inputs(train_loader), reporter.warn)
        parameters = ParameterCount.of(base_size, adapted)
        accelerate_model(
            adapted, accelerator.device, precision.name, how.frozen_dtype,
            reads_frozen=strategy.reads_frozen_weights, loader=train_loader, enabled=how.accelerates,
            recompute=how.gradient_checkpointing,
        )  # fmt: skip
        plan = Plan.of(
            batches.windows_per_epoch, epochs, None, eval_steps=eval_steps, logging_steps=args.output.logging_steps,
            max_grad_norm=how.max_grad_norm, patience=0, best_metric="accuracy",
            label_smoothing=how.label_smoothing_factor,
        )  # fmt: skip
        optimizer = build_optimizer(adapted, rate, how.weight_decay, accelerator.device)
        scheduler = build_scheduler(optimizer, how.lr_scheduler_type, plan.steps, *how.warmup)
        model, optimizer, train_loader, eval_loader = prepare(
            accelerator, adapted, optimizer, train_loader, eval_loader
        )
        score = partial(_score, accelerator, model, eval_loader, splits.validation.labels)
        facts = describe_run(
            source, fingerprint, task, splits.facts(), parameters, precision, args.learning_rate, batches.window_size
        )
        with reporter.watching(plan.steps, facts):
            set_seed(how.seed, device_specific=True)
            run = Training(
                accelerator, model, optimizer, scheduler, train_loader, eval_loader, batches, score, reporter, plan,
                cuda_graphs=args.records_graphs, hook=strategy.step_hook(adapted, plan.steps),
            )  # fmt: skip
            if how.auto_find_batch_size:
                fit_micro_batch(run)
            yield run, reporter


def _score(
    accelerator: Any, model: nn.Module, loader: Any, labels: np.ndarray, between: Between | None = None
) -> Evaluation:
    start = time.perf_counter()
    logits = predict(accelerator, model, loader, len(labels), between)
    seconds = time.perf_counter() - start
    loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    return Evaluation({"accuracy": accuracy(logits, labels), "loss": loss}, logits, labels, seconds)


def measure_training(job: Job) -> Speed:
    """Time `job.epochs` epochs of training, after a warm-up: the last updates of one epoch, then `job.warm_epochs`.

    Only whole epochs are timed: the examples of an update have similar lengths, so part of an epoch would be no fair
    sample.
    """
    after_imports = resident_after_imports()
    with prepared(job, 1 + job.warm_epochs + job.epochs, ONLY_AT_THE_END) as (run, reporter):
        first = (1 + job.warm_epochs) * start_late(run, job.warmup)
        meter = Meter(run.accelerator.device, after_imports, first, run.plan.steps)
        run.loader = Counted(run.loader, meter)  # type: ignore[assignment]
        reporter.listener = meter.tick
        train(run)
        return _speed(meter, run, training=True)


def measure_evaluation(job: Job) -> Speed:
    """Time `EVALUATIONS` evaluations on the validation split, after an untimed one."""
    after_imports = resident_after_imports()
    with prepared(job, 1, None) as (run, _):
        meter = Meter(run.accelerator.device, after_imports)
        meter.watch(run.model)
        run.evaluate(None)
        meter.start()
        for _ in range(EVALUATIONS):
            run.evaluate(None)
        meter.stop()
        return _speed(meter, run, training=False)


def start_late(run: Training, updates: int) -> int:
    """Make the run start `updates` before the end of its first epoch; return the number of that epoch's last update."""
    per_epoch = run.batches.windows_per_epoch
    run.progress.window = run.progress.step = per_epoch - min(updates, per_epoch)
    return per_epoch


def _speed(meter: Meter, run: Training, *, training: bool) -> Speed:
    accelerator = run.accelerator
    model = run.model
    return meter.speed(model, accelerator.mixed_precision, training=training, processes=accelerator.num_processes)
