"""The parser of every script: flags to dataclasses, with one-line errors."""

from __future__ import annotations

import itertools
import re
import sys
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformers.hf_argparser import HfArgumentParser, string_to_bool

from peftlib.arguments.other_names import instead_of, value_instead_of
from peftlib.errors import UserError

_Options = TypeVar("_Options")
#: Name endings of flags whose value is, or may be, a path.
_PATHS = ("_dir", "_file", "_or_path", "dataset_name")

_NO_FLAG = "no flag before it takes it; see --help"
_TOKEN = "would end up in shell histories, process lists and records; run `hf auth login`, or set HF_TOKEN"
#: Flags of other programs that are deliberately missing here -> why, and what to do instead.
REFUSED = {"hub_token": _TOKEN, "token": _TOKEN, "use_auth_token": _TOKEN}


class Parser(HfArgumentParser):
    """HfArgumentParser with one-line errors that name the nearest right flag or value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for action in self._actions:
            if action.option_strings and action.option_strings[0].startswith("--no_"):
                action.help = SUPPRESS  # it would repeat the help of the flag that it negates
            elif action.nargs == "?" and action.const is True:
                action.metavar = "BOOL"

    def error(self, message: str) -> NoReturn:
        # argparse: "argument --max_length/--max-length: invalid int value: 'x'"
        raise UserError(re.sub(r"^argument (--\w+)\S*:", r"\1:", message))

    def _check_value(self, action: Any, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            flag, known = action.option_strings[0], [str(choice) for choice in action.choices]
            hint = value_instead_of(flag, str(value), known)
            raise UserError(f"{flag} {value}: unknown{hint} (known: {', '.join(known)})")

    def flags(self) -> list[str]:
        """Return every long option, with underscores."""
        return [option for option in self._option_string_actions if option.startswith("--") and "-" not in option[2:]]

    def instead_of(self, name: str, *but: str) -> str:
        """Return a hint for the unknown flag `name`, see `other_names.instead_of`.

        Args:
            name: without leading dashes.
            but: flags not to suggest.
        """
        actions = self._option_string_actions
        return instead_of(name, [flag for flag in self.flags() if actions[flag].help != SUPPRESS and flag not in but])

    def parse_words(self, words: list[str]) -> list[Any]:
        """Parse into the dataclasses, followed by a namespace of all other arguments if there are any.

        Raises:
            UserError: an unknown flag or a wrong value.
            SystemExit: after `--help`.
        """
        *parsed, unknown = self.parse_args_into_dataclasses(
            self._with_values(words), look_for_args_file=False, return_remaining_strings=True
        )
        if unknown:
            self._refuse(unknown)
        for name, value in (pair for group in parsed for pair in vars(group).items()):
            if name.endswith(_PATHS) and isinstance(value, str):
                if not value.strip():  # for instance an unset shell variable; as a path it means the current folder
                    raise UserError(f"--{name}: is empty; give a value, or leave the flag out")
                if value.startswith("~"):  # would be taken for a folder called ~
                    raise UserError(f"--{name} {value}: the shell has not expanded ~ here; write the full path")
        return parsed

    def _with_values(self, words: list[str]) -> list[str]:
        """Write a bare boolean `--flag` as `--flag=true`, so that it does not consume the next word as its value."""
        actions = self._option_string_actions.items()
        switches = {option for option, action in actions if action.nargs == "?" and action.const is True}
        return [
            f"{word}=true" if word in switches and (not _is_truth(after) or Path(after).exists()) else word
            for word, after in itertools.pairwise([*words, ""])
        ]

    def _refuse(self, words: list[str]) -> NoReturn:
        """Refuse flags that do not exist, and words that no flag takes; what follows such a flag may be its value."""
        if "--" in words:
            raise UserError("--: unexpected; leave it out, the flags after it would not be read")
        stray = itertools.takewhile(lambda word: not word.startswith("-"), words)
        flags = [word.partition("=")[0] for word in words if re.match("--?[^-0-9.]", word)]
        reasons = [f"{word!r}: unexpected, {_NO_FLAG}" for word in stray] + [self._why_not(flag) for flag in flags]
        raise UserError(*dict.fromkeys(reasons or [f"{words[0]!r}: unexpected, {_NO_FLAG}"]))

    def _why_not(self, flag: str) -> str:
        """Say why there is no such flag."""
        name = underscored(flag)
        reason = REFUSED[name] if name in REFUSED else f"no such flag{self.instead_of(name, '--help')}"
        return f"{flag}: {reason}"


def _is_truth(word: str) -> bool:
    """Whether HfArgumentParser accepts the word as a boolean."""
    try:
        string_to_bool(word)
    except ArgumentTypeError:
        return False
    return True


def parse_one_run(kinds: Sequence[type], prog: str, about: str, argv: Sequence[str] | None) -> tuple[str, list[Any]]:
    """Parse the command line of a script that takes one finished run: the run's folder, and the flags.

    Args:
        kinds: the flags' dataclasses.

    Raises:
        UserError: an unknown flag, a wrong value, or not exactly one run.
        SystemExit: after `--help`.
    """
    parser = Parser(list(kinds), prog=prog, description=about, allow_abbrev=False)
    # Counted below: argparse's own message would show no example, and its help would show a default.
    parser.add_argument("runs", metavar="RUN", nargs="*", default=SUPPRESS, help="the folder of a finished run")
    *options, rest = parser.parse_words(words_of(argv))
    runs = getattr(rest, "runs", [])
    if len(runs) != 1:
        raise UserError(f"{len(runs)} runs given: name one run's folder, as in {prog} outputs/my-run")
    return runs[0], options


def parse_runs(kind: type[_Options], prog: str, about: str, argv: Sequence[str] | None) -> tuple[list[str], _Options]:
    """Parse the command line of a script that takes any number of runs: their folders or globs, and the flags.

    Args:
        kind: the flags' dataclass.

    Raises:
        UserError: an unknown flag or a wrong value, or no runs.
        SystemExit: after `--help`.
    """
    parser = Parser([kind], prog=prog, description=about, allow_abbrev=False)
    parser.add_argument(
        "runs", metavar="RUNS", nargs="*", help="folders of runs or sweeps, folders that contain them, or globs"
    )
    options, rest = parser.parse_words(words_of(argv))
    if not rest.runs:
        raise UserError(f"no runs: name their folders, as in {prog} outputs/*")
    return rest.runs, options


def words_of(argv: Sequence[str] | None) -> list[str]:
    """Return the words to parse: `argv`, or the process's command line if it is None.

    Raises:
        UserError: one is not UTF-8, so neither records nor messages can hold it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{word!a}: is not UTF-8; rename it, or set PYTHONUTF8=1 if it is") from None
    return words


def underscored(flag: str) -> str:
    """Convert --lora-r to lora_r."""
    return flag.lstrip("-").replace("-", "_")
