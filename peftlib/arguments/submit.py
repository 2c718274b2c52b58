"""The command line of `scripts/submit.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftlib.arguments.parser import parse_runs
from peftlib.data.glue_server import REST, SERVER_FILES
from peftlib.errors import UserError, nearest


@dataclass(frozen=True)
class SubmitArguments:
    """How to make a submission from finished runs' predictions."""

    output_file: str = field(
        default="submission.zip",
        metadata={"help": "zip file for GLUE's server; an earlier one is replaced"},
    )
    fill: str | None = field(
        default=None,
        metadata={
            "help": f"files that no run has answered, separated by commas, such as WNLI,AX: they get the most common "
            f"class as every answer; {REST} means those of all tasks without a run"
        },
    )

    def __post_init__(self) -> None:
        if Path(self.output_file).suffix != ".zip":
            raise UserError(f"--output_file {self.output_file}: must end in .zip, which is what GLUE's server takes")
        known = (*SERVER_FILES, REST)
        for name in self.filled:
            if name not in known:
                raise UserError(f"--fill {name}: no such file{nearest(name, known)} (known: {', '.join(known)})")

    @property
    def filled(self) -> tuple[str, ...]:
        """The names in `fill`, without .tsv."""
        return tuple(name.strip().removesuffix(".tsv") for name in (self.fill or "").split(",") if name.strip())


def parse_submit_arguments(argv: Sequence[str] | None = None) -> tuple[list[str], SubmitArguments]:
    """Parse the command line of `scripts/submit.py`: the runs' folders or globs, and the options.

    Raises:
        UserError: an unknown flag or a wrong value, or no runs.
        SystemExit: after `--help`.
    """
    about = "Put what finished runs have answered into the zip that GLUE's server takes."
    return parse_runs(SubmitArguments, "submit.py", about, argv)
