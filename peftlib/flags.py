"""Properties of some flags of `scripts/train.py`; the flags themselves are defined in `arguments/`."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from peftlib.files import Twice, each_once

#: Flags that say where, how often or how fast, not what is computed: a resumed run may change them, and runs that
#: differ only in them count as the same configuration.
NOT_SHAPING = frozenset({
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "extend_training", "checkpointing_steps",
    "checkpoints_total_limit", "report_to", "project_name", "run_name", "logging_steps", "dataloader_num_workers",
    "num_cpu_threads", "per_device_eval_batch_size", "auto_find_batch_size", "data_dir", "dry_run",
    "push_to_hub", "hub_model_id", "hub_private_repo",
    # Models are compared by weights and configuration.
    "trust_remote_code",
    # On GPUs they change dropout masks and rounding; but if capturing fails, or memory runs out, a run has to go on.
    "cuda_graphs", "gradient_checkpointing",
    # Data are compared by their fingerprint.
    "dataset_name", "dataset_config_name", "train_split_name", "validation_split_name", "test_split_name",
    "train_file", "validation_file", "validation_split_percentage", "text_column_names", "label_column_name",
    "label_delimiter", "do_regression",
})  # fmt: skip
#: They may differ between the nodes of one run: where things are on each, and what its processor is used for.
OF_A_NODE = frozenset({
    "output_dir", "data_dir", "dataset_name", "train_file", "validation_file", "task_name", "model_name_or_path",
    "resume_from_checkpoint", "dataloader_num_workers", "num_cpu_threads",
})  # fmt: skip
#: Flags that records and checkpoints of earlier versions lack -> the value that stands for what those runs did.
WHERE_ABSENT = {"acceleration": "auto", "class_weights": "none", "label_smoothing_factor": 0.0}
#: Endings of flags whose value is, or may be, a JSON object; in YAML it may be a mapping.
TAKES_JSON = ("_kwargs", "class_weights")


def name_own_data(flags: Mapping[str, Any]) -> bool:
    """Whether a run's flags name the user's own data, whatever its task is called.

    Args:
        flags: name -> value; missing ones have their defaults.
    """
    return bool(flags.get("train_file") or flags.get("dataset_name"))


def as_json(mapping: dict[str, Any]) -> str:
    """Convert a YAML mapping to JSON for such a flag.

    YAML 1.1 reads 1e-1 as a string, for lack of a dot; here it becomes a number. It reads the name `yes` as True, of
    which JSON would make another name, `true`.

    Raises:
        ValueError, TypeError: JSON cannot represent a name or a value.
    """
    for name in mapping:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(f"YAML reads a name in it as {name}")
    return json.dumps({name: _number(value) for name, value in mapping.items()}, allow_nan=False)


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def from_json(text: str, example: str) -> dict[str, Any]:
    """Parse the JSON object of such a flag.

    Args:
        example: of an object, for the message.

    Raises:
        ValueError: it is none, or has a name twice; the message says so.
    """
    try:
        value = json.loads(text, object_pairs_hook=each_once)
    except Twice:
        raise
    except (ValueError, RecursionError) as error:
        try:
            value = json.loads(json.dumps(ast.literal_eval(text)))  # W&B agents pass a Python literal
        except (ValueError, SyntaxError, TypeError, RecursionError):
            raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, such as '{example}'")
    return value
