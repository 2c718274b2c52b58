"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies. On Linux; elsewhere nothing happens.

    Source: prctl(2), PR_SET_PDEATHSIG. It survives `exec`, so it may be set between fork and exec.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_launcher() -> None:
    """Inside a sweep, end with `accelerate launch`.

    To stop a run, a W&B agent sends SIGTERM to the process that it started. That is the launcher, which dies of it
    and leaves the training running beside the sweep's next one.
    """
    if os.environ.get("WANDB_SWEEP_ID") or os.environ.get("PEFTLIB_SWEEP_ID"):
        end_with_parent()
