"""Launch an encoder layer's Triton kernels: arguments, results and launch configurations.

Shapes as in `layer_kernels`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton  # type: ignore  # untyped; installed with GPU builds of torch, not with CPU builds

from peftlib.acceleration import attention_kernels as attention
from peftlib.acceleration import layer_kernels as kernels
from peftlib.acceleration.gpus import is_hopper

#: Most programs that share the rows in backward; each writes one row of partial sums.
_PROGRAMS = 256
#: Rows and columns per block of a program, and its warps of 32 threads. In forward, normalisation has one warp per row,
#: or one per `_WARP_COLUMNS` columns.
_FORWARD_ROWS, _WARP_COLUMNS = 1, 1024
_ROWS, _NORM_WARPS = 2, 4
_GELU_ROWS, _GELU_COLUMNS, _GELU_WARPS = 2, 1024, 4
_ATTENTION_WARPS = 4  # for up to 64 tokens, twice as many beyond
#: Most registers per thread of attention on Hopper, forward and backward, so that each multiprocessor runs six and four
#: programs at a time for up to 64 tokens, three and two beyond. Beyond 64 tokens, a program processes `_KEYS` keys at a
#: time: all at once would need 113 and 234 registers. Other architectures have no limit: there both need more, backward
#: up to 202, and would spill (`ptxas -v`, 8.0 to 12.0).
_MOST_REGISTERS, _KEYS = (80, 128), 32
_MIX_COLUMNS = 64  # with 128, backward does not fit on GPUs of capability 8.6
_SUMS_ROWS, _SUMS_COLUMNS, _SUMS_WARPS = 32, 32, 4


class Rate(NamedTuple):
    """Dropout's rate: a 32-bit word below `threshold` drops its element; others are multiplied by `factor`."""

    threshold: int
    factor: float

    @classmethod
    def of(cls, p: float) -> Rate:
        """Convert a rate 0 <= p < 1."""
        threshold = min(round(p * 2**32), 2**32 - 1)
        return cls(threshold, 2**32 / (2**32 - threshold))


class Call(NamedTuple):
    """Arguments that the kernels of one layer's step share.

    Attributes:
        places: see `layer_kernels`; in the shape that batches have, (S, 1, 1, BLOCK), contiguous.
        seed: one int64 of 62 bits, on the device.
        heads: number of attention heads.
        rates: of attention's dropout and of the two after it; the index is the number of the site.
    """

    places: torch.Tensor
    seed: torch.Tensor
    heads: int
    rates: tuple[Rate, ...]


def programs(rows: int) -> int:
    """Return the number of programs that share this many rows in backward."""
    return int(min(_PROGRAMS, triton.cdiv(rows, _ROWS)))


class Normal(NamedTuple):
    """Saved for normalisation's backward: its result before weight and shift, (T, D); 1 / standard deviation, (T,)."""

    values: torch.Tensor
    rstd: torch.Tensor


