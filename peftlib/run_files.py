"""Read what a run leaves in its folder: its record, its metrics, and the line that says why it ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

#: The record, the curves, the results, the saved state's answers, and the folder of checkpoints.
RECORD, METRICS, RESULTS, PREDICTIONS = "run.json", "metrics.jsonl", "all_results.json", "predictions.safetensors"
#: What the names of checkpoints begin with, and those of unfinished ones.
CHECKPOINTS, CHECKPOINT, UNFINISHED = "checkpoints", "step_", ".writing-"
#: Locked by the process that writes into the folder.
LOCK = ".lock"
#: PEFT's names of an adapter's two files; a run that saved the whole model has neither.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def read_record(folder: Path) -> dict[str, Any]:
    """Read `run.json`.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: the file is damaged.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("it holds no object")
    return record


def record_in(folder: Path) -> dict[str, Any]:
    """Read `run.json`; returns {} if it is missing or unreadable."""
    try:
        return read_record(folder)
    except (OSError, ValueError):
        return {}


def best_scores(results: dict[str, Any]) -> dict[str, float]:
    """Return the saved state's scores on the validation split, as metric -> value.

    Args:
        results: the content of `all_results.json`.
    """
    return {
        name.removeprefix("best_eval_"): value
        for name, value in results.items()
        if name.startswith("best_eval_") and name != "best_eval_step"
    }


def leak_in_words(validation: Mapping[str, Any]) -> str | None:
    """Say how many validation texts were trained on; None if none were, or a run's version did not look.

    Args:
        validation: the entry `data.validation` of `run.json`.
    """
    if not (leaked := validation.get("leaked")):
        return None
    return (
        f"the texts of {leaked:,} of {validation['examples']:,} validation examples are training texts too, which "
        "makes scores look better than they are"
    )


def logged_in(folder: Path, containing: str = "") -> Iterator[dict[str, Any]]:
    """Yield the lines of `metrics.jsonl` in order, each with its `step`; skips a line truncated by a kill.

    Args:
        containing: lines without this text are skipped unparsed.
    """
    path = folder / METRICS
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        if containing in line:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                yield values


def last_words(lines: Iterable[str]) -> str | None:
    """Return the last line of one of our commands' output that says why it ended; None if there is none."""
    return next((line.strip() for line in reversed([*lines]) if line.startswith(("error: ", "failed: "))), None)
