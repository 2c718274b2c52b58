"""Find out which data the comparison can be run on, before anything starts, and set up its sweep."""

from __future__ import annotations

import json
from pathlib import Path

from peftlib.data.sources import load_examples
from peftlib.data.tasks import TASKS
from peftlib.errors import UserError
from peftlib.modeling import find_model

TASK_NAMES = ("mrpc", "sst2")
PACKAGED_TASK = "rotten_tomatoes"


def tasks_at_hand(data_dir: str | None) -> tuple[tuple[str, ...], str | None]:
    """Return the tasks to run, and a notice that says why they are not MRPC and SST-2 (None if they are).

    Raises:
        UserError: `data_dir` does not hold the tasks.
    """
    try:
        for name in TASK_NAMES:
            load_examples(TASKS[name], "validation", None if data_dir is None else Path(data_dir))
    except UserError as error:
        if data_dir is not None:
            raise
        return (PACKAGED_TASK,), (
            f"MRPC and SST-2 are not available ({error}); running the same grid on {PACKAGED_TASK}, which is packaged. "
            "If the GLUE folders are on this machine, use make reproduce GLUE=DIR"
        )
    return TASK_NAMES, None


def sweep_words(
    model: str, tasks: tuple[str, ...], data_dir: str | None, seeds: str, max_train_samples: int | None
) -> tuple[list[str], Path]:
    """Return the words for `scripts/sweep.py --set`, and the sweep's default folder.

    Raises:
        UserError: the model is not available.
    """
    find_model(model)
    # As JSON: YAML would read a bare `010` as 8, and ` #2` as a comment.
    words = [f"model_name_or_path={json.dumps(model)}", f"task_name={json.dumps(tasks)}"]
    words.append(f"seed={json.dumps([int(seed) for seed in seeds.split(',')])}")
    if data_dir is not None:
        words.append(f"data_dir={json.dumps(data_dir)}")
    if max_train_samples is not None:
        words.append(f"max_train_samples={max_train_samples}")
    return words, Path("outputs") / "sweeps" / f"reproduce-{Path(model).name}-{'-'.join(tasks)}"
