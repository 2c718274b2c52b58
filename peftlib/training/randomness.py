"""Capture and restore the state of every random generator of a process, without pickle."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_DEVICES: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps}  # devices that have their own generator


def capture_random() -> dict[str, Any]:
    """Copy the states of the generators of Python, NumPy, torch and the current GPU."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    return state | {name: device.get_rng_state() for name, device in _DEVICES.items() if device.is_available()}


def restore_random(state: dict[str, Any]) -> None:
    """Restore the states that `capture_random` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    for name, device in _DEVICES.items():
        if name in state and device.is_available():
            device.set_rng_state(state[name])


def to_tensors(state: dict[str, Any], prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split a captured state into tensors, with names that begin with `prefix`, and values that JSON holds exactly."""
    version, words, gauss = state["python"]
    numpy = state["numpy"]
    tensors = {
        f"{prefix}.python": torch.tensor(words, dtype=torch.int64),
        f"{prefix}.numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        f"{prefix}.torch": state["torch"],
    }
    tensors |= {f"{prefix}.{name}": state[name] for name in _DEVICES if name in state}
    scalars = {
        "python": {"version": version, "gauss": gauss},
        "numpy": {
            "bit_generator": numpy["bit_generator"],
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
    }
    return tensors, scalars


def from_tensors(tensors: dict[str, torch.Tensor], scalars: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Rebuild the state that `to_tensors` split."""
    python, numpy = scalars["python"], scalars["numpy"]
    state: dict[str, Any] = {
        "python": (python["version"], tuple(tensors[f"{prefix}.python"].tolist()), python["gauss"]),
        "numpy": {
            "bit_generator": numpy["bit_generator"],
            "state": {"key": tensors[f"{prefix}.numpy"].numpy().astype(np.uint32), "pos": numpy["pos"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        },
        "torch": tensors[f"{prefix}.torch"],
    }
    return state | {name: tensors[f"{prefix}.{name}"] for name in _DEVICES if f"{prefix}.{name}" in tensors}
