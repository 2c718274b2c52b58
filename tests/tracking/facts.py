"""Facts and flags of a made-up run, for tests of the record, the card and the reporter."""

from __future__ import annotations

from typing import Any

from peftlib.arguments import parse_train_arguments
from peftlib.data.tasks import TASKS
from peftlib.fingerprint import Fingerprint
from peftlib.modeling import ModelSource
from peftlib.strategies.parameters import ParameterCount
from peftlib.tracking.record import describe_run


def made_facts() -> dict[str, Any]:
    """Describe a made-up BitFit run on MRPC."""
    split = {"fingerprint": "0" * 64, "source": "made here", "truncated": 0}
    return describe_run(
        ModelSource("some/model", "/models/some"),
        Fingerprint("f" * 64, "c" * 64),
        TASKS["mrpc"],
        {"train": {"examples": 3668, **split}, "validation": {"examples": 408, **split}},
        ParameterCount(trainable=1234, total=1_000_000),
        ("bf16", "auto: this CPU has bf16 instructions"),
        learning_rate=0.003,
        effective_batch_size=16,
    )


def made_arguments(*words: str) -> dict[str, Any]:
    """Return the flags of that run."""
    return parse_train_arguments(["--task_name", "mrpc", "--method", "bitfit", *words]).flat()
