"""A layer's parts on the CPU kernels, with their gradients: what is between its products, each in one pass or two."""

from __future__ import annotations

from typing import Any

import torch

from peftlib.acceleration import cpu_calls as calls
from peftlib.acceleration.cpu_calls import Dropout, Seen
from peftlib.acceleration.packing import Packing


class Attend(torch.autograd.Function):
    """Scaled dot-product attention of packed queries, keys and values. Gradients for these and their bias.

    Shapes: rows (T, 3 D) to (T, D); or, with queries (B, D) of the first tokens apart, rows (T, 2 D) to (B, D); bias
    (3 D). p: of dropout on the weights.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, query: torch.Tensor | None, bias: torch.Tensor, packing: Packing, p: float
    ) -> torch.Tensor:
        ctx.packing, ctx.drop = packing, Dropout.of(p)
        ctx.save_for_backward(rows, query, bias)
        return calls.attention_forward(Seen(rows, query, bias, packing), ctx.drop)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, query, bias = ctx.saved_tensors
        seen = Seen(rows, query, bias, ctx.packing)
        return *calls.attention_backward(seen, gradient.contiguous(), ctx.drop), None, None


class DropoutAddNorm(torch.autograd.Function):
    """LayerNorm(residual + dropout(product + bias)), (T, D). Gradients for both, for bias, weight and shift."""

    @staticmethod
    def forward(
        ctx: Any, product: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, p: float, weight: torch.Tensor,
        shift: torch.Tensor, eps: float,
    ) -> torch.Tensor:  # fmt: skip
        ctx.drop = Dropout.of(p)
        output, normal, rstd = calls.norm_forward(product, bias, residual, weight, shift, eps, ctx.drop)
        ctx.save_for_backward(normal, rstd, weight)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normal, rstd, weight = ctx.saved_tensors
        of_residual, of_product, sums = calls.norm_backward(gradient.contiguous(), normal, rstd, weight, ctx.drop)
        for_weight, for_shift, for_bias = sums
        return of_product, for_bias, of_residual, None, for_weight, for_shift, None


class Gelu(torch.autograd.Function):
    """gelu(product + bias), (T, F). Gradients for both."""

    @staticmethod
    def forward(ctx: Any, product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(product, bias)
        return calls.gelu_forward(product, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return calls.gelu_backward(gradient.contiguous(), *ctx.saved_tensors)
