"""The command line of `scripts/compare.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from peftlib.arguments.bounds import at_least
from peftlib.arguments.parser import parse_runs


@dataclass(frozen=True)
class CompareArguments:
    """What to do with finished runs."""

    output_dir: str = field(
        default="report", metadata={"help": "folder for the report; an earlier report in it is replaced"}
    )
    examples: bool = field(
        default=False,
        metadata={
            "help": "compare two runs side by side: what one gets right and the other wrong, or where its score is "
            "closer; writes no report"
        },
    )
    max_examples: int = field(default=20, metadata={"help": "with examples: show at most N per side"})

    def __post_init__(self) -> None:
        at_least(self, 1, "max_examples")


def parse_compare_arguments(argv: Sequence[str] | None = None) -> tuple[list[str], CompareArguments]:
    """Parse the command line of `scripts/compare.py`: the runs' folders or globs, and the options.

    Raises:
        UserError: an unknown flag or a wrong value, or no runs.
        SystemExit: after `--help`.
    """
    about = "Compare finished runs."
    return parse_runs(CompareArguments, "compare.py", about, argv)