def norm_forward(
    call: Call, site: int, product: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor,
    shift: torch.Tensor, eps: float,
) -> tuple[torch.Tensor, Normal]:  # fmt: skip
    """Compute LayerNorm(residual + dropout(product + bias)), (T, D)."""
    out, normal = torch.empty_like(product), torch.empty_like(product)
    rstd = product.new_empty(product.size(0), dtype=torch.float32)
    options = _norm_options(call, site, product)
    options |= {"ROWS": _FORWARD_ROWS, "num_warps": max(1, options["BLOCK"] // _WARP_COLUMNS)}
    kernels.norm_forward[(triton.cdiv(product.size(0), _FORWARD_ROWS),)](
        product, bias, residual, weight, shift, out, normal, rstd, eps, **options
    )
    return out, Normal(normal, rstd)


def norm_backward(
    call: Call, site: int, gradient: torch.Tensor, normal: Normal, weight: torch.Tensor, weight_sums: torch.Tensor,
    shift_sums: torch.Tensor, bias_sums: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the gradients of residual and product, (T, D).

    `weight_sums`, `shift_sums` and `bias_sums` receive the programs' partial sums, (programs, D); a gradient that is
    not needed has (programs, 0).
    """
    out = torch.empty_like(gradient)
    dropped = torch.empty_like(gradient) if call.rates[site].threshold else out
    kernels.norm_backward[(weight_sums.size(0),)](
        gradient, *normal, weight, out, dropped, weight_sums, shift_sums, bias_sums, weight_sums.stride(0),
        weight_sums.numel() > 0, shift_sums.numel() > 0, bias_sums.numel() > 0, **_norm_options(call, site, gradient),
    )  # fmt: skip
    return out, dropped


def gelu_forward(product: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Compute gelu(product + bias), (T, F)."""
    rows, width = product.shape
    out = torch.empty_like(product)
    kernels.gelu_forward[(triton.cdiv(rows, _GELU_ROWS), triton.cdiv(width, _GELU_COLUMNS))](
        product, bias, out, rows, width, _GELU_ROWS, _GELU_COLUMNS, num_warps=_GELU_WARPS
    )
    return out


def gelu_backward(above: torch.Tensor, product: torch.Tensor, bias: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the product, (T, F), which overwrites `above`; `sums` as in `norm_backward`."""
    rows, width = product.shape
    kernels.gelu_backward[(sums.size(0), triton.cdiv(width, _GELU_COLUMNS))](
        above, product, bias, above, sums, sums.stride(0), rows, sums.numel() > 0, width, _GELU_ROWS, _GELU_COLUMNS,
        num_warps=_GELU_WARPS,
    )  # fmt: skip
    return above


class Tables(NamedTuple):
    """Embedding tables, fp32: (vocabulary, D), (types, D), (positions, D)."""

    words: torch.Tensor
    types: torch.Tensor
    positions: torch.Tensor


def embed(
    tokens: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor], tables: Tables, weight: torch.Tensor,
    shift: torch.Tensor, eps: float, seed: torch.Tensor, rate: Rate, dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Compute dropout(LayerNorm(sum of a token's embeddings)), (T, D), and the normalised sum before weight and shift.

    Args:
        tokens: int64 indices of words, types (None: all zero) and positions, each (T,).
    """
    words, types, positions = tokens
    out = tables.words.new_empty((words.size(0), tables.words.size(1)), dtype=dtype)
    normal, typed = torch.empty_like(out), types is not None
    kernels.embed_forward[(triton.cdiv(words.size(0), _ROWS),)](
        words, types if typed else words, positions, *tables, weight, shift, out, normal, eps, TYPED=typed,
        **_row_options(out, seed, rate),
    )  # fmt: skip
    return out, normal


def embed_backward(
    gradient: torch.Tensor, normal: torch.Tensor, seed: torch.Tensor, rate: Rate, needs_weight: bool, needs_shift: bool
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of weight and shift, (D,), or (0,) where not needed."""
    width, count = gradient.size(1), programs(gradient.size(0))
    sizes = [width * needs_weight, width * needs_shift]
    sums = gradient.new_empty((count, sum(sizes)), dtype=torch.float32)
    kernels.embed_backward[(count,)](
        gradient, normal, *sums.split(sizes, 1), sums.stride(0), needs_weight, needs_shift,
        **_row_options(gradient, seed, rate),
    )  # fmt: skip
    return sums_over_rows(sums, sums[:, :0]).split(sizes)


def _norm_options(call: Call, site: int, like: torch.Tensor) -> dict[str, Any]:
    return {"site": site, **_row_options(like, call.seed, call.rates[site])}


def _row_options(like: torch.Tensor, seed: torch.Tensor, rate: Rate) -> dict[str, Any]:
    rows, width = like.shape
    return {
        "rows": rows, "seed": seed, "factor": rate.factor, "THRESHOLD": rate.threshold, "D": width,
        "BLOCK": triton.next_power_of_2(width), "ROWS": _ROWS, "num_warps": _NORM_WARPS,
    }  # fmt: skip


class Attended(NamedTuple):
    """Attention's output, (T, D), and for backward the log2 of its softmax's sums, fp32 (S, H, BLOCK)."""

    values: torch.Tensor
    logs: torch.Tensor


def attend(call: Call, qkv: torch.Tensor) -> Attended:
    """Compute attention of queries, keys and values, (T, 3 D)."""
    out = qkv.new_empty(qkv.size(0), qkv.size(1) // 3)
    logs = qkv.new_empty((call.places.size(0), call.heads, call.places.size(-1)), dtype=torch.float32)
    attention.attention_forward[(call.places.size(0) * call.heads,)](
        qkv, out, logs, KEYS=_keys_at_a_time(call), maxnreg=_registers(qkv.device)[0], **_attention_options(call, out)
    )
    return Attended(out, logs)


def attend_backward(
    call: Call, gradient: torch.Tensor, qkv: torch.Tensor, attended: Attended, sums: torch.Tensor
) -> torch.Tensor:
    """Return the gradients (T, 3 D); `sums`, unless empty, receives the biases', one row per example, (S, 3 D)."""
    out = torch.empty_like(qkv)
    attention.attention_backward[(call.places.size(0) * call.heads,)](
        qkv, *attended, out, gradient, sums, sums.stride(0), SUMMED=sums.numel() > 0, KEYS=_keys_at_a_time(call),
        maxnreg=_registers(qkv.device)[1], **_attention_options(call, gradient),
    )  # fmt: skip
    return out


@functools.cache
def _registers(device: torch.device) -> tuple[int | None, int | None]:
    return _MOST_REGISTERS if is_hopper(device) else (None, None)


def _keys_at_a_time(call: Call) -> int:
    block = int(call.places.size(-1))
    return block if block <= 64 else _KEYS


def mix(call: Call, asked: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention-weighted sums of rows (T, D) for queries (S, H, D), and of the weights, fp32 (S, H)."""
    out, kept = torch.empty_like(asked), asked.new_empty(asked.shape[:2], dtype=torch.float32)
    attention.mix_forward[(asked.size(0),)](asked, rows, out, kept, **_mix_options(call, asked))
    return out, kept


def mix_backward(
    call: Call, asked: torch.Tensor, rows: torch.Tensor, gradient: torch.Tensor, grad_kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of queries and rows, from those of the two results."""
    grad_asked, grad_rows = torch.empty_like(asked), torch.empty_like(rows)
    attention.mix_backward[(asked.size(0),)](
        asked, rows, gradient, grad_kept, grad_asked, grad_rows, **_mix_options(call, asked)
    )
    return grad_asked, grad_rows


def _mix_options(call: Call, asked: torch.Tensor) -> dict[str, Any]:
    width, given = asked.size(2), _attention_options(call, asked)
    del given["DH"]
    heads, chunk = max(16, triton.next_power_of_2(call.heads)), min(_MIX_COLUMNS, triton.next_power_of_2(width))
    return {**given, "D": width, "HEADS": heads, "CHUNK": chunk}


def _attention_options(call: Call, like: torch.Tensor) -> dict[str, Any]:
    width, block, (threshold, factor) = like.size(-1) // call.heads, call.places.size(-1), call.rates[0]
    return {
        "places": call.places, "seed": call.seed, "scale": width**-0.5, "factor": factor, "THRESHOLD": threshold,
        "H": call.heads, "DH": width, "BLOCK": block, "num_warps": _ATTENTION_WARPS * (1 + (block > 64)),
    }  # fmt: skip


def sums_over_rows(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum each column of two fp32 matrices; return the sums of both, concatenated."""
    widths = first.size(1), second.size(1)
    out = first.new_empty(sum(widths))
    blocks = sum(triton.cdiv(width, _SUMS_COLUMNS) for width in widths)
    if blocks:
        kernels.column_sums[(blocks,)](
            first, first.size(0), widths[0], second, second.size(0), widths[1], out, _SUMS_ROWS, _SUMS_COLUMNS,
            num_warps=_SUMS_WARPS,
        )  # fmt: skip
    return out
