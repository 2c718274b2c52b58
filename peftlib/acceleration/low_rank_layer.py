"""An encoder layer on rows of tokens, with LoRA on some of its products and everything else frozen.

Shapes as in `layer_kernels` and `low_rank_kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton  # type: ignore  # untyped; installed with GPU builds of torch, not with CPU builds

from peftlib.acceleration import layer_calls as calls
from peftlib.acceleration import low_rank_kernels as kernels
from peftlib.acceleration.encoder_layer import SECOND, Matrices, Vectors, WholeLayer

#: Rows and columns per block of a program, forward and backward, and its warps of 32 threads.
_FORWARD, _BACKWARD, _WARPS = (32, 128), (64, 64), 4
#: Most programs that share the rows of A's gradient.
_PROGRAMS = 16


class Updates(NamedTuple):
    """LoRA's updates of products that share their input, in the precision of the rows.

    Attributes:
        a: (J R, D): J updates, all of rank R.
        b: J matrices (N, R).
        starts: for each of them, the first of its product's N columns.
        factor: scaling divided by dropout's keep rate.
        rate: of dropout.
        site: of the first update's dropout in the layer.
    """

    a: torch.Tensor
    b: tuple[torch.Tensor, ...]
    starts: tuple[int, ...]
    factor: float
    rate: calls.Rate
    site: int

    def onto(self, seed: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Add the updates to the products, in place.

        Returns:
            The intermediate between A and B, (T, J R), for backward.
        """
        low = x.new_empty(x.size(0), self.a.size(0))
        blocks = triton.cdiv(x.size(0), _FORWARD[0]), len(self.b)
        kernels.low_forward[blocks](x, self.a, low, **self._options(seed, x, _FORWARD))
        for part, b, products in zip(low.chunk(len(self.b), 1), self.b, self._columns(out), strict=True):
            products.addmm_(part, b.t())
        return low

    def backward(
        self, seed: torch.Tensor, x: torch.Tensor, low: torch.Tensor, gradient: torch.Tensor,
        grad_x: torch.Tensor | None,
    ) -> list[torch.Tensor]:  # fmt: skip
        """Return the gradients of each A, fp32, and B, in pairs, from the products'; add x's to `grad_x`, if given."""
        grad_low, ranks = torch.empty_like(low), self.a.size(0)
        columns, parts = self._columns(gradient), low.chunk(len(self.b), 1)
        for part, b, above in zip(grad_low.chunk(len(self.b), 1), self.b, columns, strict=True):
            torch.mm(above, b, out=part)
        grad_b = [above.t() @ part for above, part in zip(columns, parts, strict=True)]
        options, width = self._options(seed, x, _BACKWARD), x.size(1)
        down, across = triton.cdiv(x.size(0), _BACKWARD[0]), triton.cdiv(width, _BACKWARD[1])
        if grad_x is not None:
            kernels.low_onto[(down, across)](grad_low, self.a, grad_x, **options)
        sums = x.new_empty((min(_PROGRAMS, down), ranks * width), dtype=torch.float32)
        kernels.low_inner[(len(sums), across, len(self.b))](grad_low, x, sums, **options)
        grad_a = calls.sums_over_rows(sums, sums[:, :0]).view(len(self.b), -1, width).unbind()
        return [grad for pair in zip(grad_a, grad_b, strict=True) for grad in pair]

    def _columns(self, products: torch.Tensor) -> list[torch.Tensor]:
        return [products[:, start : start + b.size(0)] for start, b in zip(self.starts, self.b, strict=True)]

    def _options(self, seed: torch.Tensor, x: torch.Tensor, block: tuple[int, int]) -> dict[str, Any]:
        rank = self.a.size(0) // len(self.b)
        return {
            "seed": seed, "rows": x.size(0), "factor": self.factor, "site": self.site,
            "THRESHOLD": self.rate.threshold, "J": len(self.b), "R": rank, "D": x.size(1),
            "RANK": max(16, triton.next_power_of_2(rank)), "ROWS": block[0], "COLUMNS": block[1], "num_warps": _WARPS,
        }  # fmt: skip


class ProductUpdates(NamedTuple):
    """The updates of a layer's four products; None for a product without any."""

    qkv: Updates | None
    out: Updates | None
    inner: Updates | None
    outer: Updates | None


