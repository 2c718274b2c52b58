"""Hold out part of the training rows for validation."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from peftlib.data.tasks import Label


def held_out(texts: Sequence[tuple[str, ...]], labels: Sequence[Label], percentage: int) -> list[bool]:
    """Choose the rows to validate on: the same ones on every machine, for every seed and in any order of the rows.

    They are drawn by the hash of their texts, so runs with different seeds are scored on the same examples. The rows
    with the same text stay together, since the score on a text that was trained on says nothing. Where an example has
    one class, the draw is stratified, and each class keeps at least one text for training. A class of few texts that
    come again and again may thus have a smaller or larger share.

    Args:
        labels: as in `sources.Examples`.
        percentage: of all rows, from 1 to 99.

    Returns:
        Per row whether it is held out. With few rows, or few different texts, it may be none.
    """
    rows = defaultdict[tuple[str, ...], list[int]](list)
    for row, text in enumerate(texts):
        rows[text].append(row)
    strata = defaultdict[int, list[tuple[str, ...]]](list)
    for text, places in rows.items():
        classes = [label for row in places if isinstance(label := labels[row], int)]
        strata[min(classes, default=0)].append(text)
    chosen = [False] * len(texts)
    owed = 0.0  # rows still to be chosen
    for stratum in sorted(strata):
        owed = min(max(owed, -0.5), 0.5)  # only what rounding leaves passes on to the next class
        ordered = sorted(strata[stratum], key=_hash)
        owed += percentage / 100 * sum(len(rows[text]) for text in ordered)
        for text in ordered[:-1]:
            if len(rows[text]) <= 2 * owed:  # nearer to the share with it than without
                owed -= len(rows[text])
                for row in rows[text]:
                    chosen[row] = True
    return chosen


def _hash(text: tuple[str, ...]) -> bytes:
    return hashlib.sha256("\0".join(text).encode()).digest()
