"""Products on AMX's tiles (Intel's processors from Sapphire Rapids on), called with bf16 tensors."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from peftlib.acceleration.cpu_calls import Dropout, call
from peftlib.acceleration.cpu_compiler import kernels

#: Columns, and depth, of what two tiles hold: lengths are multiples of it.
LENGTH = 32
_NONE = Dropout(0, 1.0, 0)


def fit(*shapes: torch.Size) -> bool:
    """The processor has AMX, and matrices of these shapes, one below the other, can be multiplied by it both ways."""
    return all(length % LENGTH == 0 for shape in shapes for length in shape) and are_there()


@functools.cache
def are_there() -> bool:
    """This machine has tiles, and the kernels."""
    library = kernels()
    return library is not None and bool(library.tiles_are_there())


class Tiled(NamedTuple):
    """A matrix (depth, width) in tiles, each 16 columns of 16 pairs of rows.

    Attributes:
        tiles: bf16, (width / 32, depth / 32, 2, 16, 16, 2).
    """

    tiles: torch.Tensor

    @classmethod
    def of(cls, matrix: torch.Tensor, factor: float = 1.0) -> Tiled:
        """Of one in any precision, times a factor and rounded; zeros fill its lengths up."""
        exact = matrix.float()
        depth, width = (-(-length // LENGTH) for length in matrix.shape)
        tiles = torch.empty(width, depth, 2, LENGTH // 2, LENGTH // 2, 2, dtype=torch.bfloat16)
        call(
            "fill_tiles", tiles.dtype, exact.data_ptr(), *exact.stride(), *exact.shape, factor, depth * LENGTH,
            width * LENGTH, tiles,
        )  # fmt: skip
        return cls(tiles)

    @property
    def depth(self) -> int:
        return self.tiles.size(1) * LENGTH

    @property
    def width(self) -> int:
        return self.tiles.size(0) * LENGTH


class Beside(NamedTuple):
    """A product of low rank, dropout(low matrix), which another one adds.

    Attributes:
        low: (T, rank).
        matrix: (rank, width).
        drop: on what it comes to.
    """

    low: torch.Tensor
    matrix: Tiled
    drop: Dropout = _NONE


def product(
    x: torch.Tensor, matrix: Tiled, bias: torch.Tensor | None = None, *, beside: Beside | None = None,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """x matrix + bias, (T, depth) to (T, width), and what is beside it; with `onto`, added to that in place."""
    out = x.new_empty(len(x), matrix.width) if onto is None else onto
    low, low_matrix, drop = beside or (None, None, _NONE)
    call(
        "tiled_product", x.dtype, x, matrix.tiles, low, None if low_matrix is None else low_matrix.tiles,
        None if bias is None else bias.float(), onto is not None, out, len(x), matrix.depth,
        0 if low_matrix is None else low_matrix.depth, matrix.width, drop,
    )  # fmt: skip
    return out


def inner_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left' right, (T, width) and (T, other) to fp32 (width, other)."""
    (rows, width), other = left.shape, right.size(1)
    out = torch.empty(width, other)
    call("inner_product", left.dtype, left, width, right, other, out, rows)
    return out
