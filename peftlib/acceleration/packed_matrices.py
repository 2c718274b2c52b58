"""Frozen matrices in the layout that oneDNN multiplies with: it would make that of the plain one in every product."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import nn

from peftlib.acceleration.bert import joined


class _Packed(NamedTuple):
    matrix: torch.Tensor
    versions: tuple[int, ...]
    #: What it was made of. They are kept, so that no other weights can come to lie where they did.
    sources: tuple[torch.Tensor, ...]

    def is_of(self, weights: tuple[torch.Tensor, ...]) -> bool:
        return self.versions == tuple(one._version for one in weights) and all(
            one.data_ptr() == source.data_ptr() and one.shape == source.shape
            for one, source in zip(weights, self.sources, strict=True)
        )


_known: weakref.WeakKeyDictionary[nn.Module, _Packed] = weakref.WeakKeyDictionary()


def packed(*modules: nn.Linear) -> torch.Tensor | None:
    """Of these layers' weights, one below the other, for `product`; None where they are not bf16 on a CPU with oneDNN.

    Made at the first call, and anew for weights that were loaded or replaced. It takes their memory once more: on two
    cores forward products of some hundred rows run at 1.05 ×, of some dozen at 1.15 ×; those of the backward pass
    use the plain weights.
    """
    weights = tuple(module.weight for module in modules)
    if not all(one.dtype == torch.bfloat16 and one.device.type == "cpu" for one in weights) or not _has_onednn():
        return None
    known = _known.get(modules[0])
    if known is None or not known.is_of(weights):
        matrix = torch.ops.mkldnn._reorder_linear_weight(joined(*modules) if len(modules) > 1 else weights[0].data)
        weights = tuple(module.weight for module in modules)
        sources = tuple(one.data for one in weights)
        known = _known[modules[0]] = _Packed(matrix, tuple(one._version for one in weights), sources)
    return known.matrix


def product(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W' + bias, (T, in) to (T, out), all bf16."""
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, matrix, bias, "none", [], "")
    return output


class FrozenMatrix(NamedTuple):
    """Of layers side by side, (out, in): as it is, and packed where that can be."""

    plain: torch.Tensor
    packed: torch.Tensor | None

    @classmethod
    def of(cls, dtype: torch.dtype, *modules: nn.Linear) -> FrozenMatrix:
        """For rows in this precision."""
        plain = modules[0].weight if len(modules) == 1 else joined(*modules)
        return cls(plain.to(dtype), packed(*modules) if dtype == torch.bfloat16 else None)

    def times(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x W' + bias, (T, in) to (T, out)."""
        if self.packed is not None:
            return product(x, self.packed, bias)
        return x @ self.plain.t() if bias is None else torch.addmm(bias, x, self.plain.t())


def _has_onednn() -> bool:
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
