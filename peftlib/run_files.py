"""What a run leaves in its folder, as whoever comes later reads it: its record, its curves, its last words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

#: An adapter's two files, as stock PEFT calls them; a run that left the whole model has neither.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def read_record(folder: Path) -> dict[str, Any]:
    """The content of `run.json`.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is damaged.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("it holds no object")
    return record


def record_in(folder: Path) -> dict[str, Any]:
    """The content of `run.json`; empty where there is none, or none that can be read."""
    try:
        return read_record(folder)
    except (OSError, ValueError):
        return {}


def logged_in(folder: Path, containing: str = "") -> Iterator[dict[str, Any]]:
    """The lines of `metrics.jsonl` in order, each with its `step`; without the one that was cut off by a kill.

    Args:
        containing: a text; lines without it are passed over, and cost no parsing.
    """
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        if containing in line:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and "step" in values:
                yield values


def last_words(lines: Iterable[str]) -> str | None:
    """Of what a command of ours printed, the line that says why it ended; None if it has left none."""
    return next((line.strip() for line in reversed([*lines]) if line.startswith(("error: ", "failed: "))), None)
