"""A layer's parts on torch's operators, for machines without the CPU kernels and layers that they do not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from peftlib.acceleration.dropout import drawn_mask, masked
from peftlib.acceleration.packing import Packing


class Attend(torch.autograd.Function):
    """Scaled dot-product attention of packed queries, keys and values.

    Shapes: rows (T, 3 D) to (T, D); or, with separate queries (B, D) of the first tokens, rows (T, 2 D) to (B, D).
    p: dropout rate of the attention weights.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, query: torch.Tensor | None, packing: Packing, p: float) -> torch.Tensor:
        heads = packing.to_heads(rows)
        key, value = heads[-2], heads[-1]
        queries = heads[0] if query is None else query.view(len(key), 1, -1)
        scale = packing.head_width**-0.5
        bias = packing.bias.expand(-1, queries.size(1), -1)
        weights = torch.baddbmm(bias, queries, key.mT, alpha=scale).softmax(-1, _wide(rows.dtype))
        mask, ctx.factor = drawn_mask(weights, p)
        kept = masked(weights.to(rows.dtype), mask, ctx.factor)
        output = torch.bmm(kept, value)
        ctx.packing, ctx.scale = packing, scale
        ctx.save_for_backward(heads, query, weights, mask, kept)
        return packing.from_heads(output.unsqueeze(0)) if query is None else output.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        heads, query, weights, mask, kept = ctx.saved_tensors
        packing: Packing = ctx.packing
        key, value = heads[-2], heads[-1]
        queries = heads[0] if query is None else query.view(len(key), 1, -1)
        above = packing.to_heads(gradient)[0] if query is None else gradient.reshape(queries.shape)
        grad_heads = torch.empty_like(heads)
        grad_weights = masked(torch.bmm(above, value.mT), mask, ctx.factor)
        grad_scores = torch._softmax_backward_data(grad_weights.to(weights.dtype), weights, -1, weights.dtype).to(
            key.dtype
        )
        grad_query = grad_heads[0] if query is None else torch.empty_like(queries)
        for left, right, scale, out in (
            (grad_scores, key, ctx.scale, grad_query),
            (grad_scores.mT, queries, ctx.scale, grad_heads[-2]),
            (kept.mT, above, 1, grad_heads[-1]),
        ):
            torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)
        grad_rows = packing.from_heads(grad_heads)
        grad_rows[packing.real :].zero_()
        return grad_rows, None if query is None else grad_query.view(query.shape), None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the softmax's precision, at least fp32: half takes torch four times as long unless vectors are whole."""
    return torch.promote_types(dtype, torch.float32)


class DropoutAddNorm(torch.autograd.Function):
    """LayerNorm(residual + dropout(product)), (T, D). Gradients for product, residual, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, product: torch.Tensor, residual: torch.Tensor, p: float, weight: torch.Tensor, bias: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:  # fmt: skip
        mask, ctx.factor = drawn_mask(product, p)
        total = torch.add(residual, masked(product, mask), alpha=ctx.factor)
        output, mean, rstd = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        ctx.save_for_backward(total, mask, mean, rstd, weight, bias)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total, mask, mean, rstd, weight, bias = ctx.saved_tensors
        _, _, _, of_weight, of_bias, _ = ctx.needs_input_grad
        alike = gradient.dtype == weight.dtype
        needed = [True, of_weight and alike, of_bias and alike]
        grad_total, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(), total, weight.shape, mean, rstd, weight, bias, needed
        )
        # Of half-precision rows torch adds up these two in half precision: over 4,096 rows a third is lost.
        if of_weight and not alike:
            grad_weight = (gradient * ((total - mean) * rstd)).sum(0)
        if of_bias and not alike:
            grad_bias = gradient.sum(0, dtype=weight.dtype)
        return masked(grad_total, mask, ctx.factor), grad_total, None, grad_weight, grad_bias, None
