"""Batches without padding for a GPU: the tokens of all examples end to end, in few numbers of rows.

The host lays them out, since it knows the lengths: a GPU that had to tell them would make it wait, and a CUDA graph
needs one number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Batch = dict[str, torch.Tensor]
#: Longest example that the kernels take, and the widths to which their lengths are rounded: each is a graph of its own.
MOST_TOKENS = 128
_WIDTHS = (32, 64, MOST_TOKENS)
#: Rows come in steps of so many, which is what matrix products are cut into, or of a thirty-second of the next power of
#: two. MRPC at 64 x 1: 26 numbers, 3 % more rows than tokens, where padding made 8 %.
_STEP = 128


@dataclass(frozen=True)
class RowCollate:
    """What a loader's `collate_fn` makes, laid out in rows (see `in_rows`).

    Attributes:
        collate: makes padded batches.
        first_position: of an example's first token, as the model counts.
    """

    collate: Callable[[Any], Batch]
    first_position: int

    def __call__(self, items: Any) -> Batch:
        return in_rows(self.collate(items), self.first_position)


def in_rows(batch: Batch, first_position: int) -> Batch:
    """Lay a padded batch out in rows; as it is where an example has more than `MOST_TOKENS` tokens.

    Args:
        batch: `attention_mask` and the columns of tokens, each (B, W), with padding at the right; all else is (B,).

    Returns:
        The columns and `position_ids`, (1, T); as `attention_mask` int32 numbers, (S, 1, 1, width), the rows of each
        example's tokens, then -1. The last S - B examples are fillers: of all else they have zeros, a weight among them.
    """
    mask = batch["attention_mask"].bool()
    lengths = mask.sum(1)
    longest, examples, tokens = int(lengths.max()), len(mask), int(lengths.sum())
    if longest > MOST_TOKENS:
        return batch
    width = next(width for width in _WIDTHS if width >= longest)
    count, fillers = _rows_for(tokens, width)
    places = torch.full((examples + fillers, 1, 1, width), -1, dtype=torch.int32)
    places[:examples, 0, 0, :longest][mask[:, :longest]] = torch.arange(tokens, dtype=torch.int32)
    spread = torch.arange(tokens, count, dtype=torch.int32).tensor_split(fillers)
    for place, rows in zip(places[examples:, 0, 0], spread, strict=True):
        place[: len(rows)] = rows
    laid: Batch = {"attention_mask": places}
    positions = first_position + torch.arange(mask.size(1)).expand(mask.shape)
    for name, column in {**batch, "position_ids": positions}.items():
        if name == "attention_mask":
            continue
        if column.shape == mask.shape:
            real = column[mask]
            laid[name] = torch.cat([real, real[:1].expand(count - tokens)]).unsqueeze(0)
        else:
            laid[name] = torch.cat([column, column.new_zeros(fillers)])
    return laid


def _rows_for(tokens: int, width: int) -> tuple[int, int]:
    """How many rows, and how many fillers the rows beyond the tokens make: each has one at least, and `width` at most."""
    step = max(_STEP, 2 ** tokens.bit_length() // 32)
    fillers = step // width + 1
    return -(-(tokens + fillers) // step) * step, fillers


def is_in_rows(x: torch.Tensor, mask: Any) -> bool:
    """Whether these are hidden states (1, T, D) and an attention mask that came from `in_rows`."""
    return (
        isinstance(mask, torch.Tensor)
        and mask.dtype == torch.int32
        and mask.dim() == 4
        and mask.size(3) in _WIDTHS
        and x.size(0) == 1
    )
