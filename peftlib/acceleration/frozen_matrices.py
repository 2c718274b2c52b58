"""Products with frozen matrices, which are packed once into the layout in which a CPU multiplies bf16 fastest."""

from __future__ import annotations

import functools
import weakref
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from peftlib.acceleration import tile_calls
from peftlib.acceleration.bert import joined
from peftlib.acceleration.cpu_calls import Beside
from peftlib.acceleration.panel_calls import IN_BF16, IN_FP16


class FrozenMatrix:
    """The stacked weights of layers, (out, in), not packed; the only kind for precisions other than bf16.

    Args:
        plain: the weights, in the precision of the rows that they are multiplied with.
    """

    def __init__(self, plain: torch.Tensor) -> None:
        self.plain = plain

    def times(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return x W' + bias, (T, in) to (T, out)."""
        return x @ self.plain.t() if bias is None else torch.addmm(bias, x, self.plain.t())

    def back(self, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """Return gradient W, (T, out) to (T, in); if `onto` is given, add it to that in place."""
        return gradient @ self.plain if onto is None else onto.addmm_(gradient, self.plain)


class OneDnnMatrix(FrozenMatrix):
    """Packed in oneDNN's layout for forward products, which would otherwise repack the weights each time.

    Takes twice the memory. On two cores, products of some hundred rows run at 1.05 ×, of some dozen at 1.15 ×. The
    backward pass uses the plain matrix.
    """

    def __init__(self, plain: torch.Tensor) -> None:
        super().__init__(plain)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain)

    def times(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return output


class Products(Protocol):
    """What multiplies rows with matrices in a layout of its own, on some processors; shapes as there."""

    def pack(self, matrix: torch.Tensor, factor: float = 1.0) -> Any: ...

    def product(
        self, x: torch.Tensor, matrix: Any, bias: torch.Tensor | None = None, *, beside: Beside[Any] | None = None,
        onto: torch.Tensor | None = None,
    ) -> torch.Tensor: ...  # fmt: skip

    def inner_product(self, left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor: ...


class PackedMatrix(FrozenMatrix):
    """Packed for kernels of our own: for forward products, and for backward ones as soon as there is one.

    Takes the memory twice, beside the layer's own weights. These are read once more in the first backward pass, and
    must not change between that and its forward pass; `frozen_matrix` notices other changes.
    """

    calls: Products

    def __init__(self, plain: torch.Tensor) -> None:
        super().__init__(plain)
        self.forward = self.calls.pack(plain.t())

    @functools.cached_property
    def backward(self) -> Any:
        packed = self.calls.pack(self.plain)
        self.__dict__.pop("plain", None)
        return packed

    def times(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.calls.product(x.contiguous(), self.forward, bias)

    def back(self, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        return self.calls.product(gradient.contiguous(), self.backward, onto=onto)


class TiledMatrix(PackedMatrix):
    """In tiles, for processors with AMX."""

    calls = tile_calls


class Fp16Matrix(PackedMatrix):
    """As fp16, for processors that multiply it faster than bf16."""

    calls = IN_FP16


class Bf16Matrix(PackedMatrix):
    """As pairs of bf16 numbers, for other processors that multiply those."""

    calls = IN_BF16


class _CacheEntry(NamedTuple):
    matrix: FrozenMatrix
    versions: tuple[int, ...]
    #: The weights it was packed from, kept alive so that no others can be allocated at their addresses.
    sources: tuple[torch.Tensor, ...]

    def is_of(self, weights: tuple[torch.Tensor, ...]) -> bool:
        return self.versions == tuple(weight._version for weight in weights) and all(
            weight.data_ptr() == source.data_ptr() and weight.shape == source.shape
            for weight, source in zip(weights, self.sources, strict=True)
        )


_known: weakref.WeakKeyDictionary[nn.Module, _CacheEntry] = weakref.WeakKeyDictionary()


def frozen_matrix(dtype: torch.dtype, *modules: nn.Linear) -> FrozenMatrix:
    """Return the stacked weights of these layers, for products with rows in this precision.

    They are packed at the first call, and again after they were loaded or replaced. Call `forget` after changing
    `weight.data` in place: that does not bump the version counter.
    """
    weights = tuple(module.weight for module in modules)
    kind = _kind(weights, dtype)
    if kind is FrozenMatrix:
        return FrozenMatrix((weights[0] if len(modules) == 1 else joined(*modules)).to(dtype))
    known = _known.get(modules[0])
    if known is None or not known.is_of(weights):
        matrix = kind((joined(*modules) if len(modules) > 1 else weights[0].data).to(dtype))
        sources = tuple(weight.data for weight in weights)
        known = _known[modules[0]] = _CacheEntry(matrix, tuple(weight._version for weight in weights), sources)
    return known.matrix


def packs(weight: torch.Tensor) -> bool:
    """Return whether kernels of our own are the fastest for products of bf16 rows with this weight."""
    return issubclass(_kind((weight,), torch.bfloat16), PackedMatrix)


def forget(module: nn.Linear) -> None:
    """Drop the packed copy of a layer's weight, which has changed."""
    _known.pop(module, None)


def _kind(weights: tuple[torch.Tensor, ...], dtype: torch.dtype) -> type[FrozenMatrix]:
    """Return the fastest class for these weights on this machine."""
    kind: type[FrozenMatrix] = FrozenMatrix
    if dtype == torch.bfloat16 and all(weight.device.type == "cpu" for weight in weights):
        shapes, kept = [weight.shape for weight in weights], {weight.dtype for weight in weights}
        if IN_FP16.fit(*shapes):
            kind = Fp16Matrix  # also of fp32 weights: torch would multiply them in slow bf16
        elif kept == {dtype} and tile_calls.fit(*shapes):
            kind = TiledMatrix
        elif kept == {dtype} and IN_BF16.fit(*shapes):
            kind = Bf16Matrix
        elif kept == {dtype} and _has_onednn():
            kind = OneDnnMatrix
    return kind


def _has_onednn() -> bool:
    """Return whether oneDNN multiplies bf16 here: it refuses without AVX-512."""
    operators = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and operators._is_mkldnn_bf16_supported()
        and all(hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    )
