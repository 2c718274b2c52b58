"""Linear layers, in whatever model, that multiply with packed matrices where those are faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from peftlib.acceleration import tile_calls
from peftlib.acceleration.frozen_matrices import FrozenMatrix, frozen_matrix, packs
from peftlib.acceleration.panel_calls import IN_BF16, IN_FP16


def pack_linears(model: nn.Module) -> None:
    """Make every Linear layer multiply by kernels of our own in bf16, where they are the fastest for it.

    Frozen weights in bf16 are packed once. In fp16 arithmetic it pays to pack all others for every product.
    """
    if not (tile_calls.are_there() or IN_FP16.pay() or IN_BF16.pay()):
        return
    wrapped = {id(getattr(module, "base_layer", None)) for module in model.modules()}
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _WrappedLinear if id(module) in wrapped else _PackedLinear


def is_plain_linear(module: nn.Module) -> bool:
    """Return whether this is torch's layer, be it one that packs its weights."""
    return type(module) in (nn.Linear, _PackedLinear, _WrappedLinear)


def is_frozen_linear(module: nn.Module) -> bool:
    """Return whether this is a plain Linear with a bias and a frozen weight."""
    return is_plain_linear(module) and module.bias is not None and not module.weight.requires_grad


class _PackedLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        if kind != "cpu" or dtype != torch.bfloat16:
            return super().forward(x)
        matrix = None if self.weight.requires_grad else self._packed_once()
        rows, bias = x.reshape(-1, x.size(-1)).to(dtype), [] if self.bias is None else [self.bias]
        if matrix is not None:
            rows = FrozenProduct.apply(rows, matrix, *bias)
        elif IN_FP16.fit(self.weight.shape):
            rows = _Fp16Product.apply(rows, self.weight, *bias)
        else:
            return super().forward(x)
        return rows.view(*x.shape[:-1], self.out_features)

    def _packed_once(self) -> FrozenMatrix | None:
        return frozen_matrix(torch.bfloat16, self) if packs(self.weight) else None


class _WrappedLinear(_PackedLinear):
    """One that a layer of PEFT's has wrapped, which may merge its update into the weights, unseen by packed ones."""

    def _packed_once(self) -> None:
        return None


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


class _Fp16Product(torch.autograd.Function):
    """x W' + bias, if there is one, in bf16 by fp16 instructions. Gradients for x, (T, in), W, (out, in), and bias."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return IN_FP16.product(x.contiguous(), IN_FP16.pack(weight.t()), *bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, *needs_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        grad_x = IN_FP16.product(gradient, IN_FP16.pack(weight)) if needs_x else None
        grad_weight = IN_FP16.outer_product(gradient, x).to(weight.dtype) if needs_weight else None
        return grad_x, grad_weight, *(gradient.sum(0, dtype=torch.float32) if need else None for need in needs_bias)
