"""Matrix products of bf16 tensors by AVX-512: in bf16 or, on Xeons whose AMX is hidden, in fp16 arithmetic."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch

from peftlib.acceleration.cpu_calls import NO_DROPOUT, Beside, call
from peftlib.acceleration.cpu_compiler import kernels
from peftlib.acceleration.cpus import has_fast_bf16, has_slow_bf16


class Panels(NamedTuple):
    """A matrix (depth, width) in panels of some columns, one behind the other.

    Attributes:
        numbers: in bf16, panels of (depth / 2, 32, 2); in fp16, of (depth, 64), whose columns were multiplied by powers
            of two so that no number exceeds 1. The last one may have half as many columns.
        factors: what undoes the powers, fp32, (width); None in bf16.
        depth, width: multiples of `PanelProducts.length`.
    """

    numbers: torch.Tensor
    factors: torch.Tensor | None
    depth: int
    width: int


class PanelProducts:
    """Products in one arithmetic, "bf16" or "fp16", as the kernels are named.

    On normal numbers, adding up in fp16 has an error of 1.1e-3 of the result's size (root mean square), where rounding
    to bf16, as the result and the rows were, has one of 1.7e-3. In bf16 nothing is added to that.

    Attributes:
        length: the dimensions of packed matrices are multiples of it.
    """

    def __init__(self, arithmetic: Literal["bf16", "fp16"]) -> None:
        self._arithmetic = arithmetic
        self.length = 16 if arithmetic == "bf16" else 32

    def fit(self, *shapes: torch.Size) -> bool:
        """Return whether stacked matrices of these shapes are best multiplied so here, forward and backward."""
        return all(length % self.length == 0 for shape in shapes for length in shape) and self.pay()

    def pay(self) -> bool:
        """Return whether these are the fastest products of bf16 tensors on this machine."""
        best = has_slow_bf16() if self._arithmetic == "fp16" else has_fast_bf16()
        return best and self.are_there()

    def are_there(self) -> bool:
        """Return whether this machine has the instructions and the kernels."""
        return _are_there(self._arithmetic)

    def pack(self, matrix: torch.Tensor, factor: float = 1.0) -> Panels:
        """Pack a matrix (depth, width) in fp32 or bf16 times a factor, rounded and padded with zeros.

        In fp16 a number has 11 digits, fewer if it is less than 2**-14 of its column's largest one.
        """
        given = matrix.contiguous()
        depth, width = (self._filled_up(length) for length in matrix.shape)
        dtype, factors = (torch.float16, torch.empty(width)) if self._arithmetic == "fp16" else (torch.bfloat16, None)
        numbers = torch.empty(depth * width, dtype=dtype)
        kernel = f"{self._arithmetic}_fill_panels"
        call(kernel, given.dtype, given, *given.shape, factor, depth, width, numbers, factors)
        return Panels(numbers, factors, depth, width)

    def product(
        self, x: torch.Tensor, matrix: Panels, bias: torch.Tensor | None = None, *,
        beside: Beside[Panels] | None = None, onto: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Return x matrix + bias + `beside`, (T, depth) to (T, width); if `onto` is given, add it to that in place."""
        out = x.new_empty(len(x), matrix.width) if onto is None else onto
        low, low_matrix, drop = beside or (None, None, NO_DROPOUT)
        call(
            f"{self._arithmetic}_product", x.dtype, x, *matrix[:2], low, *(low_matrix or (None, None))[:2],
            None if bias is None else bias.float(), onto is not None, out, len(x), matrix.depth,
            0 if low_matrix is None else low_matrix.depth, matrix.width, drop,
        )  # fmt: skip
        return out

    def outer_product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return left' right, (T, width) and (T, other) to bf16 (width, other); `other` is a multiple of `length`."""
        if not len(left):
            return left.new_zeros(left.size(1), right.size(1))  # a product with nothing to add up writes nothing
        turned = left.new_zeros(left.size(1), self._filled_up(len(left)))
        turned[:, : len(left)] = left.t()
        return self.product(turned, self.pack(right))

    def inner_product(self, left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
        """Return left' right for left's first columns, (T, width) and (T, other) to (count, other), all in fp32."""
        (rows, width), other = left.shape, right.size(1)
        out = torch.empty(count, other)
        call(f"{self._arithmetic}_inner_product", left.dtype, left, width, count, right, other, out, rows)
        return out

    def _filled_up(self, length: int) -> int:
        return -(-length // self.length) * self.length


@functools.cache
def _are_there(arithmetic: str) -> bool:
    library = kernels()
    return library is not None and bool(library[f"{arithmetic}_is_there"]())


IN_BF16, IN_FP16 = PanelProducts("bf16"), PanelProducts("fp16")
