"""A few of a run's updates and evaluation batches, made to measure what the run will take; see `preview.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import DataLoader

from peftlib.acceleration.graphs import GraphedStep
from peftlib.data.batching import Slot
from peftlib.data.collation import split_inputs
from peftlib.data.loading import batches_of, laid_out
from peftlib.errors import Interrupted, OutOfMemory
from peftlib.strategies.parameters import trained_state
from peftlib.tracking.machine import peak_memory
from peftlib.training.interruption import EXIT_STATUS
from peftlib.training.loop import make_ready, update
from peftlib.training.state import Training

#: So many samples of at most so many windows are timed, in about so many seconds for all of them.
SAMPLES, _WINDOWS, _SECONDS = 3, 12, 10.0
_LONGEST = 3  # AdamW makes its moments in the first update; a graph is recorded in the second


@dataclass(frozen=True)
class Timing:
    """What windows take, from samples that each stand for all of them.

    Attributes:
        seconds: for a window, on average over each sample.
        windows: timed in all.
    """

    seconds: tuple[float, ...]
    windows: int

    @property
    def mean(self) -> float:
        """Seconds for a window."""
        return sum(self.seconds) / len(self.seconds)


@dataclass(frozen=True)
class Rehearsal:
    """What a run was seen to take.

    Attributes:
        updates: by the examples of an update.
        evaluation: by those of a batch on every process.
        evaluation_windows: of which an evaluation has so many.
        peak_memory: bytes, as `tracking.machine.peak_memory`; the most that any process had.
    """

    updates: Timing
    evaluation: Timing
    evaluation_windows: int
    peak_memory: int


def rehearse(training: Training) -> Rehearsal:
    """Make evaluation batches, then the longest updates that the run can have, then a sample of its own.

    The model learns from them, and is of no use for the run itself. Called on every process.

    Args:
        training: as `loop.train` takes it.

    Raises:
        OutOfMemory: an update or an evaluation batch has too little memory.
        Interrupted: a signal asked for it.
    """
    accelerator = training.accelerator
    with _out_of_memory_as(OutOfMemory.in_evaluation(batches_of(training.eval_loader).micro_batch_size)):
        evaluation, windows = _rehearse_evaluation(training)
    # In most of a run's updates the best state is there, which may be as large as the model; and a better one is
    # copied before it goes.
    training.best_state = trained_state(accelerator.unwrap_model(training.model))
    with _out_of_memory_as(OutOfMemory.in_training(training.batches.micro_batch_size)):
        updates = _rehearse_updates(training)
    training.best_state = trained_state(accelerator.unwrap_model(training.model))
    peak = int(_highest(peak_memory(accelerator.device)))
    return Rehearsal(updates, evaluation, windows, peak)


@contextmanager
def _out_of_memory_as(problem: OutOfMemory) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise problem from error


def _rehearse_updates(training: Training) -> Timing:
    batches, progress = training.batches, training.progress
    make_ready(training)
    # Of more micro-batches, those behind the second find what it has found: gradients that are there already.
    rounds = min(batches.accumulation_steps, 2)
    most = batches.micro_batch_size * batches.num_processes * rounds
    longest = np.argsort(-batches.lengths, kind="stable")[:most]
    for _ in range(_LONGEST):
        seconds = _seconds(training, _update, [longest])
    windows = batches.windows(progress.epoch)
    left = training.plan.steps - progress.step
    windows = windows[progress.window :][:left] or windows
    windows.sort(key=lambda window: int(batches.lengths[window].sum()))
    of_all = batches.window_size / len(longest)
    return _time(training, _update, windows, seconds * of_all)


def _rehearse_evaluation(training: Training) -> tuple[Timing, int]:
    """And the number of windows in the whole split."""
    import peftlib.evaluation.metrics  # noqa: F401 - a run's first evaluation does, and it takes a hundred MB

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
    """One update as `loop.train_epoch` makes it."""
    accelerator, batches, step = training.accelerator, training.batches, training.step
    assert step is not None
    mine = batches.micro_batches(window)[accelerator.process_index :: accelerator.num_processes]
    for number, slots in enumerate(mine, start=1):
        batch = _on_device(accelerator, training.loader, slots)
        with nullcontext() if number == len(mine) else accelerator.no_sync(training.model):
            step(batch)
    update(training)


def _on_device(accelerator: Accelerator, loader: DataLoader, slots: list[Slot]) -> dict[str, torch.Tensor]:
    """A micro-batch as the prepared loader would give it."""
    batch: dict[str, torch.Tensor] = send_to_device(
        laid_out(loader, slots), accelerator.device, non_blocking=accelerator.non_blocking
    )
    return batch


_Work = Callable[[Training, np.ndarray], None]


def _time(training: Training, work: _Work, windows: list[np.ndarray], longest: float) -> Timing:
    """Time `work` on samples of windows, each evenly spaced over all of them.

    Args:
        windows: by their length: a sample then holds short and long ones as all of them do.
        longest: seconds that one may take.
    """
    slowest = _highest(longest)  # all processes have to make the same ones
    size = max(1, min(int(_SECONDS / SAMPLES / slowest), _WINDOWS, len(windows)))
    samples = [spread(windows, size, number) for number in range(SAMPLES)]
    if isinstance(training.step, GraphedStep):
        for _ in range(2):  # a shape is recorded when it is seen for the second time
            for sample in samples:
                _seconds(training, work, sample)
    seconds = tuple(_seconds(training, work, sample) / size for sample in samples)
    return Timing(seconds, size * SAMPLES)


def spread(windows: list[np.ndarray], size: int, sample: int) -> list[np.ndarray]:
    """A sample of so many windows, one from each of as many equal parts; each of the `SAMPLES` at another place in it.

    The middle one's are the middles.
    """
    places = [2 * (SAMPLES * part + sample) + 1 for part in range(size)]
    return [windows[place * len(windows) // (2 * SAMPLES * size)] for place in places]


def _seconds(training: Training, work: _Work, windows: list[np.ndarray]) -> float:
    """Wall time of `work` on each of the windows, until the device is done."""
    start = time.perf_counter()
    for window in windows:
        work(training, window)
        _stop_if_asked(training)
    if training.accelerator.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def _stop_if_asked(training: Training) -> None:
    number = None if training.interruption is None else training.interruption.requested()
    if number is not None:
        raise Interrupted(f"stopped by {number.name}", EXIT_STATUS[number], by_hand=number.name == "SIGINT")


def _highest(value: float) -> float:
    """Of all processes. Not in a tensor: Apple's GPUs have no fp64, and fp32 rounds a number of bytes."""
    return max(gather_object([value]))
