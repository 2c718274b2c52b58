"""Turn signals into a stop request that a run polls between batches."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

import torch
import torch.distributed as dist
from accelerate import Accelerator

from peftlib.errors import Interrupted
from peftlib.processes import CaughtSignals

#: Signal -> the run's exit status once its checkpoint is written. SIGUSR1 is what SLURM sends ahead of the time limit
#: (`--signal`); the batch script then requeues the job, so the status is 0.
EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


class Interruption(CaughtSignals):
    """Catch stop signals inside a `with` block; a second SIGINT ends the process at once.

    All processes must stop after the same micro-batch, but a signal may reach only one of them, or each at a different
    moment. So after each micro-batch or evaluation batch they take the maximum of the signal numbers they have
    received, over gloo on the CPU, never on the device. A single process needs no communication.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(*EXIT_STATUS)
        self._group: dist.ProcessGroup | None = None
        if accelerator.num_processes > 1 and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")

    def requested(self) -> signal.Signals | None:
        """Return the signal that asked this run to stop, the same on every process; None if there was none."""
        # The first one: later ones often only follow from it, such as when the launcher dies.
        number = int(self.received[0]) if self.received else 0
        if self._group is not None:
            highest = torch.tensor(number)
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self._group)
            number = int(highest)
        return signal.Signals(number) if number else None

    def stop_if_requested(self, rest: Callable[[], str] = str) -> None:
        """Raise `Interrupted` if a signal asked this run to stop; call it on every process.

        Args:
            rest: called in that case only; returns the end of the message.
        """
        number = self.requested()
        if number is not None:
            by_hand = number is signal.SIGINT
            raise Interrupted(f"stopped by {number.name}{rest()}", EXIT_STATUS[number], by_hand=by_hand)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in self.received:
            # No clean-up: checkpoints are renamed into place, so the last one is intact whatever happens now.
            print("interrupted twice: ending at once", file=sys.stderr, flush=True)
            os._exit(EXIT_STATUS[signal.SIGINT])
        super()._receive(number, frame)
