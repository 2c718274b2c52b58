"""Handle what a W&B agent puts on a run's command line besides plain flags."""

from __future__ import annotations

import ast

from peftlib.arguments.parser import underscored
from peftlib.errors import UserError


def without_groups(argv: list[str], known: list[str]) -> list[str]:
    """Turn `--any={'method': 'lora', 'lora_r': 8}`, a W&B agent's form of a nested parameter, into plain flags."""
    flags: list[str] = []
    for word in argv:
        name, _, text = word.partition("=")
        if name.startswith("--") and f"--{underscored(name)}" not in known and text.startswith("{"):
            try:
                group = ast.literal_eval(text)
            except (ValueError, SyntaxError) as error:
                raise UserError(f"{name} {text}: not a mapping of flags to values") from error
            flags += without_groups([f"--{key}={value}" for key, value in group.items()], known)
        else:
            flags.append(word)
    return flags


def without_records(argv: list[str], known: list[str]) -> list[str]:
    """Drop the words that are not flags with values when a W&B agent restarts a preempted run.

    At first an agent passes the sweep's parameters. After a preemption it passes everything in the run's configuration
    (https://github.com/wandb/wandb/issues/9143): every flag, unset ones as None, facts such as `params/trainable`, and
    `_wandb`, by which such a command line is recognised.
    """
    if not any(word.startswith("--_wandb=") for word in argv):
        return argv

    def is_record(word: str) -> bool:
        name, assigned, value = word.partition("=")
        return bool(assigned) and (name not in known or value == "None")

    return [word for word in argv if not is_record(word)]
