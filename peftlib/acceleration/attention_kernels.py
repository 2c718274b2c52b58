"""Triton kernels for an encoder layer's attention on rows of tokens; shapes as in `layer_kernels`."""

# mypy: disallow-untyped-defs=false

from __future__ import annotations

import triton  # type: ignore  # untyped; installed with GPU builds of torch, not with CPU builds
import triton.language as tl  # type: ignore

from peftlib.acceleration.layer_kernels import kept


@triton.jit
def _head(qkv, at, head, PART: tl.constexpr, D: tl.constexpr, DH: tl.constexpr):
    """Load one head's queries, keys or values (PART 0, 1, 2) of rows `at`: (BLOCK, DH), zeros where `at` is -1."""
    lane = tl.arange(0, DH)
    real = (at >= 0)[:, None]
    return tl.load(qkv + at[:, None] * (3 * D) + (PART * D + head * DH + lane)[None, :], real, other=0.0)


@triton.jit
def _scaled(q, k, scale, real):
    """Return scores (Q, KEYS), fp32, as exponents of two; -inf for padding, where `real` (KEYS,) is false."""
    return _exponents(tl.dot(q, tl.trans(k), input_precision="ieee"), scale, real)


@triton.jit
def _exponents(scores, scale, real):
    return tl.where(real[None, :], scores * (scale * 1.4426950408889634), float("-inf"))


@triton.jit
def _softmax(scores, scale, real):
    """Return attention weights before dropout, fp32, from scores (Q, BLOCK); zero where `real` (BLOCK,) is false."""
    scores = _exponents(scores, scale, real)
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return weights * (1.0 / tl.sum(weights, 1))[:, None]


