"""A model's answers on a split, in one small file, so that finished runs can be compared example by example."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from peftlib.errors import UserError

PREDICTIONS = "predictions.safetensors"


def save_predictions(folder: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Write `predictions.safetensors` into `folder`, which is not yet anybody's to read.

    Args:
        logits: fp32, shape (examples, classes), in the split's order.
        labels: int64, shape (examples,).
    """
    tensors: dict[str, np.ndarray] = {
        "logits": np.ascontiguousarray(logits, np.float32),
        "labels": np.ascontiguousarray(labels, np.int64),
    }
    save_file(tensors, folder / PREDICTIONS)


def load_predictions(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits, fp32 (examples, classes), and labels, int64 (examples,); None when the run has left none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / PREDICTIONS
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        return tensors["logits"], tensors["labels"]
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run it again, or remove the file") from error
