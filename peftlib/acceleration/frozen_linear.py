"""Frozen Linear layers, which multiply with packed matrices where those are faster, in whatever model they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from peftlib.acceleration.frozen_matrices import FrozenMatrix, PackedMatrix, frozen_matrix


def pack_frozen_linears(model: nn.Module) -> None:
    """Make every frozen Linear layer multiply with a packed matrix, where kernels of our own are the fastest for it.

    Not those that a layer of PEFT's has wrapped: it may merge its update into the weights, unseen by the packed ones.
    """
    wrapped = {id(getattr(module, "base_layer", None)) for module in model.modules()}
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad and id(module) not in wrapped:
            module.__class__ = _PackedLinear


class _PackedLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        matrix = None if self.weight.requires_grad else frozen_matrix(dtype, self)
        if not isinstance(matrix, PackedMatrix):
            return super().forward(x)
        biases = [] if self.bias is None else [self.bias]
        rows: torch.Tensor = FrozenProduct.apply(x.reshape(-1, x.size(-1)).to(dtype), matrix, *biases)
        return rows.view(*x.shape[:-1], -1)


class FrozenProduct(torch.autograd.Function):
    """x W' + the concatenated biases, if any. Gradients for x, (T, in), and each bias."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrix: FrozenMatrix, *biases: torch.Tensor) -> torch.Tensor:
        ctx.matrix, ctx.sizes = matrix, [len(bias) for bias in biases]
        ctx.bias_dtype = biases[0].dtype if biases else None
        return matrix.times(x, torch.cat(biases).to(x.dtype) if biases else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs_x, _, *needed = ctx.needs_input_grad
        grad_biases: list[torch.Tensor | None] = [None] * len(needed)
        if any(needed):
            sums = gradient.sum(0).to(ctx.bias_dtype).split(ctx.sizes)
            grad_biases = [grad if need else None for grad, need in zip(sums, needed, strict=True)]
        return ctx.matrix.back(gradient) if needs_x else None, None, *grad_biases


def is_frozen_linear(module: nn.Module) -> bool:
    """Return whether this is a plain Linear with a bias and a frozen weight."""
    plain = type(module) is nn.Linear or type(module) is _PackedLinear
    return plain and module.bias is not None and not module.weight.requires_grad
