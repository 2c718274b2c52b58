"""The command line of `scripts/sweep.py`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftlib.arguments.bounds import at_least
from peftlib.arguments.parser import Parser, words_of
from peftlib.errors import UserError


@dataclass(frozen=True)
class SweepArguments:
    """How to run a sweep."""

    sweep_dir: str | None = field(
        default=None,
        metadata={"help": "folder for the study and the runs; None means outputs/sweeps/<name>"},
    )
    workers: int = field(default=1, metadata={"help": "number of runs in parallel on this machine"})
    count: int | None = field(default=None, metadata={"help": "start at most N runs in this call; None means no limit"})
    seed: int = field(
        default=0, metadata={"help": "random seed of the random and bayes searches; a run's own is train.py's --seed"}
    )
    retry_failed: bool = field(
        default=False,
        metadata={"help": "run the points of a grid that have failed again; random and bayes draw as many new ones"},
    )
    dry_run: bool = field(default=False, metadata={"help": "print the runs and their number; start nothing"})
    set: list[str] = field(
        default_factory=list,
        metadata={
            "help": "parameters that override the file's, as in --set 'seed=[1, 2, 3]' data_dir=glue; give the same "
            "ones when continuing"
        },
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "workers", "count")
        at_least(self, 0, "seed")


def parse_sweep_arguments(argv: Sequence[str] | None = None) -> tuple[Path, SweepArguments]:
    """Parse the command line of `scripts/sweep.py`: the sweep's file, and the options.

    Raises:
        UserError: an unknown flag or a wrong value.
        SystemExit: after `--help`.
    """
    parser = Parser(
        [SweepArguments], prog="sweep.py", description="Run a W&B sweep's YAML on this machine.", allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the sweep, in W&B's format")
    options, rest = parser.parse_words(_with_parameters_last(words_of(argv)))
    return rest.file, options


def _with_parameters_last(words: list[str]) -> list[str]:
    """Move the values of each `--set` to the end; they end at the first word that is no assignment: the file or a flag.

    Otherwise argparse would take the file for one of them.
    """
    others: list[str] = []
    settings: list[str] = []
    before, taking = "", False
    for word in itertools.chain(*(word.split("=", 1) if word.startswith("--set=") else [word] for word in words)):
        if before == "--set" and "=" not in word:
            raise UserError(f"--set {word}: must be a parameter and its value, as in --set seed=3")
        before, taking = word, word == "--set" or (taking and "=" in word and not word.startswith("--"))
        if taking and word != "--set":
            settings.append(word)
        elif not taking:
            others.append(word)
    return [*others, *(["--set", *settings] if settings or "--set" in words else [])]
