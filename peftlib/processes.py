"""Processes that end with their parent, and signals that are recorded for later."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

#: Environment variable by which a sweep tells its runs how many of them share the machine's cores.
RUNS_AT_ONCE = "PEFTLIB_RUNS_AT_ONCE"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_Caught = TypeVar("_Caught", bound="CaughtSignals")


class CaughtSignals:
    """Inside a `with` block, record signals instead of letting them end the process.

    Args:
        kinds: the signals to record.

    Attributes:
        received: the recorded signals, in order.
    """

    def __init__(self, *kinds: signal.Signals) -> None:
        self.received: list[signal.Signals] = []
        self._kinds = kinds
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self: _Caught) -> _Caught:
        self._previous = {kind: signal.signal(kind, self._receive) for kind in self._kinds}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))


def leave_signals_to_parent(worker: int) -> None:
    """Ignore the signals that stop a run, as a data loader's worker: they may reach the whole group of processes.

    The run stops at its next batch, for which it may still need its workers. Those end with it, however it ends.

    Args:
        worker: its number, which `DataLoader` passes.
    """
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(kind, signal.SIG_IGN)


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies; does nothing except on Linux.

    Source: prctl(2), PR_SET_PDEATHSIG. The setting survives `exec`, so it may be made between fork and exec.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before the call
            os.kill(os.getpid(), signal.SIGTERM)


def end_with_launcher() -> None:
    """End this process when `accelerate launch`, or whatever started it inside a sweep, ends.

    Whoever stops a run (a person, a cluster, a W&B agent) signals the process that they started. That is the
    launcher, which dies and leaves the training running. A run started from a shell outlives the shell as usual.
    """
    in_own_sweep = os.environ.get("PEFTLIB_SWEEP_ID")
    if in_own_sweep or os.environ.get("WANDB_SWEEP_ID") or _started_by_accelerate():
        end_with_parent()
    # The launcher, which leads the session that the sweep has given it, may have died before Python was up.
    if in_own_sweep and _is_over(os.getsid(0)):
        os.kill(os.getpid(), signal.SIGTERM)


def _is_over(process: int) -> bool:
    """Whether there is no such process, or nothing but its exit status; False where that cannot be told.

    In a container a session's leader may be outside; its number is 0 then.
    """
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except OSError as error:
        return isinstance(error, ProcessLookupError)


def _started_by_accelerate() -> bool:
    # Look at the parent's command: environment variables of the launcher are inherited by all descendants.
    if sys.platform != "linux":
        return False
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return any(Path(word).name == "accelerate" or word.startswith("accelerate.commands") for word in words)
