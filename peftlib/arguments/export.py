"""The command line of `scripts/export.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from peftlib.arguments.parser import parse_one_run


@dataclass(frozen=True)
class ExportArguments:
    """Where a finished run's model goes, and in which form."""

    output_dir: str | None = field(
        default=None, metadata={"help": "the new model's folder; None means model in the run's folder"}
    )
    dtype: Literal["fp32", "fp16", "bf16"] = field(default="fp32", metadata={"help": "precision of the saved weights"})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "where the base model is now; None takes the run's"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "let code that comes with the model run on this machine"}
    )


def parse_export_arguments(argv: Sequence[str] | None = None) -> tuple[str, ExportArguments]:
    """Parse the flags of `scripts/export.py`: the run's folder, and what is made of it.

    Raises:
        UserError: an unknown flag or a wrong value, or not one run.
        SystemExit: after `--help`.
    """
    return parse_one_run(ExportArguments, "export.py", "Make a plain checkpoint of a finished run.", argv)
