"""What an encoder layer's training step does between its products, as Triton kernels.

In shapes: S examples, T rows of tokens, which `places`, int32 (S, BLOCK), lays out: the rows of an example's tokens,
then -1. Width D in H heads of width DH; inner width F. Tensors are row-major. Arithmetic is in fp32; tensors of rows are
in the precision of the products, parameters and their gradients in fp32.

Dropout's masks are not kept: backward draws them again. An element's word is a hash of its place, the site in the layer
and the call's seed: a Weyl sequence through two rounds of xor, shift and multiply, with the constants of Wellons'
lowbias32 (https://nullprogram.com/blog/2018/07/31/), whose last shift the comparison with the rate has no use for. Of
four million words, rates, neighbours at distances up to 98,304, sites, seeds, runs of eight and the upper 16 bits all
are as of chance.
"""

# mypy: disallow-untyped-defs=false

from __future__ import annotations

import triton  # type: ignore  # without types; torch for GPUs brings it, torch for CPUs does not
import triton.language as tl  # type: ignore


@triton.jit
def _kept(seed, row, SITE: tl.constexpr, THRESHOLD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Dropout's mask, (R, BLOCK), for rows of so many numbers (R,): the same whatever the block."""
    key = tl.load(seed)
    # Multiplied before they are added up: the elements of a row then cost one addition. Lanes past the width have the
    # counters of the next row, and are not used.
    row = (row * WIDTH).to(tl.uint32) * 0x9E3779B1 + (key & 0xFFFFFFFF).to(tl.uint32)
    column = (tl.arange(0, BLOCK).to(tl.uint32) + SITE * 0x5851F42D) * 0x9E3779B1
    word = row[:, None] + column[None, :]
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15) ^ (key >> 32).to(tl.uint32)) * 0x846CA68B
    return word >= THRESHOLD


@triton.jit
def _head(qkv, bias, at, head, PART: tl.constexpr, D: tl.constexpr, DH: tl.constexpr):
    """One head's queries, keys or values (PART 0, 1, 2) with their bias, of the rows `at`: (BLOCK, DH), the bias for -1."""
    lane = tl.arange(0, DH)
    real = (at >= 0)[:, None]
    values = tl.load(qkv + at[:, None] * (3 * D) + (PART * D + head * DH + lane)[None, :], real, other=0.0)
    # In their precision, as autocast does; in fp32 it takes a quarter of the kernel's instructions.
    return values + tl.load(bias + head * DH + lane).to(values.dtype)[None, :]


@triton.jit
def _softmax(scores, scale, real):
    """Attention weights before dropout, fp32, of scores (Q, BLOCK) for the keys that are real (BLOCK,)."""
    scores = tl.where(real[None, :], scores * (scale * 1.4426950408889634), float("-inf"))  # of two's powers
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return weights * (1.0 / tl.sum(weights, 1))[:, None]