@triton.jit
def attention_forward(
    qkv, out, logs, places, seed, scale, factor, THRESHOLD: tl.constexpr, H: tl.constexpr, DH: tl.constexpr,
    BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    program, token, word = tl.program_id(0), tl.arange(0, BLOCK), tl.load(seed)
    example, head = program // H, program % H
    at = tl.load(places + example * BLOCK + token)
    q = _head(qkv, at, head, 0, H * DH, DH)
    if KEYS == BLOCK:
        k, v = _head(qkv, at, head, 1, H * DH, DH), _head(qkv, at, head, 2, H * DH, DH)
        scores = _scaled(q, k, scale, at >= 0)
        row_max = tl.max(scores, 1)
        weights = tl.exp2(scores - row_max[:, None])
        total = tl.sum(weights, 1)
        weights *= (1.0 / total)[:, None]
        if THRESHOLD > 0:
            stays = kept(word, program * 128 + token, 0, 0, THRESHOLD, 128, BLOCK)
            weights = tl.where(stays, weights * factor, 0.0)
        values = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    else:
        # Online softmax over blocks of keys: what was summed is rescaled when a larger score appears (Dao, 2023,
        # https://arxiv.org/abs/2307.08691, section 2.3.1).
        row_max, total = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
        values = tl.zeros((BLOCK, DH), tl.float32)
        for start in tl.range(0, tl.sum((at >= 0).to(tl.int32), 0), KEYS, num_stages=1):
            at_key = tl.load(places + example * BLOCK + start + tl.arange(0, KEYS))
            k, v = _head(qkv, at_key, head, 1, H * DH, DH), _head(qkv, at_key, head, 2, H * DH, DH)
            scores = _scaled(q, k, scale, at_key >= 0)
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            weights, rescale = tl.exp2(scores - new_max[:, None]), tl.exp2(row_max - new_max)
            total = total * rescale + tl.sum(weights, 1)
            if THRESHOLD > 0:
                stays = kept(word, program * 128 + token, start, 0, THRESHOLD, 128, KEYS)
                weights = tl.where(stays, weights * factor, 0.0)
            values = tl.dot(weights.to(v.dtype), v, values * rescale[:, None], input_precision="ieee")
            row_max = new_max
        values *= (1.0 / total)[:, None]
    tl.store(logs + program * BLOCK + token, row_max + tl.log2(total))
    place = at[:, None] * (H * DH) + (head * DH + tl.arange(0, DH))[None, :]
    tl.store(out + place, values.to(q.dtype), (at >= 0)[:, None])


@triton.jit
def _backward_of_keys(
    qkv, out, q, above, log, common, at, start, program, head, word, scale, factor, THRESHOLD: tl.constexpr,
    H: tl.constexpr, DH: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Store the gradients of a block of keys, in rows `at` (KEYS,), and of their values.

    `common` (BLOCK,) is the term that softmax's backward subtracts: the sum of the weights times their gradients. If
    the block holds all keys, it is computed here and the argument is ignored.

    Returns:
        The block's contribution to the queries' gradient, (BLOCK, DH), and the sum of the values' gradients, (DH,).
    """
    k = _head(qkv, at, head, 1, H * DH, DH)
    v = _head(qkv, at, head, 2, H * DH, DH)
    weights = tl.exp2(_scaled(q, k, scale, at >= 0) - log[:, None])
    dropped = weights
    grad_weights = tl.dot(above, tl.trans(v), input_precision="ieee")
    if THRESHOLD > 0:
        token = program * 128 + tl.arange(0, BLOCK)
        stays = kept(word, token, start, 0, THRESHOLD, 128, KEYS)
        dropped = tl.where(stays, weights * factor, 0.0)
        grad_weights = tl.where(stays, grad_weights * factor, 0.0)
    grad_v = tl.dot(tl.trans(dropped.to(v.dtype)), above, input_precision="ieee")
    if KEYS == BLOCK:
        common = tl.sum(weights * grad_weights, 1)
    grad_scores = (weights * (grad_weights - common[:, None]) * scale).to(q.dtype)
    grad_q = tl.dot(grad_scores, k, input_precision="ieee")
    grad_k = tl.dot(tl.trans(grad_scores), q, input_precision="ieee")
    place = out + at[:, None] * (3 * H * DH) + (head * DH + tl.arange(0, DH))[None, :]
    tl.store(place + H * DH, grad_k.to(q.dtype), (at >= 0)[:, None])
    tl.store(place + 2 * H * DH, grad_v.to(q.dtype), (at >= 0)[:, None])
    return grad_q, tl.sum(grad_v, 0)  # padding adds zeros: its weights and upstream gradients are zero


@triton.jit
def attention_backward(
    qkv, seen, logs, out, gradient, sums, stride, places, seed, scale, factor, THRESHOLD: tl.constexpr,
    SUMMED: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    program, token, lane = tl.program_id(0), tl.arange(0, BLOCK), tl.arange(0, DH)
    example, head, word = program // H, program % H, tl.load(seed)
    at = tl.load(places + example * BLOCK + token)
    real, column = (at >= 0)[:, None], (head * DH + lane)[None, :]
    row = at[:, None] * (H * DH) + column
    q = _head(qkv, at, head, 0, H * DH, DH)
    above = tl.load(gradient + row, real, other=0.0)
    log = tl.load(logs + program * BLOCK + token)
    if KEYS == BLOCK:
        grad_q, grad_v_sum = _backward_of_keys(
            qkv, out, q, above, log, log, at, 0, program, head, word, scale, factor, THRESHOLD, H, DH, BLOCK, KEYS
        )
    else:
        # No block of keys sees the whole sum, which equals the sum of the output times its gradient (Dao, 2023,
        # https://arxiv.org/abs/2307.08691, section 3.1).
        common = tl.sum(above.to(tl.float32) * tl.load(seen + row, real, other=0.0).to(tl.float32), 1)
        grad_q, grad_v_sum = tl.zeros((BLOCK, DH), tl.float32), tl.zeros((DH,), tl.float32)
        for start in tl.range(0, tl.sum((at >= 0).to(tl.int32), 0), KEYS, num_stages=1):
            at_key = tl.load(places + example * BLOCK + start + tl.arange(0, KEYS))
            more, values = _backward_of_keys(
                qkv, out, q, above, log, common, at_key, start, program, head, word, scale, factor, THRESHOLD, H, DH,
                BLOCK, KEYS,
            )  # fmt: skip
            grad_q += more
            grad_v_sum += values
    tl.store(out + at[:, None] * (3 * H * DH) + column, grad_q.to(q.dtype), real)
    if SUMMED:
        place = sums + example * stride + head * DH + lane
        tl.store(place, tl.sum(grad_q, 0))
        tl.store(place + H * DH, tl.zeros((DH,), tl.float32))  # the key bias cancels in softmax
        tl.store(place + 2 * H * DH, grad_v_sum)


@triton.jit
def _scores(left, rows, left_base, left_real, at, D: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
            CHUNK: tl.constexpr):  # fmt: skip
    """Return vectors (HEADS, D) times an example's rows (BLOCK, D), fp32 (HEADS, BLOCK), CHUNK columns at a time."""
    found = tl.zeros((HEADS, BLOCK), tl.float32)
    for start in range(0, D, CHUNK):
        column = start + tl.arange(0, CHUNK)
        wide = (column < D)[None, :]
        x = tl.load(rows + at[:, None] * D + column[None, :], (at >= 0)[:, None] & wide, other=0.0)
        vectors = tl.load(left + left_base[:, None] * D + column[None, :], left_real[:, None] & wide, other=0.0)
        found = tl.dot(vectors, tl.trans(x), found, input_precision="ieee")
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
        weights = tl.where(kept(tl.load(seed), base, 0, 0, THRESHOLD, 128, BLOCK), weights * factor, 0.0)
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
    asked, rows, gradient, grad_kept, grad_asked, grad_rows, places, seed, scale, factor, THRESHOLD: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    example, token, head = tl.program_id(0), tl.arange(0, BLOCK), tl.arange(0, HEADS)
    at, base = tl.load(places + example * BLOCK + token), example * H + head
    weights = _softmax(_scores(asked, rows, base, head < H, at, D, HEADS, BLOCK, CHUNK), scale, at >= 0)
    grad_weights = _scores(gradient, rows, base, head < H, at, D, HEADS, BLOCK, CHUNK)
    grad_weights += tl.load(grad_kept + base, head < H, other=0.0)[:, None]
    dropped = weights
    if THRESHOLD > 0:
        stays = kept(tl.load(seed), base, 0, 0, THRESHOLD, 128, BLOCK)
        dropped = tl.where(stays, weights * factor, 0.0)
        grad_weights = tl.where(stays, grad_weights * factor, 0.0)
    grad_scores = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None]) * scale
    grad_scores, dropped = grad_scores.to(rows.dtype.element_ty), dropped.to(rows.dtype.element_ty)
    for start in range(0, D, CHUNK):
        column = start + tl.arange(0, CHUNK)
        wide = (column < D)[None, :]
        place, real = at[:, None] * D + column[None, :], (at >= 0)[:, None] & wide
        x = tl.load(rows + place, real, other=0.0)
        vector, there = base[:, None] * D + column[None, :], (head < H)[:, None] & wide
        tl.store(grad_asked + vector, tl.dot(grad_scores, x, input_precision="ieee").to(x.dtype), there)
        query = tl.load(asked + vector, there, other=0.0)
        above = tl.load(gradient + vector, there, other=0.0)
        below = tl.dot(tl.trans(grad_scores), query, input_precision="ieee")
        below = tl.dot(tl.trans(dropped), above, below, input_precision="ieee")
        tl.store(grad_rows + place, below.to(x.dtype), real)
