"""The weighted loss of a micro-batch as one Triton kernel, forward and backward."""

# mypy: disallow-untyped-defs=false

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore  # untyped; installed with GPU builds of torch, not with CPU builds
import triton.language as tl  # type: ignore
from torch.autograd.function import once_differentiable

#: Elements that the program processes at a time.
_BLOCK = 2048


def weighted_loss_in_one(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute `training.accumulation.weighted_loss` in one kernel, where torch takes a dozen.

    Args:
        logits: (B, C) of any float type, on the GPU.
        labels: class indices, 0 to C - 1, int64 (B,); the range is not checked.
        weight: fp32 (B,).
    """
    loss: torch.Tensor = WeightedCrossEntropy.apply(logits, labels, weight)
    return loss


class WeightedCrossEntropy(torch.autograd.Function):
    """See `weighted_loss_in_one`. A single program computes it all, as a batch has only a few hundred logits."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        examples, classes = logits.shape
        loss = torch.empty((), device=logits.device, dtype=torch.float32)
        # In fp32: the loss scale of fp16 comes with the upstream gradient, and must be applied before rounding.
        gradient = torch.empty_like(logits, dtype=torch.float32, memory_format=torch.contiguous_format)
        lanes = triton.next_power_of_2(classes)
        weighted_cross_entropy[(1,)](
            logits.contiguous(), labels, weight, loss, gradient, examples, classes, max(1, _BLOCK // lanes), lanes
        )
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return torch.mul(gradient, above, out=torch.empty_like(gradient, dtype=ctx.dtype)), None, None


@triton.jit(do_not_specialize=["examples"])
def weighted_cross_entropy(
    logits, labels, weights, loss, gradient, examples, classes, ROWS: tl.constexpr, LANES: tl.constexpr
):
    """Compute the loss and its gradient with respect to the logits, (B, C)."""
    lane, total = tl.arange(0, LANES), tl.zeros((ROWS,), tl.float32)
    for start in range(0, examples, ROWS):
        row = start + tl.arange(0, ROWS)
        there = row < examples
        at, real = row[:, None] * classes + lane[None, :], there[:, None] & (lane < classes)[None, :]
        label, weight = tl.load(labels + row, there, other=0), tl.load(weights + row, there, other=0.0)
        x = tl.load(logits + at, real, other=float("-inf")).to(tl.float32)
        x -= tl.where(there, tl.max(x, 1), 0.0)[:, None]
        powers = tl.exp(x)
        sums = tl.where(there, tl.sum(powers, 1), 1.0)
        is_label = lane[None, :] == label[:, None]
        total += tl.where(there, (tl.log(sums) - tl.sum(tl.where(is_label, x, 0.0), 1)) * weight, 0.0)
        slopes = (powers / sums[:, None] - is_label.to(tl.float32)) * weight[:, None]
        tl.store(gradient + at, slopes, real)
    tl.store(loss, tl.sum(total, 0))
