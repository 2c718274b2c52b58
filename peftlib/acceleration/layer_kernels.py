"""Triton kernels for what an encoder layer's training step computes between its matrix products.

Shapes: S examples; T rows of tokens; `places`, int32 (S, BLOCK), holds the rows of each example's tokens, then -1.
Width D in H heads of width DH; inner width F. Tensors are row-major. Arithmetic is in fp32; tensors of rows are in the
precision of the products, parameters and their gradients in fp32.

Dropout masks are not stored: backward regenerates them. An element's random word is a hash of its index, the site in
the layer and the call's seed: a Weyl sequence through two rounds of xor, shift and multiply, with the constants of
Wellons' lowbias32 (https://nullprogram.com/blog/2018/07/31/), without its last shift, which the comparison with the
rate does not need. Over four million words, drop rates, correlations between neighbours at distances up to 98,304,
between sites and between seeds, runs of eight and the upper 16 bits are consistent with chance.
"""

# mypy: disallow-untyped-defs=false

from __future__ import annotations

import triton  # type: ignore  # untyped; installed with GPU builds of torch, not with CPU builds
import triton.language as tl  # type: ignore


@triton.jit
def kept(key, row, start, site, THRESHOLD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return dropout's keep mask, (R, BLOCK), for columns from `start` on of rows (R,) of WIDTH, whatever the BLOCK."""
    # Multiply before adding: each element then costs one addition. Lanes past the width have the next row's counters,
    # and are not used.
    row = (row * WIDTH).to(tl.uint32) * 0x9E3779B1 + (key & 0xFFFFFFFF).to(tl.uint32)
    site = (site + tl.zeros((BLOCK,), tl.int32)).to(tl.uint32) * 0x5851F42D
    column = ((start + tl.arange(0, BLOCK)).to(tl.uint32) + site) * 0x9E3779B1
    word = row[:, None] + column[None, :]
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15) ^ (key >> 32).to(tl.uint32)) * 0x846CA68B
    return word >= THRESHOLD


# A vector that is loaded once must reach the lanes of all rows through shared memory, with a barrier for all warps, so
# each lane loads what it needs itself. Reducing a row that spans several warps needs the same barriers, so forward
# gives each row one warp. Backward cannot: every warp would have to write its own row of partial sums.


