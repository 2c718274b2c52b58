"""Measure a few of a run's updates and evaluation batches, to estimate what the run will take; see `preview.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader

from peftlib.acceleration.graphs import GraphedStep
from peftlib.data.batching import Slot
from peftlib.data.collation import split_inputs
from peftlib.data.loading import batches_of, laid_out
from peftlib.errors import OutOfMemory
from peftlib.strategies.parameters import trained_state
from peftlib.tracking.machine import peak_memory
from peftlib.training.failures import memory_named
from peftlib.training.loop import make_ready, update
from peftlib.training.state import Training

#: Number of timed samples, most windows per sample, and about how many seconds all of them take.
SAMPLES, _WINDOWS, _SECONDS = 3, 12, 10.0
_LONGEST = 3  # updates: the first allocates AdamW's moments, the second captures a CUDA graph


@dataclass(frozen=True)
class Timing:
    """Time per window, from samples that each represent all windows.

    Attributes:
        seconds: mean per window, one for each sample.
        windows: number that was timed, over all samples.
    """

    seconds: tuple[float, ...]
    windows: int

    @property
    def mean(self) -> float:
        """Mean seconds per window."""
        return sum(self.seconds) / len(self.seconds)


@dataclass(frozen=True)
class Rehearsal:
    """Measured time and memory of a run.

    Attributes:
        updates: a window is the examples of one update.
        evaluation: a window is one batch on every process.
        evaluation_windows: number of windows in an evaluation.
        peak_memory: bytes, see `tracking.machine.peak_memory`; the maximum over processes.
    """

    updates: Timing
    evaluation: Timing
    evaluation_windows: int
    peak_memory: int


def rehearse(training: Training) -> Rehearsal:
    """Measure evaluation batches, the longest possible updates, and samples of the run's own updates.

    This trains the model, which cannot be used for the run afterwards. Call it on every process.

    Args:
        training: ready for `loop.train`.

    Raises:
        OutOfMemory: an update or an evaluation batch does not fit into memory.
        Interrupted: a signal arrived.
    """
    accelerator = training.accelerator
    with memory_named(OutOfMemory.in_evaluation(batches_of(training.eval_loader).micro_batch_size)):
        evaluation, windows = _rehearse_evaluation(training)
    # For the peak memory: most updates run beside a best state, which may be as large as the model, and a new best is
    # copied before the old one is freed.
    training.best_state = trained_state(training.model)
    with memory_named(OutOfMemory.in_training(training.batches.micro_batch_size)):
        updates = _rehearse_updates(training)
    training.best_state = trained_state(training.model)
    peak = int(_highest(peak_memory(accelerator.device)))
    return Rehearsal(updates, evaluation, windows, peak)


def _rehearse_updates(training: Training) -> Timing:
    batches, progress = training.batches, training.progress
    make_ready(training)
    # Two are enough: later micro-batches add to existing gradients just as the second does.
    rounds = min(batches.accumulation_steps, 2)
    most = batches.micro_batch_size * batches.num_processes * rounds
    longest = np.argsort(-batches.lengths, kind="stable")[:most]
    for _ in range(_LONGEST):
        seconds = _seconds(training, _update, [longest])
    windows = batches.windows(progress.epoch)
    left = training.plan.steps - progress.step
    windows = windows[progress.window :][:left] or windows
    windows.sort(key=lambda window: int(batches.lengths[window].sum()))
    scale = batches.window_size / len(longest)
    return _time(training, _update, windows, seconds * scale)


def _rehearse_evaluation(training: Training) -> tuple[Timing, int]:
    """Time evaluation windows; return also their number in the whole split."""
    import peftlib.evaluation.metrics  # noqa: F401 - takes a hundred MB from a run's first evaluation on

    accelerator, loader = training.accelerator, training.eval_loader
    batches = batches_of(loader)
    windows = batches.windows(0)  # longest first

    def answer(training: Training, window: np.ndarray) -> None:
        for slots in batches.micro_batches(window)[accelerator.process_index :: accelerator.num_processes]:
            inputs, _ = split_inputs(_on_device(accelerator, loader, slots))
            training.model(**inputs).logits.float()

    training.model.eval()
    with torch.inference_mode():
        seconds = min(_seconds(training, answer, windows[:1]) for _ in range(2))
        return _time(training, answer, windows[::-1], seconds), len(windows)


def _update(training: Training, window: np.ndarray) -> None:
    """Make one update in the way of `loop.train_epoch`."""
    accelerator, batches, step = training.accelerator, training.batches, training.step
    assert step is not None
    mine = batches.micro_batches(window)[accelerator.process_index :: accelerator.num_processes]
    for slots in mine:
        step(_on_device(accelerator, training.loader, slots))
    update(training)


def _on_device(accelerator: Accelerator, loader: DataLoader, slots: list[Slot]) -> dict[str, torch.Tensor]:
    """Return a micro-batch as the prepared loader would."""
    batch: dict[str, torch.Tensor] = send_to_device(
        laid_out(loader, slots), accelerator.device, non_blocking=accelerator.non_blocking
    )
    return batch


_Work = Callable[[Training, np.ndarray], None]


def _time(training: Training, work: _Work, windows: list[np.ndarray], longest: float) -> Timing:
    """Time `work` on samples of windows, each evenly spaced over all of them.

    Args:
        windows: sorted by length, so that samples hold short and long ones in the same proportion as the whole.
        longest: seconds that the longest window takes.
    """
    slowest = _highest(longest)  # all processes must choose the same windows
    size = max(1, min(int(_SECONDS / SAMPLES / slowest), _WINDOWS, len(windows)))
    samples = [spread(windows, size, number) for number in range(SAMPLES)]
    if isinstance(training.step, GraphedStep):
        for _ in range(2):  # a graph is captured when its shape occurs for the second time
            for sample in samples:
                _seconds(training, work, sample)
    seconds = tuple(_seconds(training, work, sample) / size for sample in samples)
    return Timing(seconds, size * SAMPLES)


def spread(windows: list[np.ndarray], size: int, sample: int) -> list[np.ndarray]:
    """Draw a sample of `size` windows, one from each of `size` equal parts of the list.

    Each of the `SAMPLES` samples takes a different position within the parts; the middle sample takes the midpoints.
    """
    places = [2 * (SAMPLES * part + sample) + 1 for part in range(size)]
    return [windows[place * len(windows) // (2 * SAMPLES * size)] for place in places]


def _seconds(training: Training, work: _Work, windows: list[np.ndarray]) -> float:
    """Return the wall time of `work` on all of the windows, until the device is done."""
    start = time.perf_counter()
    for window in windows:
        work(training, window)
        if training.interruption is not None:
            training.interruption.stop_if_requested()
    if training.accelerator.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def _highest(value: float) -> float:
    """Return the maximum over processes. Not in a tensor: Apple's GPUs lack fp64, and fp32 rounds byte counts."""
    return max(gather_object([value]))
