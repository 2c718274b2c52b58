"""Autograd functions on the CPU kernels: the parts of a layer between its products, and a whole frozen layer."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from peftlib.acceleration import cpu_calls as calls
from peftlib.acceleration.cpu_calls import Dropout, Seen
from peftlib.acceleration.frozen_matrices import FrozenMatrix
from peftlib.acceleration.packing import Packing


class Attend(torch.autograd.Function):
    """Scaled dot-product attention of packed queries, keys and values. Gradients for these and their bias.

    Shapes: rows (T, 3 D) to (T, D); or, with separate queries (B, D) of the first tokens, rows (T, 2 D) to (B, D); bias
    (3 D). p: dropout rate of the attention weights.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, query: torch.Tensor | None, bias: torch.Tensor, packing: Packing, p: float
    ) -> torch.Tensor:
        ctx.packing, ctx.drop = packing, Dropout.of(p)
        ctx.save_for_backward(rows, query, bias)
        return calls.attention_forward(Seen(rows, query, bias, packing), ctx.drop)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, query, bias = ctx.saved_tensors
        seen = Seen(rows, query, bias, ctx.packing)
        return *calls.attention_backward(seen, gradient.contiguous(), ctx.drop), None, None


class DropoutAddNorm(torch.autograd.Function):
    """LayerNorm(residual + dropout(product + bias)), (T, D). Gradients for all tensors.

    residual: may be None. keep: save what backward needs.
    """

    @staticmethod
    def forward(
        ctx: Any, product: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, p: float,
        weight: torch.Tensor, shift: torch.Tensor, eps: float, keep: bool,
    ) -> torch.Tensor:  # fmt: skip
        ctx.drop, ctx.residual = Dropout.of(p), residual is not None
        output, normal, rstd = calls.norm_forward(product, bias, residual, weight, shift, eps, ctx.drop, keep)
        ctx.save_for_backward(normal, rstd, weight)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normal, rstd, weight = ctx.saved_tensors
        grad_residual, grad_product, sums = calls.norm_backward(gradient.contiguous(), normal, rstd, weight, ctx.drop)
        grad_weight, grad_shift, grad_bias = sums
        residual = grad_residual if ctx.residual else None
        return grad_product, grad_bias, residual, None, grad_weight, grad_shift, None, None


class Gelu(torch.autograd.Function):
    """gelu(product + bias), (T, F). Gradients for both."""

    @staticmethod
    def forward(ctx: Any, product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(product, bias)
        return calls.gelu_forward(product, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return calls.gelu_backward(gradient.contiguous(), *ctx.saved_tensors)


class FrozenLayer(torch.autograd.Function):
    """A BERT layer with GELU and frozen matrices, on packed rows (T, D). Gradients for x and the vectors.

    matrices: (3 D, D), (D, D), (F, D) and (D, F), in x's precision; the vectors are fp32. rates: dropout of the
    attention weights, and at the end of each block. keep: save what backward needs. In backward, products accumulate
    onto the gradients of the residuals.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, packing: Packing, rates: tuple[float, float, float], eps: tuple[float, float],
        matrices: tuple[FrozenMatrix, ...], keep: bool, *vectors: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        qkv_matrix, out_matrix, inner_matrix, outer_matrix = matrices
        query, key, value, out, weight, shift, inner, outer, last_weight, last_shift = vectors
        drops = tuple(Dropout.of(rate) for rate in rates)
        qkv, bias = qkv_matrix.times(x), torch.cat([query, key, value])
        seen = calls.attention_forward(Seen(qkv, None, bias, packing), drops[0])
        middle, normal, rstd = calls.norm_forward(out_matrix.times(seen), out, x, weight, shift, eps[0], drops[1], keep)
        before = inner_matrix.times(middle)
        product = outer_matrix.times(calls.gelu_forward(before, inner, out=None if keep else before))
        result, last_normal, last_rstd = calls.norm_forward(
            product, outer, middle, last_weight, last_shift, eps[1], drops[2], keep
        )
        ctx.packing, ctx.drops, ctx.matrices = packing, drops, matrices
        ctx.save_for_backward(qkv, bias, normal, rstd, before, last_normal, last_rstd, weight, inner, last_weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv_matrix, out_matrix, inner_matrix, outer_matrix = ctx.matrices
        qkv, bias, normal, rstd, before, last_normal, last_rstd, weight, inner, last_weight = ctx.saved_tensors
        residual, below, last = calls.norm_backward(
            gradient.contiguous(), last_normal, last_rstd, last_weight, ctx.drops[2]
        )
        below = outer_matrix.back(below)
        below, grad_inner = calls.gelu_backward(below, before, inner, out=below)
        below = inner_matrix.back(below, onto=residual)
        residual, below, first = calls.norm_backward(below, normal, rstd, weight, ctx.drops[1])
        seen = Seen(qkv, None, bias, ctx.packing)
        below, _, grad_qkv = calls.attention_backward(seen, out_matrix.back(below), ctx.drops[0])
        grad_x = qkv_matrix.back(below, onto=residual) if ctx.needs_input_grad[0] else None
        return (
            grad_x, None, None, None, None, None, *grad_qkv.view(3, -1), first[2], first[0], first[1], grad_inner,
            last[2], last[0], last[1],
        )  # fmt: skip
