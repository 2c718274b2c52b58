"""Triton kernels for LoRA's updates of products on rows of tokens; dropout and types as in `layer_kernels`.

J updates of rank R are of products of the same x, (T, D): y_j = x W_j' + factor dropout_j(x) A_j' B_j', where A is
(J R, D). The intermediate between A and B is `low`, (T, J R). torch computes the products with B and their gradients.
"""

# mypy: disallow-untyped-defs=false

from __future__ import annotations

import triton  # type: ignore  # untyped; installed with GPU builds of torch, not with CPU builds
import triton.language as tl  # type: ignore

from peftlib.acceleration.layer_kernels import kept


@triton.jit(do_not_specialize=["rows", "site"])
def low_forward(
    x, a, low, seed, rows, factor, site, THRESHOLD: tl.constexpr, J: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute low_j = factor dropout_j(x) A_j'."""
    row, lane, j = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, RANK), tl.program_id(1)
    found = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        real = (row < rows)[:, None] & (column < D)[None, :]
        values = tl.load(x + row[:, None] * D + column[None, :], real, other=0.0)
        if THRESHOLD > 0:
            values = tl.where(kept(tl.load(seed), row, start, site + j, THRESHOLD, D, COLUMNS), values, 0.0)
        there = (column < D)[:, None] & (lane < R)[None, :]
        matrix = tl.load(a + (j * R + lane)[None, :] * D + column[:, None], there, other=0.0)
        found = tl.dot(values, matrix, found, input_precision="ieee")
    place = row[:, None] * (J * R) + (j * R + lane)[None, :]
    tl.store(low + place, (found * factor).to(low.dtype.element_ty), (row < rows)[:, None] & (lane < R)[None, :])


@triton.jit(do_not_specialize=["rows", "site"])
def low_onto(
    low, a, out, seed, rows, factor, site, THRESHOLD: tl.constexpr, J: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add x's gradient to `out`, from the gradient `low`: the sum over j of factor dropout_j(low_j A_j)."""
    row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, RANK)
    start = tl.program_id(1) * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    real = (row < rows)[:, None] & (column < D)[None, :]
    at = row[:, None] * D + column[None, :]
    total = tl.load(out + at, real, other=0.0).to(tl.float32)
    for j in tl.static_range(J):
        there = (row < rows)[:, None] & (lane < R)[None, :]
        values = tl.load(low + row[:, None] * (J * R) + (j * R + lane)[None, :], there, other=0.0)
        within = (lane < R)[:, None] & (column < D)[None, :]
        matrix = tl.load(a + (j * R + lane)[:, None] * D + column[None, :], within, other=0.0)
        below = tl.dot(values, matrix, input_precision="ieee") * factor
        if THRESHOLD > 0:
            below = tl.where(kept(tl.load(seed), row, start, site + j, THRESHOLD, D, COLUMNS), below, 0.0)
        total += below
    tl.store(out + at, total.to(out.dtype.element_ty), real)


@triton.jit(do_not_specialize=["rows", "site"])
def low_inner(
    low, x, sums, seed, rows, factor, site, THRESHOLD: tl.constexpr, J: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute A's gradient, factor low_j' dropout_j(x), as one partial sum per program: `sums` (programs, J R, D)."""
    program, start, j = tl.program_id(0), tl.program_id(1) * COLUMNS, tl.program_id(2)
    lane, column = tl.arange(0, RANK), start + tl.arange(0, COLUMNS)
    found = tl.zeros((RANK, COLUMNS), tl.float32)
    for begin in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = begin + tl.arange(0, ROWS)
        real = (row < rows)[:, None] & (column < D)[None, :]
        values = tl.load(x + row[:, None] * D + column[None, :], real, other=0.0)
        if THRESHOLD > 0:
            values = tl.where(kept(tl.load(seed), row, start, site + j, THRESHOLD, D, COLUMNS), values, 0.0)
        there = (row < rows)[None, :] & (lane < R)[:, None]
        left = tl.load(low + row[None, :] * (J * R) + (j * R + lane)[:, None], there, other=0.0)
        found = tl.dot(left, values, found, input_precision="ieee")
    place = (program * J * R + j * R + lane)[:, None] * D + column[None, :]
    tl.store(sums + place, found * factor, (lane < R)[:, None] & (column < D)[None, :])
