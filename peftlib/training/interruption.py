"""Signals that ask a run to stop, turned into a question that a run asks between batches."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import torch
import torch.distributed as dist
from accelerate import Accelerator

from peftlib.processes import CaughtSignals

#: Signal -> the run's exit status once its checkpoint is written. SIGUSR1 is what SLURM's `--signal` is told to send
#: ahead of the time limit: the script goes on to requeue the job, so the status is that of success.
EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


class Interruption(CaughtSignals):
    """Catches the signals inside a `with` block; a second SIGINT ends the process at once.

    All processes of a run have to stop after the same micro-batch, and a signal may reach only one of them, or each
    at another moment, so they agree on it: a sum over the processes' hosts (gloo, never the device), once per
    micro-batch, or batch of an evaluation. A single process asks nobody.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(*EXIT_STATUS)
        self._group: dist.ProcessGroup | None = None
        if accelerator.num_processes > 1 and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")

    def requested(self) -> signal.Signals | None:
        """The signal that asked this run to stop, the same on every process; None while there is none."""
        # The first one: what follows it is often its echo, such as a launcher's death.
        number = int(self.received[0]) if self.received else 0
        if self._group is not None:
            highest = torch.tensor(number)
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self._group)
            number = int(highest)
        return signal.Signals(number) if number else None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in self.received:
            # No clean-up: checkpoints appear by renaming, so the last one is whole whatever happens now.
            print("interrupted twice: ending at once", file=sys.stderr, flush=True)
            os._exit(EXIT_STATUS[signal.SIGINT])
        super()._receive(number, frame)
