"""What an encoder layer's training step does between its products, as Triton kernels.

In shapes: B examples of W tokens, M = B · W rows; width D in heads of width DH; inner width F. Tensors are row-major.
Arithmetic is in fp32; tensors of rows are in the precision of the products, parameters and their gradients in fp32.

Dropout's masks are not kept: backward draws them again. The generator is Philox (Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405; its 7 rounds pass BigCrush), keyed by the call's seed and the site in the
layer, counting groups of four elements of a row.
"""

# mypy: disallow-untyped-defs=false

from __future__ import annotations

import triton  # type: ignore  # without types; torch for GPUs brings it, torch for CPUs does not
import triton.language as tl  # type: ignore


@triton.jit
def _kept(seed, row, SITE: tl.constexpr, THRESHOLD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Dropout's mask, (R, BLOCK), for rows of so many numbers (R,): the same whatever the block."""
    # Lanes past the width have the counters of the next row, and are not used.
    counter = row[:, None] * (WIDTH // 4) + tl.arange(0, BLOCK // 4)[None, :]
    first, second, third, fourth = tl.randint4x(tl.load(seed) + (SITE << 32), counter, n_rounds=7)
    # Compared before they are interleaved: bits are cheaper to move between threads than words.
    even = tl.interleave(first >= THRESHOLD, third >= THRESHOLD)
    return tl.interleave(even, tl.interleave(second >= THRESHOLD, fourth >= THRESHOLD))


@triton.jit
def _head(qkv, bias, example, head, tokens, PART: tl.constexpr, D: tl.constexpr, DH: tl.constexpr, BLOCK: tl.constexpr):
    """One head's queries, keys or values (PART 0, 1, 2) with their bias: (BLOCK, DH), zero past the last token."""
    token, lane = tl.arange(0, BLOCK), tl.arange(0, DH)
    real = (token < tokens)[:, None]
    at = (example * tokens + token)[:, None] * (3 * D) + (PART * D + head * DH + lane)[None, :]
    values = tl.load(qkv + at, real, other=0.0)
    added = values.to(tl.float32) + tl.load(bias + head * DH + lane).to(tl.float32)[None, :]
    return tl.where(real, added, 0.0).to(values.dtype)


@triton.jit
def _softmax(q, k, scale, mask, step, tokens, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Attention weights before dropout, (BLOCK, BLOCK) in fp32; `mask` of KIND 0 (none), 1 (integers) or 2 (floats)."""
    key = tl.arange(0, BLOCK)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if KIND > 0:
        seen = tl.load(mask + key * step, key < tokens, other=0)
        # Finite, so that an example with nothing to see gets equal weights, as from transformers, instead of NaN.
        scores = tl.where((seen > 0 if KIND == 1 else seen >= 0)[None, :], scores, -1e30)
    scores = tl.where((key < tokens)[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights * (1.0 / tl.sum(weights, 1))[:, None]


@triton.jit(do_not_specialize=["tokens", "mask_example", "mask_key"])
def attention_forward(
    qkv, bias_q, bias_k, bias_v, out, mask, seed, tokens, mask_example, mask_key, scale, factor,
    THRESHOLD: tl.constexpr, KIND: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    example, head = program // H, program % H
    q = _head(qkv, bias_q, example, head, tokens, 0, H * DH, DH, BLOCK)
    k = _head(qkv, bias_k, example, head, tokens, 1, H * DH, DH, BLOCK)
    v = _head(qkv, bias_v, example, head, tokens, 2, H * DH, DH, BLOCK)
    token, lane = tl.arange(0, BLOCK), tl.arange(0, DH)
    weights = _softmax(q, k, scale, mask + example * mask_example, mask_key, tokens, KIND, BLOCK)
    if THRESHOLD > 0:
        weights = tl.where(_kept(seed, program * 128 + token, 0, THRESHOLD, 128, BLOCK), weights * factor, 0.0)
    values = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    at = (example * tokens + token)[:, None] * (H * DH) + (head * DH + lane)[None, :]
    tl.store(out + at, values.to(v.dtype), (token < tokens)[:, None])


@triton.jit(do_not_specialize=["tokens", "mask_example", "mask_key"])
def attention_backward(
    qkv, bias_q, bias_k, bias_v, out, gradient, sums, mask, seed, tokens, mask_example, mask_key, scale, factor,
    THRESHOLD: tl.constexpr, KIND: tl.constexpr, SUMMED: tl.constexpr, H: tl.constexpr, DH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    example, head = program // H, program % H
    q = _head(qkv, bias_q, example, head, tokens, 0, H * DH, DH, BLOCK)
    k = _head(qkv, bias_k, example, head, tokens, 1, H * DH, DH, BLOCK)
    v = _head(qkv, bias_v, example, head, tokens, 2, H * DH, DH, BLOCK)
    token, lane = tl.arange(0, BLOCK), tl.arange(0, DH)
    real = (token < tokens)[:, None]
    row, column = (example * tokens + token)[:, None], (head * DH + lane)[None, :]
    above = tl.load(gradient + row * (H * DH) + column, real, other=0.0)
    weights = _softmax(q, k, scale, mask + example * mask_example, mask_key, tokens, KIND, BLOCK)
    dropped = weights
    of_weights = tl.dot(above, tl.trans(v), input_precision="ieee")
    if THRESHOLD > 0:
        kept = _kept(seed, program * 128 + token, 0, THRESHOLD, 128, BLOCK)
        dropped = tl.where(kept, weights * factor, 0.0)
        of_weights = tl.where(kept, of_weights * factor, 0.0)
    of_v = tl.dot(tl.trans(dropped.to(v.dtype)), above, input_precision="ieee")
    of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None]) * scale
    of_scores = of_scores.to(q.dtype)
    of_q = tl.dot(of_scores, k, input_precision="ieee")
    of_k = tl.dot(tl.trans(of_scores), q, input_precision="ieee")
    place = out + row * (3 * H * DH) + column
    tl.store(place, of_q.to(q.dtype), real)
    tl.store(place + H * DH, of_k.to(q.dtype), real)
    tl.store(place + 2 * H * DH, of_v.to(q.dtype), real)
    if SUMMED:  # past the last token they are zero
        place = sums + example * (3 * H * DH) + head * DH + lane
        tl.store(place, tl.sum(of_q, 0))
        tl.store(place + H * DH, tl.sum(of_k, 0))
        tl.store(place + 2 * H * DH, tl.sum(of_v, 0))


@triton.jit(do_not_specialize=["rows"])
def norm_forward(
    product, bias, residual, weight, shift, out, normal, rstd, eps, seed, rows, factor,
    SITE: tl.constexpr, THRESHOLD: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    wide = column < D
    real = (row < rows)[:, None] & wide[None, :]
    at = row[:, None] * D + column[None, :]
    values = tl.load(product + at, real, other=0.0).to(tl.float32)
    values += tl.load(bias + column, wide, other=0.0).to(tl.float32)[None, :]
    if THRESHOLD > 0:
        values = tl.where(_kept(seed, row, SITE, THRESHOLD, D, BLOCK), values * factor, 0.0)
    values += tl.load(residual + at, real, other=0.0).to(tl.float32)
    values = tl.where(wide[None, :], values - (tl.sum(values, 1) / D)[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / D + eps)
    values *= inverse[:, None]
    tl.store(normal + at, values.to(normal.dtype.element_ty), real)
    tl.store(rstd + row, inverse, row < rows)
    values *= tl.load(weight + column, wide, other=0.0).to(tl.float32)[None, :]
    values += tl.load(shift + column, wide, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, values.to(out.dtype.element_ty), real)


@triton.jit(do_not_specialize=["rows"])
def norm_backward(
    gradient, normal, rstd, weight, out, dropped, weight_sums, shift_sums, bias_sums, stride,
    OF_WEIGHT: tl.constexpr, OF_SHIFT: tl.constexpr, OF_BIAS: tl.constexpr, seed, rows, factor,
    SITE: tl.constexpr, THRESHOLD: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program, column = tl.program_id(0), tl.arange(0, BLOCK)
    start, wide = program * ROWS, column < D
    gamma = tl.load(weight + column, wide, other=0.0).to(tl.float32)[None, :]
    of_weight, of_shift = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    of_bias = tl.zeros((BLOCK,), tl.float32)
    while start < rows:
        row = start + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & wide[None, :]
        at = row[:, None] * D + column[None, :]
        above = tl.load(gradient + at, real, other=0.0).to(tl.float32)
        x = tl.load(normal + at, real, other=0.0).to(tl.float32)
        inverse = tl.load(rstd + row, row < rows, other=0.0)[:, None]
        if OF_WEIGHT:
            of_weight += tl.sum(above * x, 0)
        if OF_SHIFT:
            of_shift += tl.sum(above, 0)
        above *= gamma
        below = (above - (tl.sum(above, 1) / D)[:, None] - x * (tl.sum(above * x, 1) / D)[:, None]) * inverse
        tl.store(out + at, below.to(out.dtype.element_ty), real)
        if THRESHOLD > 0:
            below = tl.where(_kept(seed, row, SITE, THRESHOLD, D, BLOCK), below * factor, 0.0)
            tl.store(dropped + at, below.to(dropped.dtype.element_ty), real)
        if OF_BIAS:
            of_bias += tl.sum(below, 0)
        start += tl.num_programs(0) * ROWS
    at = program * stride + column
    tl.store(weight_sums + at, of_weight, wide & OF_WEIGHT)
    tl.store(shift_sums + at, of_shift, wide & OF_SHIFT)
    tl.store(bias_sums + at, of_bias, wide & OF_BIAS)


@triton.jit(do_not_specialize=["rows"])
def gelu_forward(product, bias, out, rows, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = (row < rows)[:, None] & (column < F)[None, :]
    at = row[:, None] * F + column[None, :]
    added = tl.load(bias + column, column < F, other=0.0).to(tl.float32)[None, :]
    x = tl.load(product + at, real, other=0.0).to(tl.float32) + added
    x *= 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    tl.store(out + at, x.to(out.dtype.element_ty), real)


@triton.jit(do_not_specialize=["rows"])
def gelu_backward(
    gradient, product, bias, out, sums, stride, rows, SUMMED: tl.constexpr, F: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    program = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    added = tl.load(bias + column, column < F, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((COLUMNS,), tl.float32)
    start = program * ROWS
    while start < rows:
        row = start + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & (column < F)[None, :]
        at = row[:, None] * F + column[None, :]
        x = tl.load(product + at, real, other=0.0).to(tl.float32) + added
        slope = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
        below = tl.load(gradient + at, real, other=0.0).to(tl.float32) * slope
        tl.store(out + at, below.to(out.dtype.element_ty), real)
        if SUMMED:
            total += tl.sum(below, 0)
        start += tl.num_programs(0) * ROWS
    if SUMMED:
        tl.store(sums + program * stride + column, total, column < F)
