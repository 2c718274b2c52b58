"""What of a layer is no product: attention, activation, normalisation; on the CPU kernels or on torch's operators."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from peftlib.acceleration import cpu_calls, cpu_layer, torch_layer
from peftlib.acceleration.bert import is_plain_gelu
from peftlib.acceleration.packing import Packing


class Parts(Protocol):
    """The parts of a layer on packed rows, (T, D) or (T, F), in the precision of the products."""

    #: They add the biases, which products are then without.
    add_biases: bool

    def attend(
        self, rows: torch.Tensor, query: torch.Tensor | None, bias: torch.Tensor | None, packing: Packing, p: float
    ) -> torch.Tensor:
        """Rows (T, 3 D) to (T, D); or, with queries (B, D) of the first tokens, rows (T, 2 D) to (B, D); bias (3 D)."""
        ...

    def activate(self, product: torch.Tensor, bias: torch.Tensor | None, activation: nn.Module) -> torch.Tensor: ...

    def add_norm(
        self, product: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor, p: float, norm: nn.LayerNorm
    ) -> torch.Tensor:
        """norm(residual + dropout(product + bias))."""
        ...


def parts_for(layer: Any, dtype: torch.dtype) -> Parts:
    """The kernels where they are there and fit the layer."""
    attention, inner = layer.attention.self, layer.intermediate.dense.out_features
    fit = cpu_calls.fits(dtype, attention.all_head_size, attention.attention_head_size, inner)
    return KernelParts() if fit and cpu_calls.are_there() else TorchParts()


class KernelParts:
    """On the CPU kernels: 1.1 to 1.4 × a whole training step."""

    add_biases = True

    def attend(
        self, rows: torch.Tensor, query: torch.Tensor | None, bias: torch.Tensor | None, packing: Packing, p: float
    ) -> torch.Tensor:
        output: torch.Tensor = cpu_layer.Attend.apply(
            rows, query, _vector(bias, 3 * packing.heads * packing.head_width), packing, p
        )
        return output

    def activate(self, product: torch.Tensor, bias: torch.Tensor | None, activation: nn.Module) -> torch.Tensor:
        output: torch.Tensor
        if is_plain_gelu(activation):
            output = cpu_layer.Gelu.apply(product, _vector(bias, product.size(1)))
        else:
            output = activation(product if bias is None else product + bias.to(product.dtype))
        return output

    def add_norm(
        self, product: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor, p: float, norm: nn.LayerNorm
    ) -> torch.Tensor:
        output: torch.Tensor = cpu_layer.DropoutAddNorm.apply(
            product, _vector(bias, product.size(1)), residual, p, norm.weight.float(), norm.bias.float(), norm.eps,
            torch.is_grad_enabled(),
        )  # fmt: skip
        return output


def _vector(bias: torch.Tensor | None, width: int) -> torch.Tensor:
    """In fp32, as the kernels read it whatever the model's parameters are in."""
    return torch.zeros(width) if bias is None else bias.float()


class TorchParts:
    """On torch's operators, which add no bias: products do."""

    add_biases = False

    def attend(
        self, rows: torch.Tensor, query: torch.Tensor | None, bias: torch.Tensor | None, packing: Packing, p: float
    ) -> torch.Tensor:
        output: torch.Tensor = torch_layer.Attend.apply(rows, query, packing, p)
        return output

    def activate(self, product: torch.Tensor, bias: torch.Tensor | None, activation: nn.Module) -> torch.Tensor:
        output: torch.Tensor = activation(product)
        return output

    def add_norm(
        self, product: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor, p: float, norm: nn.LayerNorm
    ) -> torch.Tensor:
        output: torch.Tensor = torch_layer.DropoutAddNorm.apply(product, residual, p, norm.weight, norm.bias, norm.eps)
        return output
