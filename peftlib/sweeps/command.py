"""The command line of a sweep's runs: W&B's macros, checked and expanded, and the program that it starts."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlib.errors import UserError, nearest

if TYPE_CHECKING:
    from peftlib.sweeps.config import Sweep

_DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
_ARGS_MACROS = ("${args}", "${args_no_equals}", "${args_no_boolean_flags}", "${args_no_hyphens}", "${args_json}",
                "${args_json_file}", "${args_append_hydra}", "${args_override_hydra}")  # fmt: skip
_MACROS = ("${env}", "${interpreter}", "${program}", *_ARGS_MACROS)


def parse_command(words: Any) -> tuple[str, ...]:
    """Check a sweep's `command`; None gives W&B's default.

    Raises:
        UserError: it is no list, has an unknown macro, or has no macro that passes the values on.
    """
    if words is None:
        return _DEFAULT
    if not isinstance(words, list) or not words:
        raise UserError("command: must be a list of words and macros")
    command = tuple(str(word) for word in words)
    for word in command:
        # W&B's agent silently drops unknown macros.
        if re.fullmatch(r"\$\{.*\}", word) and word not in _MACROS and not re.search(r"\$\{envvar:[A-Z0-9_]*\}", word):
            raise UserError(
                f"command: unknown macro {word}{nearest(word, _MACROS)} (known: {', '.join(_MACROS)}, ${{envvar:NAME}})"
            )
    if not any(word in _ARGS_MACROS for word in command):
        raise UserError("command: has no ${args}, so runs would not be given their values; add it")
    return command


def prepared(sweep: Sweep, file: Path) -> Sweep:
    """Find the sweep's program and check that its command can be started, before a folder is created for it.

    Args:
        file: the sweep's YAML. Its program may be relative to the working directory or to any parent of the file.

    Returns:
        The sweep with the path at which its program was found.

    Raises:
        UserError: the program, or the command's executable, is not found.
    """
    above = file.resolve().parents
    places = [Path(), *above[: len(above) - 1]]
    found = next((place / sweep.program for place in places if (place / sweep.program).is_file()), None)
    if found is None:
        raise UserError(f"program: {sweep.program} is neither in {Path.cwd()} nor in a parent folder of {file}")
    sweep = dataclasses.replace(sweep, program=str(found))
    words = _filled(sweep, {"an_argument": 0}, file)
    if Path(words[0]).name == "env":  # it starts the word after its NAME=value settings; not checked with options
        words = [word for word in words[1:] if "=" not in word]
        words = [] if words and words[0].startswith("-") else words
    if words and shutil.which(words[0], path=search_path()) is None:
        if Path(words[0]).is_file():
            raise UserError(f"command: {words[0]} is not executable; put ${{interpreter}} before it")
        raise UserError(f"command: {words[0]} cannot be found; install it, or give its full path")
    return sweep


def search_path() -> str:
    """Return the PATH for a run's command: this interpreter's folder first, so that runs share its environment."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def expand(sweep: Sweep, flags: dict[str, Any], folder: Path) -> list[str]:
    """Return the command's words with the macros expanded as `wandb agent` does; writes `${args_json_file}`'s file."""
    arguments_file = folder.with_suffix(".args.json")
    if "${args_json_file}" in sweep.command:
        arguments_file.write_text(_arguments(flags)["args_json"][0], encoding="utf-8")
    return _filled(sweep, flags, arguments_file)


def _filled(sweep: Sweep, flags: dict[str, Any], arguments_file: Path) -> list[str]:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command

    macros = _arguments(flags) | {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": [sweep.program],
        "args_json_file": [str(arguments_file)],
    }
    command: list[str] = []
    for word in create_sweep_command(list(sweep.command)):
        is_macro = word.startswith("${") and word.endswith("}")
        command += macros.get(word[2:-1], []) if is_macro else [word]
    return command


def _arguments(flags: dict[str, Any]) -> dict[str, Any]:
    # Imported here, so that an error in the file is reported before W&B is loaded.
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    return create_sweep_command_args({"args": {name: {"value": value} for name, value in flags.items()}})
