"""What a run ran on: versions, source, machine, and the memory that it took."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_VERSIONS = ("accelerate", "datasets", "evaluate", "numpy", "peft", "peftlib", "safetensors", "tokenizers", "torch",
             "transformers", "wandb")  # fmt: skip


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, source commit and machine, for `run.json`."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
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
    """The commit of the checkout that holds this file of ours, and whether anything in it was changed.

    None outside a checkout, and where it does not know the file: in a virtual environment in another project's.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a CUDA device, else the most that the process had resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def peak_resident() -> int:
    """Bytes: the most that the process has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine())
