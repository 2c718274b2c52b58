"""An encoder layer with frozen matrices: eight matrix products and as many other kernels per training step.

In torch, such a layer takes some sixty small kernels, most of which read and write all rows once.

Shapes as in `layer_kernels`. Matrices are in the precision of the rows; the vectors are parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from peftlib.acceleration import layer_calls as calls

#: Sites of the layer's dropouts after attention's, which is site 0.
FIRST, SECOND = 1, 2


class Vectors(NamedTuple):
    """A layer's biases and normalisation weights, each (D,), `inner` (F,); or one flag for each of them."""

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


class Sums:
    """Buffers for partial sums of bias and normalisation gradients of several layers: one row per program.

    A single kernel adds up all of them; one kernel per layer takes nearly three times as long.

    Args:
        layers: the vectors of each layer, and which of them need a gradient.
        rows: T, in these layers.
        examples: S.
    """

    def __init__(self, layers: Sequence[tuple[Vectors, Vectors]], rows: int, examples: int) -> None:
        self._needed = [needed for _, needed in layers]
        self._sizes = [
            [len(vector) if need else 0 for vector, need in zip(vectors[3:], needed[3:], strict=True)]
            for vectors, needed in layers
        ]
        # Attention writes one row per example, for all three biases or for none.
        self._attention_sizes = [3 * len(vectors.query) * any(needed[:3]) for vectors, needed in layers]
        like = layers[0][0].query
        self._first = like.new_empty((calls.programs(rows), sum(map(sum, self._sizes))), dtype=torch.float32)
        self._second = like.new_empty((examples, sum(self._attention_sizes)), dtype=torch.float32)

    def by_layer(self) -> list[LayerSums]:
        """Return each layer's columns."""
        first = self._first.split([sum(sizes) for sizes in self._sizes], 1)
        second = self._second.split(self._attention_sizes, 1)
        return [
            LayerSums(columns.split(sizes, 1), attention)
            for columns, attention, sizes in zip(first, second, self._sizes, strict=True)
        ]

    def finish(self) -> list[list[torch.Tensor | None]]:
        """Return each layer's gradients, in the order of `Vectors`; None for those not needed."""
        sums = calls.sums_over_rows(self._first, self._second)
        first, second = sums.split([self._first.size(1), self._second.size(1)])
        pieces = first.split([sum(sizes) for sizes in self._sizes]), second.split(self._attention_sizes)
        found = []
        for others, attention, sizes, needed in zip(*pieces, self._sizes, self._needed, strict=True):
            grads = [*(attention.chunk(3) if len(attention) else [None] * 3), *others.split(sizes)]
            found.append([grad if need else None for grad, need in zip(grads, needed, strict=True)])
        return found


class LayerSums(NamedTuple):
    """A layer's columns in `Sums`: (programs, length) for each vector from `out` on, (S, 3 D) for the first three.

    There are no columns where no gradient is needed.
    """

    vectors: tuple[torch.Tensor, ...]
    attention: torch.Tensor


