"""Frozen matrices and their products, in the layout that a CPU multiplies bf16 with: it is made once."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import nn

from peftlib.acceleration import tile_calls
from peftlib.acceleration.bert import joined
from peftlib.acceleration.tile_calls import Tiled


class FrozenMatrix:
    """Of layers side by side, (out, in), as it is; the only one for other precisions than bf16.

    Args:
        plain: in the precision of the rows that it meets.
    """

    def __init__(self, plain: torch.Tensor) -> None:
        self.plain = plain

    def times(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x W' + bias, (T, in) to (T, out)."""
        return x @ self.plain.t() if bias is None else torch.addmm(bias, x, self.plain.t())

    def back(self, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """gradient W, (T, out) to (T, in); or that added to `onto`, in place."""
        return gradient @ self.plain if onto is None else onto.addmm_(gradient, self.plain)


class OneDnnMatrix(FrozenMatrix):
    """In oneDNN's layout for forward products, which it would make of the plain one in each of them.

    It takes the memory once more. On two cores products of some hundred rows run at 1.05 ×, of some dozen at 1.15 ×;
    those of the backward pass use the plain matrix.
    """

    def __init__(self, plain: torch.Tensor) -> None:
        super().__init__(plain)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain)

    def times(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return output


class TiledMatrix(FrozenMatrix):
    """In tiles for processors with AMX, for forward and backward products.

    It takes the memory twice more.
    """

    def __init__(self, plain: torch.Tensor) -> None:
        super().__init__(plain)
        self.forward, self.backward = Tiled.of(plain.t()), Tiled.of(plain)

    def times(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return tile_calls.product(x.contiguous(), self.forward, bias)

    def back(self, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        return tile_calls.product(gradient.contiguous(), self.backward, onto=onto)


class _Known(NamedTuple):
    matrix: FrozenMatrix
    versions: tuple[int, ...]
    #: What it was made of. They are kept, so that no other weights can come to lie where they did.
    sources: tuple[torch.Tensor, ...]

    def is_of(self, weights: tuple[torch.Tensor, ...]) -> bool:
        return self.versions == tuple(one._version for one in weights) and all(
            one.data_ptr() == source.data_ptr() and one.shape == source.shape
            for one, source in zip(weights, self.sources, strict=True)
        )


_known: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def frozen_matrix(dtype: torch.dtype, *modules: nn.Linear) -> FrozenMatrix:
    """Of these layers' weights, one below the other, for rows in this precision.

    Packed at the first call, and anew for weights that were loaded or replaced. Who changes a weight's `data` in place,
    which leaves no trace, calls `forget`.
    """
    weights = tuple(module.weight for module in modules)
    kind = _kind(weights, dtype)
    if kind is FrozenMatrix:
        return FrozenMatrix((weights[0] if len(modules) == 1 else joined(*modules)).to(dtype))
    known = _known.get(modules[0])
    if known is None or not known.is_of(weights):
        matrix = kind(joined(*modules) if len(modules) > 1 else weights[0].data)
        weights = tuple(module.weight for module in modules)
        sources = tuple(one.data for one in weights)
        known = _known[modules[0]] = _Known(matrix, tuple(one._version for one in weights), sources)
    return known.matrix


def forget(module: nn.Linear) -> None:
    """Its weight is another one from now on."""
    _known.pop(module, None)


def _kind(weights: tuple[torch.Tensor, ...], dtype: torch.dtype) -> type[FrozenMatrix]:
    """The best that there is for these weights here."""
    kept = {(one.dtype, one.device.type) for one in weights}
    kind: type[FrozenMatrix] = FrozenMatrix
    if dtype == torch.bfloat16 and kept == {(dtype, "cpu")}:
        if tile_calls.fit(*(one.shape for one in weights)):
            kind = TiledMatrix
        elif _has_onednn():
            kind = OneDnnMatrix
    return kind


def _has_onednn() -> bool:
    """For bf16: without AVX-512 it refuses."""
    operators = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and operators._is_mkldnn_bf16_supported()
        and all(hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    )
