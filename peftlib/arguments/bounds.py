"""Range checks of numeric flags."""

from __future__ import annotations

import math
from typing import Any

from peftlib.errors import UserError


def at_least(arguments: Any, bound: float, *names: str, above: bool = False) -> None:
    """Refuse values that are less than `bound` (or, with `above`, equal to it) or not finite; None passes.

    Raises:
        UserError: names the flag.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is None:
            continue
        if not math.isfinite(value):
            raise UserError(f"--{name} {value}: must be a finite number")
        if value < bound or (above and value == bound):
            raise UserError(f"--{name} {value}: must be {'greater than' if above else 'at least'} {bound}")
