"""A few sentences and pairs, and the tokens that a split made of them holds."""

from __future__ import annotations

from peftlib.data.batching import Slot
from peftlib.data.sources import Examples

ROWS = [
    (("a dull film",), 0),
    (("a bright and unbelievably moving film , twice",), 1),
    (("",), 0),
    (("one two three four five six seven eight nine ten " * 5,), 1),
]
PAIRS = [(("he said so .", "so he said ."), 1), (("a " * 30, "b"), 0), (("a", "b " * 30), 0)]


def examples_of(rows):
    return Examples([text for text, _ in rows], [label for _, label in rows], "made here")


def rows_of(encoded):
    """Column -> token ids per example, as lists."""
    items = [encoded.__getitems__([Slot(place, 1.0)]) for place in range(len(encoded))]
    return {name: [item.columns[name].tolist() for item in items] for name in encoded.columns}
