"""An encoder layer whose matrices are frozen, in one function: eight products and as many kernels a training step.

As torch computes it, such a layer takes some sixty small kernels, most of which read and write all rows once.

Shapes as in `layer_kernels`. Matrices are in the precision of the rows, the vectors are parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from peftlib.acceleration import layer_calls as calls

#: Of the layer's dropouts, beside attention's.
FIRST, SECOND = 1, 2


class Vectors(NamedTuple):
    """A layer's biases and normalisation weights, each (D,), or (F,) of `inner`; or, for each, its gradient."""

    query: Any
    key: Any
    value: Any
    out: Any
    weight: Any
    shift: Any
    inner: Any
    outer: Any
    last_weight: Any
    last_shift: Any


class Matrices(NamedTuple):
    """A layer's frozen matrices: (3 D, D), (D, D), (F, D), (D, F)."""

    qkv: torch.Tensor
    out: torch.Tensor
    inner: torch.Tensor
    outer: torch.Tensor


class Shared(NamedTuple):
    """What a layer computes with beside numbers: see `layer_calls.Call`; `eps` of its two normalisations."""

    call: calls.Call
    eps: tuple[float, float]


class Embeddings(torch.autograd.Function):
    """A token's three embeddings, frozen, their sum's normalisation and dropout: (1, T) each to (1, T, D).

    Gradients for the normalisation's weight and shift. Other arguments as of `layer_calls.embed`.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor], tables: calls.Tables,
        weight: torch.Tensor, shift: torch.Tensor, eps: float, rate: calls.Rate, dtype: torch.dtype,
    ) -> torch.Tensor:  # fmt: skip
        seed = draw_seeds(1, weight.device)
        words, types, positions = tokens
        flat = words.flatten(), None if types is None else types.flatten(), positions.flatten()
        rows, normal = calls.embed(flat, tables, weight, shift, eps, seed, rate, dtype)
        ctx.save_for_backward(normal, seed)
        ctx.rate = rate
        return rows.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normal, seed = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:4]
        found = calls.embed_backward(gradient[0].contiguous(), normal, seed, ctx.rate, *needed)
        return None, None, *(one if need else None for one, need in zip(found, needed, strict=True)), None, None, None


def draw_seeds(count: int, device: torch.device) -> torch.Tensor:
    """Of dropout, 62 bits each, (count, 2), drawn on the device: in a CUDA graph, anew for every replay.

    The second of each pair only puts the first ones at multiples of 16 bytes: Triton would compile all kernels once
    more for others.
    """
    return torch.randint(0, 2**62, (count, 2), device=device)


class WholeLayer(torch.autograd.Function):
    """A BERT layer: attention and a GELU network, each with dropout, residual and normalisation behind it.

    Rows (T, D) to rows (T, D). Gradients for rows and vectors.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, shared: Shared, matrices: Matrices, *given: torch.Tensor) -> torch.Tensor:
        vectors, (call, eps) = Vectors(*given), shared
        with torch.autocast(rows.device.type, enabled=False):
            qkv = rows @ matrices.qkv.t()
            seen = calls.attend(call, qkv, vectors[:3])
            result, kept = _finish(call, seen, rows, matrices, vectors, eps)
        ctx.call, ctx.matrices = call, matrices
        ctx.save_for_backward(qkv, *kept, *given)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, *saved = ctx.saved_tensors
        kept, vectors, call, matrices = saved[:5], Vectors(*saved[5:]), ctx.call, ctx.matrices
        of_rows, _, _, *needed = ctx.needs_input_grad
        with torch.autocast(gradient.device.type, enabled=False):
            below, residual, sums = _finish_backward(call, gradient, kept, matrices, vectors, Vectors(*needed))
            for_qkv = sums.buffer.new_empty((0, 0))
            if of_rows or any(needed[:3]):
                below, for_qkv = calls.attend_backward(
                    call, below @ matrices.out, qkv, vectors[:3], summed=any(needed[:3])
                )
            for_rows = residual.addmm_(below, matrices.qkv) if of_rows else None
            of_vectors = sums.finish(for_qkv, Vectors(*needed))
        return for_rows, None, None, *of_vectors


