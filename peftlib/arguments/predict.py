"""The command line of `scripts/predict.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from peftlib.arguments.bounds import at_least
from peftlib.arguments.parser import parse_one_run
from peftlib.data.tasks import DIAGNOSTICS, MISMATCHED_SPLITS, SPLITS
from peftlib.errors import UserError


@dataclass(frozen=True)
class PredictArguments:
    """What a finished run is asked."""

    split: str = field(
        default="test",
        metadata={"help": "the split of the run's task", "choices": [*SPLITS[1:], *MISMATCHED_SPLITS, DIAGNOSTICS]},
    )
    test_file: str | None = field(
        default=None,
        metadata={
            "help": "a CSV, TSV, JSON or JSON Lines file in its place, with a column of classes or scores, or without"
        },
    )
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "the column of texts in test_file, or two of sentence pairs with a comma between; None takes the "
            "run's, or else the one beside the classes"
        },
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "the column of classes or scores in test_file; None takes the run's"}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "a folder in GLUE's layout; None takes the run's, or the package or the Hub"}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "where the base model is now; None takes the run's"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "let code that comes with the model run on this machine"}
    )
    per_device_eval_batch_size: int | None = field(
        default=None, metadata={"help": "examples per batch and process; None takes the run's"}
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] | None = field(
        default=None, metadata={"help": "as of train.py; None takes the one that the run computed in"}
    )
    num_cpu_threads: int = field(
        default=0, metadata={"help": "threads per process on a CPU; 0 shares the physical cores between processes"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "where scores and answers go; None means predictions/<split or file> in the run's folder"},
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "per_device_eval_batch_size")
        at_least(self, 0, "num_cpu_threads")
        if self.test_file is None:
            for name in ("text_column_names", "label_column_name"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name}: is of --test_file; name that file too")
        elif self.data_dir is not None or self.split != "test":
            name = "split" if self.data_dir is None else "data_dir"
            raise UserError(
                f"--{name} {getattr(self, name)}: --test_file stands in its place; leave one of the two out"
            )


def parse_predict_arguments(argv: Sequence[str] | None = None) -> tuple[str, PredictArguments]:
    """Parse the flags of `scripts/predict.py`: the run's folder, and what it is asked.

    Raises:
        UserError: an unknown flag or a wrong value, or not one run.
        SystemExit: after `--help`.
    """
    about = "Score a finished run, or let it answer texts without classes."
    run, (options,) = parse_one_run([PredictArguments], "predict.py", about, argv)
    return run, options