@triton.jit
def attention_forward(
    qkv, bias_q, bias_k, bias_v, out, places, seed, scale, factor, THRESHOLD: tl.constexpr, H: tl.constexpr,
    DH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, token = tl.program_id(0), tl.arange(0, BLOCK)
    example, head = program // H, program % H
    at = tl.load(places + example * BLOCK + token)
    q = _head(qkv, bias_q, at, head, 0, H * DH, DH)
    k = _head(qkv, bias_k, at, head, 1, H * DH, DH)
    v = _head(qkv, bias_v, at, head, 2, H * DH, DH)
    weights = _softmax(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, at >= 0)
    if THRESHOLD > 0:
        weights = tl.where(_kept(seed, program * 128 + token, 0, THRESHOLD, 128, BLOCK), weights * factor, 0.0)
    values = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    place = at[:, None] * (H * DH) + (head * DH + tl.arange(0, DH))[None, :]
    tl.store(out + place, values.to(v.dtype), (at >= 0)[:, None])


@triton.jit
def attention_backward(
    qkv, bias_q, bias_k, bias_v, out, gradient, sums, places, seed, scale, factor, THRESHOLD: tl.constexpr,
    SUMMED: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, token, lane = tl.program_id(0), tl.arange(0, BLOCK), tl.arange(0, DH)
    example, head = program // H, program % H
    at = tl.load(places + example * BLOCK + token)
    q = _head(qkv, bias_q, at, head, 0, H * DH, DH)
    k = _head(qkv, bias_k, at, head, 1, H * DH, DH)
    v = _head(qkv, bias_v, at, head, 2, H * DH, DH)
    real, column = (at >= 0)[:, None], (head * DH + lane)[None, :]
    above = tl.load(gradient + at[:, None] * (H * DH) + column, real, other=0.0)
    weights = _softmax(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, at >= 0)
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
    place = out + at[:, None] * (3 * H * DH) + column
    tl.store(place, of_q.to(q.dtype), real)
    tl.store(place + H * DH, of_k.to(q.dtype), real)
    tl.store(place + 2 * H * DH, of_v.to(q.dtype), real)
    if SUMMED:  # past the last token they are zero: its weights are, and what comes from above
        place = sums + example * (3 * H * DH) + head * DH + lane
        tl.store(place, tl.sum(of_q, 0))
        tl.store(place + H * DH, tl.zeros((DH,), tl.float32))  # softmax does not see what is added to all keys
        tl.store(place + 2 * H * DH, tl.sum(of_v, 0))


@triton.jit
def _scores(left, rows, left_base, left_real, at, D: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
            CHUNK: tl.constexpr):  # fmt: skip
    """Products of vectors (HEADS, D) with an example's rows (BLOCK, D), fp32 (HEADS, BLOCK), a piece of D at a time."""
    found = tl.zeros((HEADS, BLOCK), tl.float32)
    for start in range(0, D, CHUNK):
        column = start + tl.arange(0, CHUNK)
        wide = (column < D)[None, :]
        x = tl.load(rows + at[:, None] * D + column[None, :], (at >= 0)[:, None] & wide, other=0.0)
        one = tl.load(left + left_base[:, None] * D + column[None, :], left_real[:, None] & wide, other=0.0)
        found = tl.dot(one, tl.trans(x), found, input_precision="ieee")
    return found


@triton.jit
def mix_forward(
    asked, rows, out, kept_weights, places, seed, scale, factor, THRESHOLD: tl.constexpr, H: tl.constexpr,
    D: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    example, token, head = tl.program_id(0), tl.arange(0, BLOCK), tl.arange(0, HEADS)
    at, base = tl.load(places + example * BLOCK + token), example * H + head
    scores = _scores(asked, rows, base, head < H, at, D, HEADS, BLOCK, CHUNK)
    weights = _softmax(scores, scale, at >= 0)
    if THRESHOLD > 0:
        weights = tl.where(_kept(seed, base, 0, THRESHOLD, 128, BLOCK), weights * factor, 0.0)
    tl.store(kept_weights + base, tl.sum(weights, 1), head < H)
    weights = weights.to(rows.dtype.element_ty)
    for start in range(0, D, CHUNK):
        column = start + tl.arange(0, CHUNK)
        wide = (column < D)[None, :]
        x = tl.load(rows + at[:, None] * D + column[None, :], (at >= 0)[:, None] & wide, other=0.0)
        mixed = tl.dot(weights, x, input_precision="ieee")
        tl.store(out + base[:, None] * D + column[None, :], mixed.to(x.dtype), (head < H)[:, None] & wide)


@triton.jit
def mix_backward(
    asked, rows, gradient, of_kept, of_asked, of_rows, places, seed, scale, factor, THRESHOLD: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    example, token, head = tl.program_id(0), tl.arange(0, BLOCK), tl.arange(0, HEADS)
    at, base = tl.load(places + example * BLOCK + token), example * H + head
    weights = _softmax(_scores(asked, rows, base, head < H, at, D, HEADS, BLOCK, CHUNK), scale, at >= 0)
    of_weights = _scores(gradient, rows, base, head < H, at, D, HEADS, BLOCK, CHUNK)
    of_weights += tl.load(of_kept + base, head < H, other=0.0)[:, None]
    dropped = weights
    if THRESHOLD > 0:
        kept = _kept(seed, base, 0, THRESHOLD, 128, BLOCK)
        dropped = tl.where(kept, weights * factor, 0.0)
        of_weights = tl.where(kept, of_weights * factor, 0.0)
    of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None]) * scale
    of_scores, dropped = of_scores.to(rows.dtype.element_ty), dropped.to(rows.dtype.element_ty)
    for start in range(0, D, CHUNK):
        column = start + tl.arange(0, CHUNK)
        wide = (column < D)[None, :]
        place, real = at[:, None] * D + column[None, :], (at >= 0)[:, None] & wide
        x = tl.load(rows + place, real, other=0.0)
        vector, there = base[:, None] * D + column[None, :], (head < H)[:, None] & wide
        tl.store(of_asked + vector, tl.dot(of_scores, x, input_precision="ieee").to(x.dtype), there)
        one = tl.load(asked + vector, there, other=0.0)
        above = tl.load(gradient + vector, there, other=0.0)
        below = tl.dot(tl.trans(of_scores), one, input_precision="ieee")
        below = tl.dot(tl.trans(dropped), above, below, input_precision="ieee")
        tl.store(of_rows + place, below.to(x.dtype), real)


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
def embed_forward(
    words, types, positions, word_table, type_table, position_table, weight, shift, out, normal, eps, seed, rows,
    factor, TYPED: tl.constexpr, THRESHOLD: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    there, wide = row < rows, column < D
    real = there[:, None] & wide[None, :]
    values = tl.load(word_table + tl.load(words + row, there, other=0)[:, None] * D + column[None, :], real, other=0.0)
    kind = tl.load(types + row, there & TYPED, other=0)
    values += tl.load(type_table + kind[:, None] * D + column[None, :], real, other=0.0)
    place = tl.load(positions + row, there, other=0)
    values += tl.load(position_table + place[:, None] * D + column[None, :], real, other=0.0)
    values = tl.where(wide[None, :], values - (tl.sum(values, 1) / D)[:, None], 0.0)
    values *= tl.rsqrt(tl.sum(values * values, 1) / D + eps)[:, None]
    at = row[:, None] * D + column[None, :]
    tl.store(normal + at, values.to(normal.dtype.element_ty), real)
    values *= tl.load(weight + column, wide, other=0.0)[None, :]
    values += tl.load(shift + column, wide, other=0.0)[None, :]
    if THRESHOLD > 0:
        values = tl.where(_kept(seed, row, 0, THRESHOLD, D, BLOCK), values * factor, 0.0)
    tl.store(out + at, values.to(out.dtype.element_ty), real)


@triton.jit(do_not_specialize=["rows"])
def embed_backward(
    gradient, normal, weight_sums, shift_sums, stride, OF_WEIGHT: tl.constexpr, OF_SHIFT: tl.constexpr, seed, rows,
    factor, THRESHOLD: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program, column = tl.program_id(0), tl.arange(0, BLOCK)
    start, wide = program * ROWS, column < D
    of_weight, of_shift = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    while start < rows:
        row = start + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & wide[None, :]
        at = row[:, None] * D + column[None, :]
        above = tl.load(gradient + at, real, other=0.0).to(tl.float32)
        if THRESHOLD > 0:
            above = tl.where(_kept(seed, row, 0, THRESHOLD, D, BLOCK), above * factor, 0.0)
        if OF_WEIGHT:
            of_weight += tl.sum(above * tl.load(normal + at, real, other=0.0).to(tl.float32), 0)
        if OF_SHIFT:
            of_shift += tl.sum(above, 0)
        start += tl.num_programs(0) * ROWS
    tl.store(weight_sums + program * stride + column, of_weight, wide & OF_WEIGHT)
    tl.store(shift_sums + program * stride + column, of_shift, wide & OF_SHIFT)


# GELU is x F(x), F the normal distribution; its slope is F + x f. Both are one half and something odd: x p(s), where
# the polynomials p of s = 2 (x / 5.25)^2 - 1 are those of the CPU's kernels (`cpp/layer.cpp`, which says how exact they
# are), at half of the operations that an error function and an exponential take.


@triton.jit
def _distribution(x):
    """F(x) within 5.25 of zero, and there beyond, (R, C) in fp32."""
    x = tl.minimum(tl.maximum(x, -5.25), 5.25)
    s = x * x * (2 / (5.25 * 5.25)) - 1.0
    square = s * s
    # In two chains, which do not wait for each other.
    odd = -5.725195534e-04 * square - 1.295860769e-03
    even = 1.466732040e-03 * square + 1.843585016e-03
    odd = odd * square - 5.150125682e-03
    even = even * square + 9.094821364e-03
    odd = odd * square - 1.294053774e-02
    even = even * square + 1.831551691e-02
    odd = odd * square - 2.499789036e-02
    even = even * square + 3.206625317e-02
    odd = odd * square - 3.976837976e-02
    even = even * square + 4.964376306e-02
    odd = odd * square - 6.712665767e-02
    even = even * square + 1.346593652e-01
    return x * (odd * s + even) + 0.5


@triton.jit
def _slope(x):
    """The slope of GELU within 5.25 of zero, and there beyond, (R, C) in fp32."""
    x = tl.minimum(tl.maximum(x, -5.25), 5.25)
    s = x * x * (2 / (5.25 * 5.25)) - 1.0
    square = s * s
    even = 4.835485441e-03 * square + 7.928340982e-03
    odd = -1.199617879e-02 * square - 8.021666921e-03
    even = even * square + 3.092215996e-02
    odd = odd * square - 5.221856201e-02
    even = even * square + 5.962673670e-02
    odd = odd * square - 6.913152181e-02
    even = even * square + 7.871280780e-02
    odd = odd * square - 7.819053729e-02
    even = even * square + 7.019259872e-02
    odd = odd * square - 6.183931698e-02
    even = even * square + 5.927762689e-02
    odd = odd * square - 6.992462236e-02
    even = even * square + 1.350652111e-01
    return x * (odd * s + even) + 0.5


@triton.jit(do_not_specialize=["rows"])
def gelu_forward(product, bias, out, rows, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = (row < rows)[:, None] & (column < F)[None, :]
    at = row[:, None] * F + column[None, :]
    added = tl.load(bias + column, column < F, other=0.0).to(tl.float32)[None, :]
    x = tl.load(product + at, real, other=0.0).to(tl.float32) + added
    x = tl.where(x < -5.25, 0.0, x * _distribution(x))
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
        below = tl.load(gradient + at, real, other=0.0).to(tl.float32) * _slope(x)
        tl.store(out + at, below.to(out.dtype.element_ty), real)
        if SUMMED:
            total += tl.sum(below, 0)
        start += tl.num_programs(0) * ROWS
    if SUMMED:
        tl.store(sums + program * stride + column, total, column < F)


@triton.jit(do_not_specialize=["first_rows", "second_rows"])
def column_sums(
    first, first_rows, second, second_rows, out, FIRST: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums over the rows of two matrices, (first_rows, FIRST) and (second_rows, SECOND), one behind the other."""
    block = tl.program_id(0)
    matrix, rows, width, start = first, first_rows, FIRST, 0
    if block >= tl.cdiv(FIRST, COLUMNS):
        block -= tl.cdiv(FIRST, COLUMNS)
        matrix, rows, width, start = second, second_rows, SECOND, FIRST
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, rows, ROWS):
        row = begin + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & (column < width)[None, :]
        total += tl.load(matrix + row[:, None] * width + column[None, :], real, other=0.0)
    tl.store(out + start + column, tl.sum(total, 0), column < width)