class LastLayer(torch.autograd.Function):
    """A BERT layer of which the head reads the first tokens alone: rows (T, D) to (S, D).

    A query q meets a key W x as q' W meets x, and the sum of values is the value of the sum: the rows themselves are
    weighed, one product for each example in place of one for each of its tokens. DeepSeek-V2 (2024, section 2.1)
    absorbs its matrices into each other so. The keys' bias shifts all scores of a query alike, which softmax does not
    see: its gradient is zero.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, shared: Shared, matrices: Matrices, *given: torch.Tensor) -> torch.Tensor:
        vectors, (call, eps) = Vectors(*given), shared
        heads, width = call.heads, rows.size(1)
        with torch.autocast(rows.device.type, enabled=False):
            of_query, of_key, of_value = matrices.qkv.view(3, heads, -1, width)
            starts = rows.index_select(0, call.places[:, 0, 0, 0])
            query = torch.addmm(vectors.query.to(rows.dtype), starts, of_query.view(-1, width).t())
            asked = _of_each_head(query.view(-1, heads, width // heads), of_key)
            mixed, weights = calls.mix(call, asked, rows)
            seen = _of_each_head(mixed, of_value.mT).addcmul_(weights.unsqueeze(2), vectors.value.view(heads, -1))
            result, kept = _finish(call, seen.flatten(1), starts, matrices, vectors, eps)
        ctx.call, ctx.matrices = call, matrices
        ctx.save_for_backward(rows, asked, weights, *kept, *given)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, asked, weights, *saved = ctx.saved_tensors
        kept, vectors, call, matrices = saved[:5], Vectors(*saved[5:]), ctx.call, ctx.matrices
        of_rows, _, _, *needed = ctx.needs_input_grad
        heads, width = call.heads, rows.size(1)
        of_query, of_key, of_value = matrices.qkv.view(3, heads, -1, width)
        with torch.autocast(gradient.device.type, enabled=False):
            below, residual, sums = _finish_backward(call, gradient, kept, matrices, vectors, Vectors(*needed))
            of_seen = (below @ matrices.out).view(-1, heads, width // heads)
            of_weights = (of_seen * vectors.value.view(heads, -1)).sum(2, dtype=torch.float32)
            of_asked, for_rows = calls.mix_backward(call, asked, rows, _of_each_head(of_seen, of_value), of_weights)
            for_query = _of_each_head(of_asked, of_key.mT).flatten(1)
            of_starts = residual.addmm_(for_query, of_query.view(-1, width))
            for_rows.index_add_(0, call.places[:, 0, 0, 0], of_starts)
            for_qkv = weights.new_zeros(len(weights), 3 * width if any(needed[:3]) else 0)
            if any(needed[:3]):
                for_qkv[:, :width] = for_query
                torch.mul(of_seen, weights.unsqueeze(2), out=for_qkv[:, 2 * width :].view(of_seen.shape))
            of_vectors = sums.finish(for_qkv, Vectors(*needed))
        return for_rows if of_rows else None, None, None, *of_vectors


def _of_each_head(vectors: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Vectors (S, H, any) times each head's matrix (H, any, other): (S, H, other), without copies on the way."""
    out = vectors.new_empty(*vectors.shape[:2], matrices.size(2))
    torch.bmm(vectors.transpose(0, 1), matrices, out=out.transpose(0, 1))
    return out


def _finish(
    call: calls.Call, seen: torch.Tensor, rows: torch.Tensor, matrices: Matrices, vectors: Vectors,
    eps: tuple[float, float],
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # fmt: skip
    """What follows attention, of its result and the layer's input, both (T, D); and what backward needs of it."""
    middle, normal, rstd = calls.norm_forward(
        call, FIRST, seen @ matrices.out.t(), vectors.out, rows, vectors.weight, vectors.shift, eps[0]
    )
    before = middle @ matrices.inner.t()
    product = calls.gelu_forward(before, vectors.inner) @ matrices.outer.t()
    result, last_normal, last_rstd = calls.norm_forward(
        call, SECOND, product, vectors.outer, middle, vectors.last_weight, vectors.last_shift, eps[1]
    )
    return result, (normal, rstd, before, last_normal, last_rstd)


class _Sums(NamedTuple):
    """A row for each program's sums, with columns for each trained vector: one kernel then finishes them all."""

    buffer: torch.Tensor
    sizes: list[int]

    @classmethod
    def of(cls, vectors: Vectors, needed: Vectors, rows: torch.Tensor) -> _Sums:
        sizes = [len(vector) if need else 0 for vector, need in zip(vectors[3:], needed[3:], strict=True)]
        return cls(rows.new_empty((calls.programs(rows.size(0)), sum(sizes)), dtype=torch.float32), sizes)

    def finish(self, for_qkv: torch.Tensor, needed: Vectors) -> Vectors:
        """Gradients of what is trained; `for_qkv`: of query, key and value, (any, 3 D), (any, 0) if none of them is."""
        width = for_qkv.size(1) // 3
        found = calls.sums_over_rows(self.buffer, for_qkv).split([*self.sizes, *[width] * 3])
        return Vectors(*(one if need else None for one, need in zip(found[7:] + found[:7], needed, strict=True)))


def _finish_backward(
    call: calls.Call, gradient: torch.Tensor, kept: Any, matrices: Matrices, vectors: Vectors, needed: Vectors
) -> tuple[torch.Tensor, torch.Tensor, _Sums]:
    """Gradients of the product that follows attention and of the layer's input, (T, D); the vectors' sums so far."""
    normal, rstd, before, last_normal, last_rstd = kept
    sums = _Sums.of(vectors, needed, gradient)
    for_out, for_weight, for_shift, for_inner, for_outer, for_last_weight, for_last_shift = sums.buffer.split(
        sums.sizes, 1
    )
    residual, below = calls.norm_backward(
        call, SECOND, gradient.contiguous(), last_normal, last_rstd, vectors.last_weight, for_last_weight,
        for_last_shift, for_outer,
    )  # fmt: skip
    below = calls.gelu_backward(below @ matrices.outer, before, vectors.inner, for_inner)
    below = residual.addmm_(below, matrices.inner)  # in place: with addmm, torch first copies what is added
    residual, below = calls.norm_backward(
        call, FIRST, below, normal, rstd, vectors.weight, for_weight, for_shift, for_out
    )
    return below, residual, sums