class WholeLayer:
    """A BERT layer: attention and a GELU feed-forward block, each followed by dropout, residual and normalisation.

    Args:
        call: arguments that its kernels share.
        eps: of the two normalisations.
        biases: of queries, keys and values, (3 D,): copies of the vectors in the precision of the rows.
    """

    def __init__(
        self, call: calls.Call, eps: tuple[float, float], matrices: Matrices, vectors: Vectors, biases: torch.Tensor
    ) -> None:
        self.call, self.eps, self.matrices, self.vectors, self.biases = call, eps, matrices, vectors, biases
        self.trained: list[torch.Tensor] = list(vectors)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Compute the layer on rows (T, D)."""
        self._qkv = self._times("qkv", rows, self.biases)
        self._attended = calls.attend(self.call, self._qkv)
        return self._finish(self._attended.values, rows)

    def backward(self, gradient: torch.Tensor, sums: LayerSums, needs_rows: bool) -> torch.Tensor | None:
        """Return the gradient of the rows, if needed, from the output's; write those of the vectors to `sums`."""
        below, residual = self._finish_backward(gradient, sums.vectors)
        if not needs_rows and not sums.attention.numel():
            return None
        below = calls.attend_backward(self.call, self._back("out", below), self._qkv, self._attended, sums.attention)
        return self._back("qkv", below, residual) if needs_rows else None

    def _times(self, name: str, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply x by one of the matrices and add a bias of the same precision."""
        matrix: torch.Tensor = getattr(self.matrices, name)
        return x @ matrix.t() if bias is None else torch.addmm(bias, x, matrix.t())

    def _back(self, name: str, above: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """Return the gradient of x from the product's, added to `onto`, in place, if given."""
        matrix: torch.Tensor = getattr(self.matrices, name)
        return above @ matrix if onto is None else onto.addmm_(above, matrix)  # addmm would copy `onto` first

    def _finish(self, seen: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Compute what follows attention, from its output and the layer's input, both (T, D)."""
        vectors = self.vectors
        middle, first = calls.norm_forward(
            self.call, FIRST, self._times("out", seen), vectors.out, rows, vectors.weight, vectors.shift, self.eps[0]
        )
        before = self._times("inner", middle)
        product = self._times("outer", calls.gelu_forward(before, vectors.inner))
        result, second = calls.norm_forward(
            self.call, SECOND, product, vectors.outer, middle, vectors.last_weight, vectors.last_shift, self.eps[1]
        )
        self._kept = first, before, second
        return result

    def _finish_backward(
        self, gradient: torch.Tensor, vector_sums: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of the output projection and, by the residual, of the layer's input, both (T, D)."""
        vectors, (first, before, second) = self.vectors, self._kept
        grad_out, grad_weight, grad_shift, grad_inner, grad_outer, grad_last_weight, grad_last_shift = vector_sums
        residual, below = calls.norm_backward(
            self.call, SECOND, gradient, second, vectors.last_weight, grad_last_weight, grad_last_shift, grad_outer
        )
        below = calls.gelu_backward(self._back("outer", below), before, vectors.inner, grad_inner)
        below = self._back("inner", below, residual)
        residual, below = calls.norm_backward(
            self.call, FIRST, below, first, vectors.weight, grad_weight, grad_shift, grad_out
        )
        return below, residual


class LastLayer(WholeLayer):
    """The last BERT layer, computed for the first tokens only, as the head reads no others: rows (T, D) to (S, D).

    The score of a query q and a key W x is (q' W) x, and the weighted sum of values is the value of the weighted sum of
    rows. So keys and values are not computed: one product per example replaces one per token. DeepSeek-V2 (2024,
    section 2.1) absorbs matrices into each other the same way. The key bias shifts all scores of a query alike and
    cancels in softmax: its gradient is zero.
    """

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Compute the first tokens' outputs, (S, D), from rows (T, D)."""
        call, heads, width = self.call, self.call.heads, rows.size(1)
        query_matrix, key_matrix, value_matrix = self.matrices.qkv.view(3, heads, -1, width)
        starts = rows.index_select(0, call.places[:, 0, 0, 0])
        query = torch.addmm(self.biases[:width], starts, query_matrix.view(-1, width).t())
        asked = _per_head(query.view(-1, heads, width // heads), key_matrix)
        mixed, weights = calls.mix(call, asked, rows)
        seen = _per_head(mixed, value_matrix.mT).addcmul_(weights.unsqueeze(2), self.vectors.value.view(heads, -1))
        self._mixing = rows, asked, weights
        return self._finish(seen.flatten(1), starts)

    def backward(self, gradient: torch.Tensor, sums: LayerSums, needs_rows: bool) -> torch.Tensor | None:
        """As in `WholeLayer`, from (S, D) to (T, D)."""
        below, residual = self._finish_backward(gradient, sums.vectors)
        if not needs_rows and not sums.attention.numel():
            return None
        (rows, asked, weights), call, width = self._mixing, self.call, gradient.size(1)
        query_matrix, key_matrix, value_matrix = self.matrices.qkv.view(3, call.heads, -1, width)
        grad_seen = self._back("out", below).view(-1, call.heads, width // call.heads)
        grad_kept = (grad_seen * self.vectors.value.view(call.heads, -1)).sum(2, dtype=torch.float32)
        grad_asked, grad_rows = calls.mix_backward(call, asked, rows, _per_head(grad_seen, value_matrix), grad_kept)
        grad_query = _per_head(grad_asked, key_matrix.mT).flatten(1)
        grad_rows.index_add_(0, call.places[:, 0, 0, 0], residual.addmm_(grad_query, query_matrix.view(-1, width)))
        if sums.attention.numel():
            grad_q, grad_k, grad_v = sums.attention.chunk(3, 1)
            grad_q.copy_(grad_query)
            grad_k.zero_()
            torch.mul(grad_seen, weights.unsqueeze(2), out=grad_v.view(grad_seen.shape))
        return grad_rows if needs_rows else None


def _per_head(vectors: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Multiply vectors (S, H, m) by each head's matrix (H, m, n), without intermediate copies; returns (S, H, n)."""
    out = vectors.new_empty(*vectors.shape[:2], matrices.size(2))
    torch.bmm(vectors.transpose(0, 1), matrices, out=out.transpose(0, 1))
    return out


class Embeddings(torch.autograd.Function):
    """Sum of a token's three frozen embeddings, normalisation and dropout: indices (1, T) to (1, T, D).

    Gradients for the normalisation's weight and shift. Other arguments as in `layer_calls.embed`.
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
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normal, seed = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:4]
        grads = calls.embed_backward(gradient[0].contiguous(), normal, seed, ctx.rate, *needed)
        return None, None, *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None, None


def draw_seeds(count: int, device: torch.device) -> torch.Tensor:
    """Draw dropout seeds of 62 bits on the device, (count, 2); a CUDA graph draws new ones in every replay.

    The second column is padding that aligns the seeds to 16 bytes: Triton would compile all kernels again for unaligned
    ones.
    """
    return torch.randint(0, 2**62, (count, 2), device=device)
