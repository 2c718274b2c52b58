"""The ways in which a run ends with one line instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the message is one line that names the fix. Scripts exit with status 2."""


class RunError(Exception):
    """A run that started well and cannot go on (a diverged loss, say). Scripts exit with status 1."""


class Interrupted(Exception):
    """A signal ended the run after `step` updates; scripts exit with `status`.

    Attributes:
        by_hand: SIGINT, from a person at the terminal or at W&B's stop button: the run is not wanted back.
    """

    def __init__(self, signal_name: str, step: int, status: int, kept: bool) -> None:
        way = "continue with --resume_from_checkpoint auto"
        if not kept:
            way = f"this step could not be kept; an older one, if there is any, is whole: {way}"
        super().__init__(f"stopped by {signal_name} after step {step}; {way}")
        self.status = status
        self.by_hand = signal_name == "SIGINT"


def nearest(name: str, known: Iterable[str]) -> str:
    """`'; did you mean bitfit?'` for the nearest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else ""
