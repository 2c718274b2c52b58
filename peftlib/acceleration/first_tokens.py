"""Attention of the first tokens only, without computing keys and values, for frozen key and value matrices.

The score of a query q and a key W x is (q' W) x, and the weighted sum of values is the value of the weighted sum of
rows: one product per example replaces one per token. DeepSeek-V2 (2024, section 2.1) absorbs matrices the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from peftlib.acceleration import cpu_calls as calls
from peftlib.acceleration.cpu_calls import Dropout
from peftlib.acceleration.packing import Packing


def attend_first(
    query: torch.Tensor, rows: torch.Tensor, key: nn.Linear, value: nn.Linear, packing: Packing, p: float
) -> torch.Tensor:
    """Attend from queries (B, D), one per example, to its rows of (T, D). p: dropout rate of the attention weights."""
    heads, width = packing.heads, packing.head_width
    by_key, by_value = (linear.weight.to(rows.dtype).view(heads, width, -1) for linear in (key, value))
    asked = torch.bmm(query.view(-1, heads, width).transpose(0, 1), by_key)
    mixed, kept = _Mix.apply(asked.transpose(0, 1).contiguous(), rows, key.bias, packing, p)
    attended = torch.bmm(mixed.transpose(0, 1), by_value.mT).transpose(0, 1)
    biases = kept.unsqueeze(2) * value.bias.float().view(heads, width)
    output: torch.Tensor = (attended + biases).to(rows.dtype).reshape(query.shape)
    return output


class _Mix(torch.autograd.Function):
    """Attention-weighted sums of rows (T, D) for queries (B, H, D), and the sums of the weights, (B, H).

    Gradients for queries and rows. The key bias cancels in softmax, so its gradient is zero.
    """

    @staticmethod
    def forward(
        ctx: Any, asked: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor, packing: Packing, p: float
    ) -> tuple[torch.Tensor, ...]:
        ctx.packing, ctx.drop, ctx.bias = packing, Dropout.of(p), bias.shape
        ctx.save_for_backward(asked, rows)
        return calls.mix_forward(asked, rows, packing, ctx.drop)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, grad_kept: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        asked, rows = ctx.saved_tensors
        grad_asked, grad_rows = calls.mix_backward(
            asked, rows, ctx.packing, ctx.drop, gradient.contiguous(), grad_kept.contiguous()
        )
        return grad_asked, grad_rows, grad_kept.new_zeros(ctx.bias), None, None
