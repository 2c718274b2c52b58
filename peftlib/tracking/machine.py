"""The environment of a run: versions, source commit, machine, other load on its cores, and peak memory."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from peftlib import __version__

_VERSIONS = ("accelerate", "datasets", "evaluate", "numpy", "peft", "safetensors", "tokenizers", "transformers",
             "wandb")  # fmt: skip
_LEAST_SECONDS = 0.5


def environment(device: torch.device) -> dict[str, Any]:
    """Collect versions, source commit and machine for `run.json`."""
    return {
        # What the metadata lack: which build torch is (+cpu, +cu130), and of which version an editable install is now.
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "peftlib": __version__}
        | {name: _version(name) for name in _VERSIONS},
        "git": git_state(Path(__file__).resolve()),
        "machine": {
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
            "device_type": device.type,
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def git_state(file: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout that holds `file`, and whether the checkout has uncommitted changes.

    Untracked files are no changes: most are data and results, and code is used only if a tracked file imports it.

    None outside a checkout, or if it does not track the file: a virtual environment may lie in another project's
    checkout.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


class Neighbours:
    """Measures, from its construction on, the load of other processes on the cores that this process may use.

    Threads that share a matrix product wait for each other at its end, and OpenMP's threads busy-wait: with both of
    two cores taken by others, a run on two threads has been seen to take eight to fifty times as long.
    """

    def __init__(self) -> None:
        self._usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        self._start = self._now()

    def busy_cores(self) -> float:
        """Return how many cores other processes kept busy, on average; 0 until half a second has passed."""
        wall, busy, own = (now - before for now, before in zip(self._now(), self._start, strict=True))
        return max(0.0, (busy - own) / wall) if wall >= _LEAST_SECONDS else 0.0

    def _now(self) -> tuple[float, float, float]:
        """Wall-clock time, busy time of the usable cores, and CPU time of this process and its children, in seconds."""
        cores = psutil.cpu_times(percpu=True)
        chosen = cores if self._usable is None else [cores[core] for core in self._usable if core < len(cores)]
        own = os.times()
        busy = sum(core.user + core.system + getattr(core, "nice", 0.0) for core in chosen)
        return time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of tensors on a CUDA device, else resident memory of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def peak_resident() -> int:
    """Return the peak resident memory of this process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())
