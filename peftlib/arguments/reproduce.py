"""The command line of `scripts/reproduce.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from peftlib.arguments.bounds import at_least
from peftlib.arguments.parser import Parser, words_of
from peftlib.errors import UserError
from peftlib.modeling import DEFAULT_MODEL


@dataclass(frozen=True)
class ReproduceArguments:
    """Model, data and seeds on which to repeat the comparison that this project began with."""

    model_name_or_path: str = field(
        default=DEFAULT_MODEL, metadata={"help": "base model; the first report used bert-base-uncased"}
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "a folder with MRPC and SST-2 in GLUE's layout; None uses the Hub"},
    )
    seeds: str = field(default="42,43,44", metadata={"help": "a comma-separated list of seeds"})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on the first N examples of each task only; None uses all"}
    )
    set: list[str] = field(
        default_factory=list, metadata={"help": "parameters that override the sweep's, as in sweep.py"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print the runs and their number; start nothing"})
    retry_failed: bool = field(default=False, metadata={"help": "run those again that have failed"})
    workers: int = field(default=1, metadata={"help": "number of runs in parallel on this machine"})
    sweep_dir: str | None = field(
        default=None, metadata={"help": "folder for the runs; None means outputs/sweeps/reproduce-<model>-<tasks>"}
    )
    output_dir: str = field(default="report", metadata={"help": "folder for the report"})

    def __post_init__(self) -> None:
        at_least(self, 1, "max_train_samples", "workers")
        if not re.fullmatch(r"\d+(,\d+)*", self.seeds):
            raise UserError(f"--seeds {self.seeds}: must be whole numbers separated by commas, as in 42,43,44")


def parse_reproduce_arguments(argv: Sequence[str] | None = None) -> ReproduceArguments:
    """Parse the command line of `scripts/reproduce.py`.

    Raises:
        UserError: an unknown flag or a wrong value.
        SystemExit: after `--help`.
    """
    parser = Parser([ReproduceArguments], prog="reproduce.py", description="Run the comparison.", allow_abbrev=False)
    (options,) = parser.parse_words(words_of(argv))
    return options