class LowRankLayer(WholeLayer):
    """A BERT layer with LoRA updates of its products, its only trained parameters.

    Args:
        updates: in the precision of the rows, and the parameters that they are copies of.
        ends: return the first tokens' rows (S, D) only, as the head reads no others.
    """

    def __init__(
        self, call: calls.Call, eps: tuple[float, float], matrices: Matrices, vectors: Vectors, biases: torch.Tensor,
        updates: LayerUpdates, ends: bool,
    ) -> None:  # fmt: skip
        super().__init__(call, eps, matrices, vectors, biases)
        self.updates, self.trained, self.ends = *updates, ends
        self._inputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._found: dict[str, list[torch.Tensor]] = {}

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Compute the layer on rows (T, D); returns (T, D), or the first tokens' (S, D)."""
        self._qkv = self._times("qkv", rows, self.biases)
        self._attended = calls.attend(self.call, self._qkv)
        seen = self._attended.values
        if self.ends:
            seen, rows = (tensor.index_select(0, self.call.places[:, 0, 0, 0]) for tensor in (seen, rows))
        return self._finish(seen, rows)

    def backward_of_updates(
        self, gradient: torch.Tensor, needs_rows: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradient of the rows, if needed, and those of `trained`, from the output's."""
        nothing = gradient.new_empty((calls.programs(gradient.size(0)), 0), dtype=torch.float32)
        below, residual = self._finish_backward(gradient, (nothing,) * 7)
        below, grad_rows = self._back("out", below), None
        if needs_rows or self.updates.qkv is not None:
            if self.ends:
                below, residual = (_spread(grad, self.call.places, len(self._qkv)) for grad in (below, residual))
            above = calls.attend_backward(self.call, below, self._qkv, self._attended, nothing)
            if needs_rows:
                grad_rows = self._back("qkv", above, residual)
            else:
                self._update("qkv", above, None)
        return grad_rows, [grad for name in ProductUpdates._fields for grad in self._found.get(name, [])]

    def _times(self, name: str, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        products, update = super()._times(name, x, bias), getattr(self.updates, name)
        if update is not None:
            self._inputs[name] = x, update.onto(self.call.seed, x, products)
        return products

    def _back(self, name: str, above: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        below = super()._back(name, above, onto)
        self._update(name, above, below)
        return below

    def _update(self, name: str, above: torch.Tensor, grad_x: torch.Tensor | None) -> None:
        update = getattr(self.updates, name)
        if update is not None:
            self._found[name] = update.backward(self.call.seed, *self._inputs[name], above, grad_x)


def _spread(vectors: torch.Tensor, places: torch.Tensor, rows: int) -> torch.Tensor:
    """Scatter the first tokens' vectors (S, D) into rows (T, D) of zeros."""
    return vectors.new_zeros(rows, vectors.size(1)).index_copy_(0, places[:, 0, 0, 0].long(), vectors)


class Trained(NamedTuple):
    """The trained parameters of one LoRA update, A (R, D) and B (N, R) in fp32, with its scaling and dropout rate."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    rate: calls.Rate


class LayerUpdates(NamedTuple):
    """A layer's updates in the precision of the rows, and the parameters they are copies of: each A and B, in pairs."""

    product_updates: ProductUpdates
    trained: list[torch.Tensor]


def copied_updates(
    layers: Sequence[tuple[list[Trained | None], ...] | None], dtype: torch.dtype
) -> list[LayerUpdates | None]:
    """Copy the updates of all layers into this precision, with a single kernel.

    Args:
        layers: for each layer the updates, grouped by shared input: [query, key, value], [out], [inner], [outer]; None
            for a product, or a layer, without updates.
    """
    sources: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    prepared = [None if groups is None else _layer_updates(groups, dtype, sources, copies) for groups in layers]
    if sources:
        with torch.no_grad():
            torch._foreach_copy_(copies, sources)
    return prepared


def _layer_updates(
    groups: tuple[list[Trained | None], ...], dtype: torch.dtype, sources: list[torch.Tensor],
    copies: list[torch.Tensor],
) -> LayerUpdates:  # fmt: skip
    updates: list[Updates | None] = []
    site = SECOND + 1
    for group in groups:
        there = [update for update in group if update is not None]
        if not there:
            updates.append(None)
        else:
            first, ranks = there[0], [len(update.a) for update in there]
            stacked = first.a.new_empty((sum(ranks), first.a.size(1)), dtype=dtype)
            bs = [torch.empty_like(update.b, dtype=dtype) for update in there]
            copies += [*stacked.split(ranks), *bs]
            sources += [*(update.a for update in there), *(update.b for update in there)]
            starts = tuple(place * len(update.b) for place, update in enumerate(group) if update is not None)
            factor = first.scaling * first.rate.factor
            updates.append(Updates(stacked, tuple(bs), starts, factor, first.rate, site))
        site += len(group)
    trained = [matrix for group in groups for one in group if one is not None for matrix in (one.a, one.b)]
    return LayerUpdates(ProductUpdates(*updates), trained)
