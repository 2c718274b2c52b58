"""Assign examples to optimizer updates, and cut each update into micro-batches.

An epoch is a list of *windows*: the examples of one optimizer update, over all processes and accumulation steps.
The windows depend on the seed, the epoch and the effective batch size only, so 16 × 1, 4 × 4 and 1 × 16, on one
process or on two, see the same examples in the same updates. Each window is then cut into micro-batches of
similar lengths, the same number for every process, and every example carries its weight, one over the window's
real number of examples: a sum of weighted losses is the window's mean, short last window included. With class
weights it is the weighted mean over the whole window, as with torch's `CrossEntropyLoss(weight=...)` on one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

#: Number of windows per pool, and minimum number of pools per epoch. Each pool is sorted by length and cut into
#: windows; with fewer pools, a small split would have the same windows in every epoch. Larger pools pad less and mix
#: less: with 50 windows, BitFit on rotten_tomatoes ends a point lower (`benchmarks/NOTES.md`).
POOL_WINDOWS, POOLS = 16, 4


class Slot(NamedTuple):
    """One example of a micro-batch.

    Attributes:
        example: its index in the split.
        weight: its share in the window's mean loss; 0 marks a filler, which keeps a process in step with the others
            when a short window has too few examples for all of them.
    """

    example: int
    weight: float


class WindowBatches(Sampler[list[Slot]]):
    """Batch sampler that yields a split's micro-batches in the order in which accelerate assigns them to processes.

    Batch i of an iteration goes to process i mod `num_processes`, which is how `accelerator.prepare` shards a
    batch sampler. The number of batches is always a multiple of `num_processes`.

    Args:
        lengths: tokens per example, shape (examples,).
        micro_batch_size: maximum number of examples per forward pass and process.
        num_processes: number of processes that share each window.
        accumulation_steps: micro-batches per window and process.
        seed: shuffling seed; None keeps a fixed order, longest first (for evaluation).
        group_by_length: form windows from examples of similar lengths. False draws them uniformly; within a window
            the examples are still sorted by length, which changes nothing but padding.
        weights: how much each example counts in its window's mean, relative to the others; positive, shape (examples,).
            None counts all alike.
    """

    # accelerate reads these two; without a batch size, batches may differ in size.
    batch_size = None
    drop_last = False

    def __init__(
        self,
        lengths: np.ndarray,
        micro_batch_size: int,
        *,
        num_processes: int = 1,
        accumulation_steps: int = 1,
        seed: int | None = None,
        group_by_length: bool = True,
        weights: np.ndarray | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.micro_batch_size = micro_batch_size
        self.num_processes = num_processes
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        self.group_by_length = group_by_length
        self.weights = weights
        self.epoch, self.start, self.stop = 0, 0, self.windows_per_epoch

    @property
    def window_size(self) -> int:
        """Effective batch size: examples per update, over all processes."""
        return self.micro_batch_size * self.num_processes * self.accumulation_steps

    @property
    def windows_per_epoch(self) -> int:
        """Updates per epoch, including a short last window."""
        return math.ceil(len(self.lengths) / self.window_size)

    def set_position(self, epoch: int, start: int = 0, stop: int | None = None) -> None:
        """Make the next iteration yield windows `start` to `stop` (exclusive) of `epoch`."""
        self.epoch, self.start = epoch, start
        self.stop = self.windows_per_epoch if stop is None else min(stop, self.windows_per_epoch)

    def resize(self, micro_batch_size: int, accumulation_steps: int = 1) -> None:
        """Cut windows anew, before or between iterations; the next one starts at the first window."""
        self.micro_batch_size, self.accumulation_steps = micro_batch_size, accumulation_steps
        self.set_position(self.epoch)

    def examples_in(self, window: int) -> int:
        """Return how many examples a window has: in every epoch all are full but the last."""
        return min(self.window_size, len(self.lengths) - window * self.window_size)

    def windows(self, epoch: int) -> list[np.ndarray]:
        """Return the epoch's windows as arrays of example indices; every example is in exactly one of them."""
        size, count = self.window_size, len(self.lengths)
        if self.seed is None:
            order = np.argsort(-self.lengths, kind="stable")
            return [order[start : start + size] for start in range(0, count, size)]
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(count)
        full = count // size
        # The short window is random too; it comes last, where accelerate expects it.
        last = [order[full * size :]] if count % size else []
        if not self.group_by_length:
            return [order[number * size : (number + 1) * size] for number in range(full)] + last
        windows: list[np.ndarray] = []
        pooled = max(1, min(POOL_WINDOWS, full // POOLS)) * size
        for start in range(0, full * size, pooled):
            pool = order[start : min(start + pooled, full * size)]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            windows += np.split(pool, len(pool) // size)
        return [windows[number] for number in generator.permutation(full)] + last

    def micro_batches(self, window: np.ndarray) -> list[list[Slot]]:
        """Cut a window into batches of similar lengths and sizes; their number is a multiple of `num_processes`."""
        rounds = math.ceil(len(window) / (self.micro_batch_size * self.num_processes))
        ordered = window[np.argsort(self.lengths[window], kind="stable")]
        parts = np.array_split(ordered, rounds * self.num_processes)
        filler = [Slot(int(ordered[0]), 0.0)]
        shares = iter(self._shares(ordered))
        return [list(map(Slot, part.tolist(), shares)) or filler for part in parts]

    def _shares(self, window: np.ndarray) -> list[float]:
        """Each example's share in the window's mean loss; they sum to 1."""
        if self.weights is None:
            return [1 / len(window)] * len(window)
        weights = self.weights[window]
        shares: list[float] = (weights / weights.sum()).tolist()
        return shares

    def __iter__(self) -> Iterator[list[Slot]]:
        for window in self.windows(self.epoch)[self.start : self.stop]:
            yield from self.micro_batches(window)

    def __len__(self) -> int:
        """Number of micro-batches of the next iteration, over all processes."""
        windows = max(0, self.stop - self.start)
        if windows == 0:
            return 0
        per_round = self.micro_batch_size * self.num_processes
        short = len(self.lengths) % self.window_size if self.stop == self.windows_per_epoch else 0
        rounds = (windows - bool(short)) * self.accumulation_steps + math.ceil(short / per_round)
        return rounds * self.num_processes
