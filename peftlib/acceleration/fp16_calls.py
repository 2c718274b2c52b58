"""Matrix products of bf16 tensors in fp16 arithmetic, on Intel processors with AVX-512's fp16 but without AMX."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from peftlib.acceleration.cpu_calls import NO_DROPOUT, Beside, call
from peftlib.acceleration.cpu_compiler import kernels
from peftlib.acceleration.cpus import has_slow_bf16

#: Columns, or rows, that are multiplied at a time; the dimensions of packed matrices are multiples of it.
LENGTH = 32


def fit(*shapes: torch.Size) -> bool:
    """Return whether stacked matrices of these shapes are best multiplied in fp16 here, forward and backward."""
    return all(length % LENGTH == 0 for shape in shapes for length in shape) and pay()


def pay() -> bool:
    """Return whether these are the fastest products of bf16 tensors on this machine."""
    return has_slow_bf16() and are_there()


@functools.cache
def are_there() -> bool:
    """Return whether this machine multiplies fp16, and has the kernels."""
    library = kernels()
    return library is not None and bool(library.fp16_is_there())


class Panels(NamedTuple):
    """A matrix (depth, width) whose columns were multiplied by powers of two, in panels of 64 columns.

    Attributes:
        numbers: fp16, at most 1: the panels, each (depth, 64), the last one maybe (depth, 32), one behind the other.
        factors: what undoes the powers, fp32, (width).
    """

    numbers: torch.Tensor
    factors: torch.Tensor

    @property
    def width(self) -> int:
        return len(self.factors)

    @property
    def depth(self) -> int:
        return len(self.numbers) // len(self.factors)


def pack(matrix: torch.Tensor, factor: float = 1.0) -> Panels:
    """Pack a matrix (depth, width) in fp32 or bf16 times a factor, rounded to fp16 and padded with zeros.

    A number has fp16's 11 digits, fewer if it is less than 2**-14 of its column's largest one.
    """
    given = matrix.contiguous()
    depth, width = (-(-length // LENGTH) * LENGTH for length in matrix.shape)
    panels = Panels(torch.empty(depth * width, dtype=torch.float16), torch.empty(width))
    call("fp16_fill_panels", given.dtype, given, *given.shape, factor, depth, width, *panels)
    return panels


def product(
    x: torch.Tensor, matrix: Panels, bias: torch.Tensor | None = None, *, beside: Beside[Panels] | None = None,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return x matrix + bias + `beside`, (T, depth) to (T, width); if `onto` is given, add it to that in place.

    On normal numbers, adding up in fp16 has an error of 1.1e-3 of the result's size (root mean square), where rounding
    to bf16, as the result and x were, has one of 1.7e-3.
    """
    out = x.new_empty(len(x), matrix.width) if onto is None else onto
    low, low_matrix, drop = beside or (None, None, NO_DROPOUT)
    call(
        "fp16_product", x.dtype, x, *matrix, low, *(low_matrix or (None, None)), None if bias is None else bias.float(),
        onto is not None, out, len(x), matrix.depth, 0 if low_matrix is None else low_matrix.depth, matrix.width, drop,
    )  # fmt: skip
    return out


def outer_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left' right, (T, width) and (T, other) to bf16 (width, other); `other` is a multiple of 32."""
    if not len(left):
        return left.new_zeros(left.size(1), right.size(1))  # a product with nothing to add up writes nothing
    turned = left.new_zeros(left.size(1), -(-len(left) // LENGTH) * LENGTH)
    turned[:, : len(left)] = left.t()
    return product(turned, pack(right))


def inner_product(left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
    """Return left' right for left's first columns, (T, width) and (T, other) to (count, other), all in fp32."""
    (rows, width), other = left.shape, right.size(1)
    out = torch.empty(count, other)
    call("fp16_inner_product", left.dtype, left, width, count, right, other, out, rows)
    return out
