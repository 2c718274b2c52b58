"""The same clock, and the same count of what went through the model, for every system."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import nn

from benchmarks.ceiling import operations, synchronize
from peftlib.data.collation import is_in_rows
from peftlib.tracking.machine import peak_resident


@dataclass(frozen=True)
class Speed:
    """How fast a system went over some examples, in processes of its own.

    Attributes:
        examples: under the clock, over all processes.
        seconds: between two ends of updates (in evaluation: around whole evaluations).
        cpu_seconds: of all threads of this process in that time, which other processes' load hardly touches.
        tokens: real ones among the examples.
        computed: tokens that went through the model, padding included.
        operations: in the matrix products of the real tokens, see `ceiling.operations`.
        precision: accelerate's name of it.
        threads: of one process.
        memory: bytes; `peak` of the process, what it held `after_imports`, and on a GPU `cuda_peak` of its tensors.
        first_update: seconds from the start of the process to the end of its first update; None in evaluation.
    """

    examples: int
    seconds: float
    cpu_seconds: float
    tokens: int
    computed: int
    operations: float
    precision: str
    threads: int
    memory: dict[str, int]
    first_update: float | None


class _Times(NamedTuple):
    """Seconds on the wall and of this process's CPUs."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> _Times:
        return cls(time.perf_counter(), time.process_time())

    def since(self, earlier: _Times) -> _Times:
        return _Times(self.wall - earlier.wall, self.cpu - earlier.cpu)


@dataclass
class Meter:
    """Times a stretch of a run, and counts what goes through the model in it.

    It waits for the device where the stretch starts and ends, and after the first update; nowhere else.

    Args:
        first, last: the updates at whose ends the stretch starts and ends.
        after_imports: bytes that the process held before it loaded anything.
    """

    device: torch.device
    after_imports: int
    first: int = 0
    last: int = 0
    _started: _Times | None = None
    _spent: _Times | None = None
    _first_update: float | None = None
    _counted: list[dict[str, Any]] = field(default_factory=list)

    def watch(self, model: nn.Module) -> None:
        """Count every forward pass of this model."""
        model.register_forward_pre_hook(lambda _, positional, inputs: self.count(inputs), with_kwargs=True)

    def tick(self, step: int) -> None:
        """Update `step` has been made."""
        if self._first_update is None:
            synchronize(self.device)
            self._first_update = time.time() - psutil.Process().create_time()
        if step == self.last:
            self.stop()
        elif step == self.first:
            self.start()

    def start(self) -> None:
        """The stretch starts here."""
        synchronize(self.device)
        self._started = _Times.now()

    def stop(self) -> None:
        """The stretch ends here."""
        assert self._started is not None
        synchronize(self.device)
        self._spent = _Times.now().since(self._started)

    def speed(self, model: nn.Module, precision: str, *, training: bool, processes: int = 1) -> Speed:
        """What was measured; the processes share the examples evenly."""
        assert self._spent is not None
        lengths = self._lengths()
        return Speed(
            examples=len(lengths) * processes,
            seconds=self._spent.wall,
            cpu_seconds=self._spent.cpu,
            tokens=int(lengths.sum()) * processes,
            computed=sum(batch["input_ids"].numel() for batch in self._counted) * processes,
            operations=operations(model, lengths, training=training) * processes,
            precision=precision,
            threads=torch.get_num_threads(),
            memory=self._memory(),
            first_update=self._first_update,
        )

    def count(self, inputs: dict[str, Any]) -> None:
        """These go through the model; what is in them is looked at later, not under the clock."""
        if self._started is not None and self._spent is None:
            self._counted.append({name: inputs.get(name) for name in ("attention_mask", "weight", "input_ids")})

    def _lengths(self) -> np.ndarray:
        """Tokens of every example that was counted, (examples,)."""
        found: list[torch.Tensor] = []
        for batch in self._counted:
            mask = batch["attention_mask"]
            if is_in_rows(batch):
                found.append((mask >= 0).sum((1, 2, 3))[batch["weight"] > 0])  # without the fillers
            else:
                found.append(mask.sum(dim=1))
        return torch.cat(found).cpu().numpy()

    def _memory(self) -> dict[str, int]:
        found = {"peak": peak_resident(), "after_imports": self.after_imports}
        if self.device.type == "cuda":
            found["cuda_peak"] = torch.cuda.max_memory_allocated(self.device)
        return found


def resident_after_imports() -> int:
    """Bytes that this process has in memory, with all code that a run will load."""
    import transformers.models.bert.modeling_bert  # noqa: F401  # else loaded with the model

    return int(psutil.Process().memory_info().rss)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of right answers, 0..1, without the `evaluate` package, which a bare GPU machine lacks."""
    return float((logits.argmax(axis=-1) == labels).mean())
