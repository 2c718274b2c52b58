"""The command line of `scripts/predict.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from peftlib.arguments.bounds import at_least
from peftlib.arguments.parser import parse_one_run, words_of
from peftlib.data.tasks import DIAGNOSTICS, MISMATCHED_SPLITS, SPLITS
from peftlib.errors import UserError

#: Flags that say how `test_file` is read.
_OF_A_FILE = ("text_column_names", "label_column_name", "label_delimiter", "ignore_labels")


@dataclass(frozen=True)
class PredictArguments:
    """What to predict with a finished run, and how."""

    split: str = field(
        default="test",
        metadata={
            "help": "split of the run's task to predict",
            "choices": [*SPLITS[1:], *MISMATCHED_SPLITS, DIAGNOSTICS],
        },
    )
    test_file: str | None = field(
        default=None,
        metadata={"help": "a CSV, TSV, JSON or JSON Lines file to predict instead, with labels or without"},
    )
    text: str | None = field(
        default=None, metadata={"help": "a text to predict instead; the answer is printed, and nothing is written"}
    )
    text_pair: str | None = field(default=None, metadata={"help": "the second text of a sentence pair"})
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "text column of test_file, or two columns for sentence pairs, separated by a comma; None uses "
            "the run's, or else the only column besides the label"
        },
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "label column of test_file; None uses the run's"}
    )
    label_delimiter: str | None = field(
        default=None, metadata={"help": "separator of classes in that column; None uses the run's"}
    )
    ignore_labels: bool = field(
        default=False, metadata={"help": "predict test_file without scores: its labels are not the run's classes"}
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "a folder in GLUE's layout; None uses the run's, or else the installed package or the Hub"},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "where the base model is now; None uses the run's"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "allow code that comes with the model to run on this machine"}
    )
    per_device_eval_batch_size: int | None = field(
        default=None, metadata={"help": "examples per batch and process; None uses the run's"}
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] | None = field(
        default=None, metadata={"help": "as in train.py; None uses the run's precision"}
    )
    num_cpu_threads: int = field(
        default=0, metadata={"help": "CPU threads per process; 0 divides the physical cores among the processes"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder for scores and answers; None means predictions/<split or file> in the run's folder"},
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "per_device_eval_batch_size")
        at_least(self, 0, "num_cpu_threads")
        if self.text is not None:
            for name in ("split", "test_file", *_OF_A_FILE, "data_dir", "output_dir"):
                if (value := getattr(self, name)) != vars(type(self))[name]:
                    raise UserError(f"--{name} {value}: cannot be combined with --text")
        elif self.text_pair is not None:
            raise UserError("--text_pair requires --text")
        if self.test_file is None:
            for name in _OF_A_FILE:
                if getattr(self, name) not in (None, False):
                    raise UserError(f"--{name} requires --test_file")
        elif self.data_dir is not None or self.split != "test":
            name = "split" if self.data_dir is None else "data_dir"
            raise UserError(f"--{name} {getattr(self, name)}: cannot be combined with --test_file, which replaces it")

    @property
    def columns(self) -> tuple[str | None, str | None, str | None, bool]:
        """How `test_file` is read."""
        return self.text_column_names, self.label_column_name, self.label_delimiter, self.ignore_labels

    @property
    def texts(self) -> tuple[str, ...]:
        """The text to predict, or the two of a sentence pair; empty where there is a file or a split."""
        return tuple(text for text in (self.text, self.text_pair) if text is not None)


def parse_predict_arguments(argv: Sequence[str] | None = None) -> tuple[str, PredictArguments]:
    """Parse the command line of `scripts/predict.py`: the run's folder, and the options.

    Raises:
        UserError: an unknown flag, a wrong value, or not exactly one run.
        SystemExit: after `--help`.
    """
    about = "Evaluate a finished run on another split or file, or predict new texts."
    words = words_of(argv)
    if sum(word.partition("=")[0] == "--text" for word in words) > 1:  # argparse would take the last
        raise UserError("--text: takes one text; write several into a file for --test_file")
    run, (options,) = parse_one_run([PredictArguments], "predict.py", about, words)
    return run, options
