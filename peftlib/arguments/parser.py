"""The parser of every script: dataclasses from flags, and one line that says what is wrong."""

from __future__ import annotations

import itertools
import re
import sys
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers.hf_argparser import HfArgumentParser, string_to_bool

from peftlib.arguments.other_names import instead_of
from peftlib.errors import UserError, nearest

#: How the names of flags end that take a path, or may take one.
_PATHS = ("_dir", "_file", "_or_path", "dataset_name")

_TOKEN = "would end up in shell histories, process lists and records; run `hf auth login`, or set HF_TOKEN"
#: Flags that other programs have and these may not have, each with what to do instead.
REFUSED = {"hub_token": _TOKEN, "token": _TOKEN, "use_auth_token": _TOKEN}


class Parser(HfArgumentParser):
    """HfArgumentParser with one-line errors that name the nearest right flag or value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for action in self._actions:
            if action.option_strings and action.option_strings[0].startswith("--no_"):
                action.help = SUPPRESS  # it would be the help of the flag that it turns off
            elif action.nargs == "?" and action.const is True:
                action.metavar = "BOOL"

    def error(self, message: str) -> NoReturn:
        # argparse: "argument --max_length/--max-length: invalid int value: 'x'"
        raise UserError(re.sub(r"^argument (--\w+)\S*:", r"\1:", message))

    def _check_value(self, action: Any, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            flag, known = action.option_strings[0], [str(choice) for choice in action.choices]
            raise UserError(f"{flag} {value}: unknown{nearest(str(value), known)} (known: {', '.join(known)})")

    def flags(self) -> list[str]:
        """Every long option, with underscores."""
        return [option for option in self._option_string_actions if option.startswith("--") and "-" not in option[2:]]

    def instead_of(self, name: str, *but: str) -> str:
        """What to write in place of `name`, which is no flag: see `other_names`.

        Args:
            name: without dashes before it.
            but: flags that are not to be offered.
        """
        told = self._option_string_actions
        return instead_of(name, [flag for flag in self.flags() if told[flag].help != SUPPRESS and flag not in but])

    def parse_words(self, words: list[str]) -> list[Any]:
        """The dataclasses, and behind them the namespace of all other arguments when there are any.

        Raises:
            UserError: an unknown flag or a wrong value.
            SystemExit: after `--help`.
        """
        *parsed, unknown = self.parse_args_into_dataclasses(
            self._with_values(words), look_for_args_file=False, return_remaining_strings=True
        )
        if unknown:
            self._refuse(unknown[0])
        for name, value in (pair for group in parsed for pair in vars(group).items()):
            if name.endswith(_PATHS) and isinstance(value, str):
                if not value.strip():  # a variable of the shell's that is not set; as a path it is the folder of now
                    raise UserError(f"--{name}: is empty; give a value, or leave the flag out")
                if value.startswith("~"):  # would be a folder of that name
                    raise UserError(f"--{name} {value}: the shell has not expanded ~ here; write the full path")
        return parsed

    def _with_values(self, words: list[str]) -> list[str]:
        """`--flag` of a switch as `--flag=true`, where it would take the word behind it for its value."""
        actions = self._option_string_actions.items()
        switches = {option for option, action in actions if action.nargs == "?" and action.const is True}
        return [
            f"{word}=true" if word in switches and (not _is_truth(after) or Path(after).exists()) else word
            for word, after in itertools.pairwise([*words, ""])
        ]

    def _refuse(self, word: str) -> NoReturn:
        flag = word.partition("=")[0]
        if underscored(flag) in REFUSED:
            raise UserError(f"{flag}: {REFUSED[underscored(flag)]}")
        if flag.startswith("-"):
            raise UserError(f"{flag}: no such flag{self.instead_of(underscored(flag), '--help')}")
        raise UserError(f"{word!r}: unexpected, no flag before it takes it; see --help")


def _is_truth(word: str) -> bool:
    """Whether HfArgumentParser takes it for the value of a switch."""
    try:
        string_to_bool(word)
    except ArgumentTypeError:
        return False
    return True


def parse_one_run(kinds: Sequence[type], prog: str, about: str, argv: Sequence[str] | None) -> tuple[str, list[Any]]:
    """The folder of a run, and flags: for scripts that do something with one finished run.

    Args:
        kinds: the flags' dataclasses.

    Raises:
        UserError: an unknown flag or a wrong value, or not one run.
        SystemExit: after `--help`.
    """
    parser = Parser(list(kinds), prog=prog, description=about, allow_abbrev=False)
    # Checked below: argparse's own message would name no example, and its help a default.
    parser.add_argument("runs", metavar="RUN", nargs="*", default=SUPPRESS, help="the folder of a finished run")
    *options, rest = parser.parse_words(words_of(argv))
    runs = getattr(rest, "runs", [])
    if len(runs) != 1:
        raise UserError(f"{len(runs)} runs given: name one run's folder, as in {prog} outputs/my-run")
    return runs[0], options


def words_of(argv: Sequence[str] | None) -> list[str]:
    """The words to parse: those given, or else the command line's."""
    return list(sys.argv[1:] if argv is None else argv)


def underscored(flag: str) -> str:
    """--lora-r -> lora_r"""
    return flag.lstrip("-").replace("-", "_")
