"""The ways in which a run ends with one line instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any


class UserError(Exception):
    """Bad input: the message is one line that names the fix. Scripts exit with status 2."""


class RunError(Exception):
    """A run that started well and cannot go on (a diverged loss, say). Scripts exit with status 1."""


class Interrupted(Exception):
    """A signal ended what can go on later; scripts exit with `status`.

    Attributes:
        by_hand: SIGINT, from a person at the terminal or at W&B's stop button: the run is not wanted back.
    """

    def __init__(self, message: str, status: int, *, by_hand: bool) -> None:
        super().__init__(message)
        self.status = status
        self.by_hand = by_hand

    def __reduce__(self) -> tuple[Any, ...]:  # as it travels between processes
        return partial(Interrupted, by_hand=self.by_hand), (str(self), self.status)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`'; did you mean bitfit?'` for the nearest known name, or an empty string.

    Args:
        cutoff: how alike they must be, from 0 to 1, as `difflib` measures it.
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {match[0]}?" if match else ""
