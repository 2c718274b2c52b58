"""One way to time every system, and to count the tokens that went through its model."""

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
    """The speed of one system on some examples, in processes of its own.

    Attributes:
        examples: number of timed examples, over all processes.
        seconds: from the end of one update to that of another (in evaluation: around whole evaluations).
        cpu_seconds: CPU time of this process's threads meanwhile, which the load of other processes hardly affects.
        tokens: real tokens of the examples.
        computed: tokens that went through the model, including padding.
        operations: in the matrix products of the real tokens; see `ceiling.operations`.
        precision: as accelerate names it.
        threads: per process.
        memory: bytes: `peak` of the process, its memory `after_imports`, and on a GPU `cuda_peak` of the tensors.
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
    """Wall time and CPU time of this process, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> _Times:
        return cls(time.perf_counter(), time.process_time())

    def since(self, earlier: _Times) -> _Times:
        return _Times(self.wall - earlier.wall, self.cpu - earlier.cpu)


@dataclass
class Meter:
    """Times part of a run, and counts what goes through the model meanwhile.

    It waits for the device at the start and end of that part, and after the first update; nowhere else.

    Args:
        first, last: the updates after which timing starts and stops.
        after_imports: bytes of the process before it loaded anything.
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
        """Count the inputs of every forward pass of this model."""
        model.register_forward_pre_hook(lambda _, positional, inputs: self.count(inputs), with_kwargs=True)

    def tick(self, step: int) -> None:
        """Take note that update `step` is done; start or stop timing if it is the first or last."""
        if self._first_update is None:
            synchronize(self.device)
            self._first_update = time.time() - psutil.Process().create_time()
        if step == self.last:
            self.stop()
        elif step == self.first:
            self.start()

    def start(self) -> None:
        """Start timing."""
        synchronize(self.device)
        self._started = _Times.now()

    def stop(self) -> None:
        """Stop timing."""
        assert self._started is not None
        synchronize(self.device)
        self._spent = _Times.now().since(self._started)

    def speed(self, model: nn.Module, precision: str, *, training: bool, processes: int = 1) -> Speed:
        """Return what was measured; with several processes, each has the same share of the examples."""
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
        """Keep the inputs of a timed forward pass; they are only inspected after timing."""
        if self._started is not None and self._spent is None:
            self._counted.append({name: inputs.get(name) for name in ("attention_mask", "weight", "input_ids")})

    def _lengths(self) -> np.ndarray:
        """Return the number of tokens of every counted example, (examples,)."""
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
    """Return the resident memory of this process in bytes, with all code imported that a run needs."""
    import transformers.models.bert.modeling_bert  # noqa: F401  # otherwise imported with the model

    return int(psutil.Process().memory_info().rss)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy, 0 to 1, without the `evaluate` package, which a bare GPU machine lacks."""
    return float((logits.argmax(axis=-1) == labels).mean())
