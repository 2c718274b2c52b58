"""The state of every random generator of a process, taken and put back without pickle."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_DEVICES: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps}  # those with a generator of their own


def capture_random() -> dict[str, Any]:
    """Copies of the states of Python's, NumPy's, torch's and the current GPU's generators."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    return state | {name: device.get_rng_state() for name, device in _DEVICES.items() if device.is_available()}


def restore_random(state: dict[str, Any]) -> None:
    """Put back what `capture_random` took."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    for name, device in _DEVICES.items():
        if name in state and device.is_available():
            device.set_rng_state(state[name])


def to_tensors(state: dict[str, Any], prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split a captured state into tensors, named from `prefix` on, and values that JSON holds exactly."""
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
    """What `to_tensors` took apart."""
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
