"""What a W&B agent puts on the command line of a run beside plain flags."""

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
    """Drop what is no flag with a value from the words with which a W&B agent starts a preempted run again.

    The first time it passes on the sweep's parameters. After a preemption it passes on all that the run's
    configuration holds by then (https://github.com/wandb/wandb/issues/9143): every flag, those without a value as
    None, facts such as `params/trainable`, and `_wandb`, by which such a command line is known.
    """
    if not any(word.startswith("--_wandb=") for word in argv):
        return argv

    def is_record(word: str) -> bool:
        name, assigned, value = word.partition("=")
        return bool(assigned) and (name not in known or value == "None")

    return [word for word in argv if not is_record(word)]
