"""How an encoder layer's kernels are launched: what they get, what they leave, and how many programs share the work.

Shapes as in `layer_kernels`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton  # type: ignore  # without types; torch for GPUs brings it, torch for CPUs does not

from peftlib.acceleration import layer_kernels as kernels

#: Longest sequence that one program's attention holds.
MOST_TOKENS = 128
#: Programs that share the rows in backward: each leaves one row of sums.
PROGRAMS = 256
#: Rows and columns that a program holds at a time, and its warps of 32 threads.
_ROWS, _NORM_WARPS = 4, 4
_GELU_ROWS, _GELU_COLUMNS, _GELU_WARPS = 8, 512, 4
_ATTENTION_WARPS = 4  # for up to 64 tokens, twice as many beyond


class Rate(NamedTuple):
    """Dropout's rate: 32-bit words below `threshold` drop their element, the others' are multiplied by `factor`."""

    threshold: int
    factor: float

    @classmethod
    def of(cls, p: float) -> Rate:
        """For 0 <= p < 1."""
        threshold = min(round(p * 2**32), 2**32 - 1)
        return cls(threshold, 2**32 / (2**32 - threshold))


class Call(NamedTuple):
    """What the kernels of one layer's step have in common.

    Attributes:
        mask: of the keys, (B, W), any strides: integers, 1 for seen, or floats, 0 for seen, else less; None for all.
        seed: one int64 below 2**31, on the device.
        tokens, heads: W, and those of attention.
        rates: of attention's dropout, the first and the second after it. Their places are the sites' numbers.
    """

    mask: torch.Tensor | None
    seed: torch.Tensor
    tokens: int
    heads: int
    rates: tuple[Rate, ...]


def norm_forward(
    call: Call, site: int, product: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor,
    shift: torch.Tensor, eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """LayerNorm(residual + dropout(product + bias)), (M, D); what it was before weight and shift; 1 / deviation (M)."""
    out, normal = torch.empty_like(product), torch.empty_like(product)
    rstd = product.new_empty(product.size(0), dtype=torch.float32)
    kernels.norm_forward[(triton.cdiv(product.size(0), _ROWS),)](
        product, bias, residual, weight, shift, out, normal, rstd, eps, **_for_norm(call, site, product)
    )
    return out, normal, rstd


def norm_backward(
    call: Call, site: int, gradient: torch.Tensor, normal: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor,
    for_weight: torch.Tensor, for_shift: torch.Tensor, for_bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of residual and product, (M, D); `for_...` take programs' sums, (PROGRAMS, D), or nothing if empty."""
    out = torch.empty_like(gradient)
    dropped = torch.empty_like(gradient) if call.rates[site].threshold else out
    kernels.norm_backward[(PROGRAMS,)](
        gradient, normal, rstd, weight, out, dropped, for_weight, for_shift, for_bias, for_weight.stride(0),
        for_weight.numel() > 0, for_shift.numel() > 0, for_bias.numel() > 0, **_for_norm(call, site, gradient),
    )  # fmt: skip
    return out, dropped


def gelu_forward(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(product + bias), (M, F)."""
    rows, width = product.shape
    out = torch.empty_like(product)
    kernels.gelu_forward[(triton.cdiv(rows, _GELU_ROWS), triton.cdiv(width, _GELU_COLUMNS))](
        product, bias, out, rows, width, _GELU_ROWS, _GELU_COLUMNS, num_warps=_GELU_WARPS
    )
    return out


def gelu_backward(above: torch.Tensor, product: torch.Tensor, bias: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Gradient of the product, (M, F), in the memory of gelu's; `sums` as in `norm_backward`."""
    rows, width = product.shape
    kernels.gelu_backward[(PROGRAMS, triton.cdiv(width, _GELU_COLUMNS))](
        above,
        product,
        bias,
        above,
        sums,
        sums.stride(0),
        rows,
        sums.numel() > 0,
        width,
        _GELU_ROWS,
        _GELU_COLUMNS,
        num_warps=_GELU_WARPS,
    )
    return above


def _for_norm(call: Call, site: int, like: torch.Tensor) -> dict[str, Any]:
    (rows, width), (threshold, factor) = like.shape, call.rates[site]
    return {
        "rows": rows, "seed": call.seed, "factor": factor, "SITE": site, "THRESHOLD": threshold, "D": width,
        "BLOCK": triton.next_power_of_2(width), "ROWS": _ROWS, "num_warps": _NORM_WARPS,
    }  # fmt: skip


def attend(call: Call, qkv: torch.Tensor, biases: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Attention of (M, 3 D) queries, keys and values that lack their biases: (M, D)."""
    out = qkv.new_empty(qkv.size(0), qkv.size(1) // 3)
    kernels.attention_forward[(qkv.size(0) // call.tokens * call.heads,)](
        qkv, *biases, out, **_for_attention(call, qkv)
    )
    return out


def attend_backward(
    call: Call, gradient: torch.Tensor, qkv: torch.Tensor, biases: tuple[torch.Tensor, ...], summed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients (M, 3 D), and their sums over an example's tokens, (B, 3 D), where asked for."""
    out, examples = torch.empty_like(qkv), qkv.size(0) // call.tokens
    sums = qkv.new_empty((examples, qkv.size(1)) if summed else 0, dtype=torch.float32)
    kernels.attention_backward[(examples * call.heads,)](
        qkv, *biases, out, gradient, sums, SUMMED=summed, **_for_attention(call, qkv)
    )
    return out, sums


def _for_attention(call: Call, qkv: torch.Tensor) -> dict[str, Any]:
    width, (threshold, factor) = qkv.size(1) // 3 // call.heads, call.rates[0]
    block = max(16, 1 << (call.tokens - 1).bit_length())
    mask, example, key, kind = qkv, 0, 0, 0
    if call.mask is not None:
        mask, (example, key), kind = call.mask, call.mask.stride(), 2 if call.mask.is_floating_point() else 1
    return {
        "mask": mask, "mask_example": example, "mask_key": key, "KIND": kind, "seed": call.seed, "factor": factor,
        "THRESHOLD": threshold, "scale": width**-0.5, "tokens": call.tokens, "H": call.heads, "DH": width,
        "BLOCK": block, "num_warps": _ATTENTION_WARPS * (1 + (block > 64)),
    }  # fmt: skip