@triton.jit(do_not_specialize=["site", "rows"])
def norm_forward(
    product, bias, residual, weight, shift, out, normal, rstd, eps, site, seed, rows, factor,
    THRESHOLD: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, column, key = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.load(seed)
    wide = column < D
    real = (row < rows)[:, None] & wide[None, :]
    within = tl.zeros((ROWS, 1), tl.int32) + column[None, :]
    at = row[:, None] * D + within
    values = tl.load(product + at, real, other=0.0).to(tl.float32)
    beside = tl.load(residual + at, real, other=0.0).to(tl.float32)
    values += tl.load(bias + within, real, other=0.0).to(tl.float32)
    if THRESHOLD > 0:
        values = tl.where(kept(key, row, 0, site, THRESHOLD, D, BLOCK), values * factor, 0.0)
    values += beside
    values = tl.where(wide[None, :], values - (tl.sum(values, 1) / D)[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / D + eps)
    values *= inverse[:, None]
    tl.store(normal + at, values.to(normal.dtype.element_ty), real)
    tl.store(rstd + row, inverse, row < rows)
    values *= tl.load(weight + within, real, other=0.0).to(tl.float32)
    values += tl.load(shift + within, real, other=0.0).to(tl.float32)
    tl.store(out + at, values.to(out.dtype.element_ty), real)


@triton.jit
def _both(left, right, other_left, other_right):
    return left + other_left, right + other_right


@triton.jit
def _two(first, second, start, column, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Load rows from `start` on of two tensors (rows, WIDTH), the second one evict-first.

    The loops are memory-bound, so they prefetch the next block before they use the current one.
    """
    row = start + tl.arange(0, ROWS)
    real = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row[:, None] * WIDTH + column[None, :]
    return tl.load(first + at, real, other=0.0), tl.load(second + at, real, other=0.0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["site", "rows"])
def norm_backward(
    gradient, normal, rstd, weight, out, dropped, weight_sums, shift_sums, bias_sums, stride,
    NEEDS_WEIGHT: tl.constexpr, NEEDS_SHIFT: tl.constexpr, NEEDS_BIAS: tl.constexpr, site, seed, rows, factor,
    THRESHOLD: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program, column, key = tl.program_id(0), tl.arange(0, BLOCK), tl.load(seed)
    start, wide = program * ROWS, column < D
    within = tl.zeros((ROWS, 1), tl.int32) + column[None, :]
    gamma = tl.load(weight + within, wide[None, :], other=0.0).to(tl.float32)
    grad_weight, grad_shift = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    grad_bias = tl.zeros((ROWS, BLOCK), tl.float32)
    coming = _two(gradient, normal, start, column, rows, D, ROWS)
    row = start + tl.arange(0, ROWS)
    inverse = tl.load(rstd + row, row < rows, other=0.0)
    while start < rows:
        above, x, scale = coming[0].to(tl.float32), coming[1].to(tl.float32), inverse[:, None]
        row = start + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & wide[None, :]
        at = row[:, None] * D + column[None, :]
        start += tl.num_programs(0) * ROWS
        coming = _two(gradient, normal, start, column, rows, D, ROWS)
        following = start + tl.arange(0, ROWS)
        inverse = tl.load(rstd + following, following < rows, other=0.0)
        if NEEDS_WEIGHT:
            grad_weight += above * x
        if NEEDS_SHIFT:
            grad_shift += above
        above *= gamma
        total, along = tl.reduce((above, above * x), 1, _both)
        below = (above - (total / D)[:, None] - x * (along / D)[:, None]) * scale
        tl.store(out + at, below.to(out.dtype.element_ty), real)
        if THRESHOLD > 0:
            below = tl.where(kept(key, row, 0, site, THRESHOLD, D, BLOCK), below * factor, 0.0)
            tl.store(dropped + at, below.to(dropped.dtype.element_ty), real)
        if NEEDS_BIAS:
            grad_bias += below
    at = program * stride + column
    if NEEDS_WEIGHT:
        tl.store(weight_sums + at, tl.sum(grad_weight, 0), wide)
    if NEEDS_SHIFT:
        tl.store(shift_sums + at, tl.sum(grad_shift, 0), wide)
    if NEEDS_BIAS:
        tl.store(bias_sums + at, tl.sum(grad_bias, 0), wide)


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
        values = tl.where(kept(tl.load(seed), row, 0, 0, THRESHOLD, D, BLOCK), values * factor, 0.0)
    tl.store(out + at, values.to(out.dtype.element_ty), real)


@triton.jit(do_not_specialize=["rows"])
def embed_backward(
    gradient, normal, weight_sums, shift_sums, stride, NEEDS_WEIGHT: tl.constexpr, NEEDS_SHIFT: tl.constexpr, seed,
    rows, factor, THRESHOLD: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program, column = tl.program_id(0), tl.arange(0, BLOCK)
    start, wide = program * ROWS, column < D
    grad_weight, grad_shift = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    while start < rows:
        row = start + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & wide[None, :]
        at = row[:, None] * D + column[None, :]
        above = tl.load(gradient + at, real, other=0.0).to(tl.float32)
        if THRESHOLD > 0:
            above = tl.where(kept(tl.load(seed), row, 0, 0, THRESHOLD, D, BLOCK), above * factor, 0.0)
        if NEEDS_WEIGHT:
            grad_weight += tl.sum(above * tl.load(normal + at, real, other=0.0).to(tl.float32), 0)
        if NEEDS_SHIFT:
            grad_shift += tl.sum(above, 0)
        start += tl.num_programs(0) * ROWS
    tl.store(weight_sums + program * stride + column, grad_weight, wide & NEEDS_WEIGHT)
    tl.store(shift_sums + program * stride + column, grad_shift, wide & NEEDS_SHIFT)


# GELU is x F(x), with F the normal distribution function; its derivative is F + x f. F and the derivative are 1/2 plus
# an odd function x p(s), where the polynomials p of s = 2 (x / 5.25)^2 - 1 are those of the CPU kernels
# (`cpp/layer.cpp` states their accuracy), at half the operations of an error function and an exponential.


@triton.jit
def _distribution(x):
    """Return F(x), with x clamped to [-5.25, 5.25], (R, C) in fp32."""
    x = tl.minimum(tl.maximum(x, -5.25), 5.25)
    s = x * x * (2 / (5.25 * 5.25)) - 1.0
    square = s * s
    # Two independent chains, for instruction-level parallelism.
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
    """Return the derivative of GELU, with x clamped to [-5.25, 5.25], (R, C) in fp32."""
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


# GELU's input is not reused until backward, by when it would have left the cache anyway. Load it evict-first, so that
# what the next product reads stays.


@triton.jit(do_not_specialize=["rows"])
def gelu_forward(product, bias, out, rows, F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = (row < rows)[:, None] & (column < F)[None, :]
    within = tl.zeros((ROWS, 1), tl.int32) + column[None, :]
    at = row[:, None] * F + within
    added = tl.load(bias + within, real, other=0.0).to(tl.float32)
    x = tl.load(product + at, real, other=0.0, eviction_policy="evict_first").to(tl.float32) + added
    x = tl.where(x < -5.25, 0.0, x * _distribution(x))
    tl.store(out + at, x.to(out.dtype.element_ty), real)


@triton.jit(do_not_specialize=["rows"])
def gelu_backward(
    gradient, product, bias, out, sums, stride, rows, SUMMED: tl.constexpr, F: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    program = tl.program_id(0)
    start, column = program * ROWS, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = tl.zeros((ROWS, 1), tl.int32) + column[None, :]
    added = tl.load(bias + within, (column < F)[None, :], other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    coming = _two(gradient, product, start, column, rows, F, ROWS)
    while start < rows:
        above, x = coming[0].to(tl.float32), coming[1].to(tl.float32) + added
        row = start + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & (column < F)[None, :]
        start += tl.num_programs(0) * ROWS
        coming = _two(gradient, product, start, column, rows, F, ROWS)
        below = above * _slope(x)
        tl.store(out + row[:, None] * F + column[None, :], below.to(out.dtype.element_ty), real)
        if SUMMED:
            total += below
    if SUMMED:
        tl.store(sums + program * stride + column, tl.sum(total, 0), column < F)


@triton.jit(do_not_specialize=["first_rows", "second_rows"])
def column_sums(
    first, first_rows, first_width, second, second_rows, second_width, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Sum two matrices, (rows, width) each, over their rows; write the sums of both one after the other."""
    block, blocks = tl.program_id(0), tl.cdiv(first_width, COLUMNS)
    matrix, rows, width, start = first, first_rows, first_width, 0
    if block >= blocks:
        block -= blocks
        matrix, rows, width, start = second, second_rows, second_width, first_width
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, rows, ROWS):
        row = begin + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & (column < width)[None, :]
        total += tl.load(matrix + row[:, None] * width + column[None, :], real, other=0.0)
    tl.store(out + start + column, tl.sum(total, 0), column < width)
