"""Exceptions that end a script with one line instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any


class Ending(Exception):
    """Base of the exceptions that end a script.

    Attributes:
        shared: whether every process raises it, so that the first one of each node speaks for all.
    """

    shared = False


class UserError(Ending):
    """Bad input. Scripts exit with status 2.

    Args:
        *mistakes: a line for each, which names the fix.
    """

    def __init__(self, *mistakes: str) -> None:
        super().__init__(*mistakes)

    def __str__(self) -> str:
        return "\n".join(self.args)


class RunError(Ending):
    """A failure during a run, such as a diverged loss. Scripts exit with status 1."""


class OutOfMemory(RunError):
    """Batches are too large for the device."""

    @classmethod
    def in_training(cls, batch_size: int, problem: str = "") -> OutOfMemory:
        """With micro-batches of so many examples, and perhaps with what else is wrong with them."""
        if batch_size == 1:
            return cls.with_one_example()
        return cls(
            f"out of memory with micro-batches of {batch_size}{problem}; lower --per_device_train_batch_size and raise "
            "--gradient_accumulation_steps"
        )

    @classmethod
    def in_evaluation(cls, batch_size: int) -> OutOfMemory:
        """With batches of so many examples."""
        if batch_size == 1:
            return cls.with_one_example()
        return cls(
            f"out of memory with evaluation batches of {batch_size}; use --per_device_eval_batch_size {batch_size // 2}"
        )

    @classmethod
    def with_one_example(cls) -> OutOfMemory:
        """No batch is smaller."""
        return cls("out of memory with a single example; use a smaller --max_length or model, or another device")


class Interrupted(Ending):
    """A signal stopped work that can be resumed. Scripts exit with `status`.

    Attributes:
        by_hand: whether it was SIGINT, from a person at the terminal or W&B's stop button, who does not want the run to
            be restarted automatically.
    """

    shared = True  # the processes have agreed on it

    def __init__(self, message: str, status: int, *, by_hand: bool) -> None:
        super().__init__(message)
        self.status = status
        self.by_hand = by_hand

    def __reduce__(self) -> tuple[Any, ...]:  # it is pickled between processes
        return partial(Interrupted, by_hand=self.by_hand), (str(self), self.status)


#: Similarity from which a name counts as misspelt, and below which names have nothing in common.
A_SLIP, _ALIKE = 0.86, 0.5


def nearest(name: str, known: Iterable[str], cutoff: float = _ALIKE) -> str:
    """Return `'; did you mean bitfit?'` for the nearest known name, in upper or lower case, or an empty string.

    Unless only slips count, a part of the name, or what it is a part of, is nearer than what shares some letters:
    `cosine` to `cosine_with_restarts`, and `macro_f1` to `f1`.

    Args:
        cutoff: minimum similarity, 0 to 1, as in `difflib.get_close_matches`.
    """
    names, wanted = {one.lower(): one for one in known}, name.lower()
    match = difflib.get_close_matches(wanted, names, n=1, cutoff=max(A_SLIP, cutoff))
    if cutoff < A_SLIP:
        match = match or [one for one in names if wanted.startswith(f"{one}_") or one.endswith(f"/{wanted}")]
        match = match or [one for one in names if one.endswith(f"_{wanted}")]
        match = match or difflib.get_close_matches(wanted, names, n=1, cutoff=cutoff)
    return f"; did you mean {names[match[0]]}?" if match else ""


def in_one_line(error: BaseException, *, named: bool = False, most: int = 300) -> str:
    """Return a foreign exception's message as one line of at most `most` characters.

    Args:
        named: put the exception's type in front, for those whose messages make no sense alone, such as KeyError's.
    """
    text = f"{type(error).__name__}: {error}" if named else str(error)
    return " ".join(text.split())[:most]
