"""Processes that end with the one that started them, and signals that wait to be asked for."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_Caught = TypeVar("_Caught", bound="CaughtSignals")


class CaughtSignals:
    """Inside a `with` block, signals are noted instead of ending the process.

    Args:
        kinds: which ones.

    Attributes:
        received: those that came, in order.
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


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies. On Linux; elsewhere nothing happens.

    Source: prctl(2), PR_SET_PDEATHSIG. It survives `exec`, so it may be set between fork and exec.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has died meanwhile
            os.kill(os.getpid(), signal.SIGTERM)


def end_with_launcher() -> None:
    """End with `accelerate launch`, or with what started this run inside a sweep.

    Who stops a run (a person, a cluster, a W&B agent) sends the signal to the process that he started. That is the
    launcher, which dies of it and leaves the training running. A run that a shell started outlives it as ever.
    """
    in_sweep = os.environ.get("WANDB_SWEEP_ID") or os.environ.get("PEFTLIB_SWEEP_ID")
    if in_sweep or _started_by_accelerate():
        end_with_parent()


def _started_by_accelerate() -> bool:
    # Asked of the parent, since the launcher's variables reach whatever the training starts, too.
    if sys.platform != "linux":
        return False
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return any(Path(word).name == "accelerate" or word.startswith("accelerate.commands") for word in words)
