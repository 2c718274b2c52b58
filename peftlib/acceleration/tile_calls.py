"""Matrix products of bf16 tensors on AMX tiles (Intel processors from Sapphire Rapids on)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from peftlib.acceleration.cpu_calls import NO_DROPOUT, Beside, call
from peftlib.acceleration.cpu_compiler import kernels

#: Columns, and depth, of two tiles; the dimensions of tiled matrices are multiples of it.
LENGTH = 32


def fit(*shapes: torch.Size) -> bool:
    """Return whether stacked matrices of these shapes can be multiplied on AMX tiles here, forward and backward."""
    return all(length % LENGTH == 0 for shape in shapes for length in shape) and are_there()


@functools.cache
def are_there() -> bool:
    """Return whether this machine has AMX tiles and the kernels."""
    library = kernels()
    return library is not None and bool(library.tiles_are_there())


class Tiled(NamedTuple):
    """A matrix (depth, width) in tiles of 16 columns by 16 pairs of rows.

    Attributes:
        tiles: bf16, (width / 32, depth / 32, 2, 16, 16, 2).
    """

    tiles: torch.Tensor

    @property
    def depth(self) -> int:
        return self.tiles.size(1) * LENGTH

    @property
    def width(self) -> int:
        return self.tiles.size(0) * LENGTH


def pack(matrix: torch.Tensor, factor: float = 1.0) -> Tiled:
    """Pack a matrix (depth, width) of any precision times a factor, rounded to bf16 and padded with zeros."""
    exact = matrix.float()
    depth, width = (-(-length // LENGTH) for length in matrix.shape)
    tiles = torch.empty(width, depth, 2, LENGTH // 2, LENGTH // 2, 2, dtype=torch.bfloat16)
    call(
        "fill_tiles", tiles.dtype, exact.data_ptr(), *exact.stride(), *exact.shape, factor, depth * LENGTH,
        width * LENGTH, tiles,
    )  # fmt: skip
    return Tiled(tiles)


def product(
    x: torch.Tensor, matrix: Tiled, bias: torch.Tensor | None = None, *, beside: Beside[Tiled] | None = None,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return x matrix + bias + `beside`, (T, depth) to (T, width); if `onto` is given, add it to that in place."""
    out = x.new_empty(len(x), matrix.width) if onto is None else onto
    low, low_matrix, drop = beside or (None, None, NO_DROPOUT)
    call(
        "tiled_product", x.dtype, x, matrix.tiles, low, None if low_matrix is None else low_matrix.tiles,
        None if bias is None else bias.float(), onto is not None, out, len(x), matrix.depth,
        0 if low_matrix is None else low_matrix.depth, matrix.width, drop,
    )  # fmt: skip
    return out


def inner_product(left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
    """Return left' right for left's first columns, (T, width) and (T, other) to fp32 (count, other)."""
    (rows, width), other = left.shape, right.size(1)
    out = torch.empty(width, other)
    call("inner_product", left.dtype, left, width, right, other, out, rows)
    return out[:count]
