"""Preview a run without starting it: `scripts/train.py --dry_run`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal

from peftlib.strategies.parameters import trained_groups
from peftlib.tracking.reporter import Reporter
from peftlib.training.optimization import warmup_steps
from peftlib.training.rehearsal import SAMPLES, Rehearsal, Timing, rehearse
from peftlib.training.state import Training

_UNITS = (("h", 3600), ("min", 60), ("s", 1))
_ENOUGH = 2  # a duration is shown in the largest unit of which it has at least this many


@dataclass(frozen=True)
class Left:
    """What a run still has to do, unless it stops early.

    Attributes:
        evaluations: excluding that of the saved state at the very end.
        checkpoints: still to be written.
    """

    updates: int
    evaluations: int
    checkpoints: int

    @classmethod
    def of(cls, training: Training) -> Left:
        """Count from the current position of `training`."""
        progress, plan, keeper = training.progress, training.plan, training.keeper
        first = plan.steps if progress.stopped_early else progress.step
        steps, epoch = range(first + 1, plan.steps + 1), training.batches.windows_per_epoch
        return cls(
            len(steps),
            (training.due is not None) + sum(plan.evaluates(step, step % epoch == 0) for step in steps),
            0
            if keeper is None
            else sum(keeper.is_due(step, step % epoch == 0, run_ends=step == plan.steps) for step in steps),
        )


def preview(training: Training, head: frozenset[str], reporter: Reporter, arguments: dict[str, Any]) -> None:
    """Print the plan and what is trained, then measure a few updates and print what the whole run will take.

    Call it on every process, after the run's announcement. It trains the model, and writes no file.

    Args:
        training: ready for `loop.train`, with a keeper.
        head: names of the head's parameters in the base model.
        arguments: flag -> value.

    Raises:
        OutOfMemory: an update or an evaluation batch does not fit into memory.
        Interrupted: a signal arrived.
    """
    console, left = reporter.console, Left.of(training)
    console.facts("data", _data({"training": training.loader.dataset, "validation": training.eval_loader.dataset}))
    groups = trained_groups(training.model, head)
    scalars = sum(group.scalars for group in groups)
    console.facts("plan", _plan(training, left, scalars, arguments))
    rows = [
        [group.name, str(group.tensors), " × ".join(map(str, group.shape)) or "1", f"{group.scalars:,}"]
        for group in groups
    ]
    in_head = sum(group.scalars for group in groups if group.in_head)
    rows.append(
        [f"all, {in_head:,} of them in the head", str(sum(group.tensors for group in groups)), "", f"{scalars:,}"]
    )
    console.table(("trained", "tensors", "shape", "parameters"), rows, numbers=3)
    seen = rehearse(training)
    console.facts("measured", _measured(training, seen, left))


def _data(splits: dict[str, Any]) -> dict[str, str]:
    return {
        f"{name} tokens": f"median {np.median(split.lengths):.0f}, longest {split.lengths.max()}"
        for name, split in splits.items()
    }


def _plan(training: Training, left: Left, scalars: int, arguments: dict[str, Any]) -> dict[str, str]:
    steps, batches = training.plan.steps, training.batches
    warmup = warmup_steps(
        arguments["lr_scheduler_type"], steps, arguments["num_warmup_steps"], arguments["warmup_ratio"]
    )
    early = " at most" if training.plan.patience else ""
    part = "" if left.updates == steps else f" of {steps:,}, the others are done"
    rows = {
        "updates": f"{left.updates:,}{early}{part}; {batches.windows_per_epoch:,} an epoch; warm-up over {warmup:,}",
        "micro-batches": f"{batches.accumulation_steps} of {batches.micro_batch_size} examples per update and process",
        "evaluations": f"{left.evaluations:,}{early}, and one of the state that is saved",
        "checkpoints": "none, see --checkpointing_steps" if arguments["checkpointing_steps"] is None else "0",
    }
    if left.checkpoints:
        limit = arguments["checkpoints_total_limit"]
        rows["checkpoints"] = (
            f"{left.checkpoints:,}{early} of about {decimal(_checkpoint_bytes(training, scalars), precision=2)} each"
            + ("" if limit is None else f", the newest {limit:,} are kept")
        )
    return rows


def _checkpoint_bytes(training: Training, scalars: int) -> int:
    """Four fp32 values per trained parameter, its own, the best and AdamW's two moments; and what the method keeps."""
    kept = {} if training.hook is None else training.hook.state()
    return 4 * 4 * scalars + sum(tensor.nbytes for tensor in kept.values())


def _measured(training: Training, seen: Rehearsal, left: Left) -> dict[str, str]:
    device, processes = training.accelerator.device, training.accelerator.num_processes
    batches = (left.evaluations + 1) * seen.evaluation_windows
    parts = [(seen.updates, left.updates), (seen.evaluation, batches)]
    whose = "by tensors on the GPU" if device.type == "cuda" else "resident"
    if device.type == "cuda":
        whose += f", which has {decimal(torch.cuda.get_device_properties(device).total_memory, precision=2)}"
    return {
        "peak memory": f"{decimal(seen.peak_memory, precision=2)} {whose}"
        + ("" if processes == 1 else ", per process at most"),
        "training": _about(parts[:1]),
        "evaluation": _about(parts[1:]),
        "together": f"{_about(parts)}, start-up and checkpoints left out",
        "by": f"{SAMPLES} samples, {seen.updates.windows} updates and {seen.evaluation.windows} evaluation batches in "
        "all, from the shortest to the longest; memory by the longest",
    }


def _about(parts: Iterable[tuple[Timing, int]]) -> str:
    """Format the total time of `count` windows of each timing, with the range over samples."""
    parts = list(parts)
    mean, low, high = (
        sum(of(timing) * count for timing, count in parts)
        for of in (lambda timing: timing.mean, lambda timing: min(timing.seconds), lambda timing: max(timing.seconds))
    )
    name, unit = next((name, unit) for name, unit in _UNITS if mean >= _ENOUGH * unit or unit == 1)
    digits = 1 if mean / unit < 10 else 0
    return f"about {mean / unit:.{digits}f} {name} ({low / unit:.{digits}f} to {high / unit:.{digits}f})"
