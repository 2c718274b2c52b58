"""BERT's encoder on a CPU without padding: every layer works on the tokens that there are, in few and large operations.

As transformers computes it, a tenth of a layer's numbers is padding, even among sentences of similar lengths, and a
training step takes more than twice as many operations.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from peftlib.acceleration.bert import bert_encoder, has_hooks, is_frozen_linear, is_key_mask, is_plain_encoder, joined
from peftlib.acceleration.dropout import drawn_mask, masked
from peftlib.acceleration.packing import Packing


def pack_encoder(model: nn.Module) -> bool:
    """Let the encoder of a BERT-like classifier compute without padding, and its last layer the first token only.

    The head reads no other: `last_hidden_state` has one token. Logits and gradients are the same up to rounding.
    Under autocast, what goes from layer to layer stays in its precision; sums inside of normalisation are fp32.
    What it cannot compute (hooks inside, tensors elsewhere than on a CPU) is left to transformers.

    Returns:
        Whether this model has such an encoder.
    """
    encoder = bert_encoder(model)
    if encoder is None or not is_plain_encoder(encoder.config):
        return False
    kind: Any = type(encoder)
    encoder.__class__ = kind if isinstance(encoder, _PackedEncoder) else _packed(kind)
    return True


class _PackedEncoder(nn.Module):
    """A mixin in front of transformers' encoder."""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        encoder: Any = self
        seen = _seen(hidden_states, attention_mask)
        given = [*args, kwargs.get("encoder_hidden_states"), kwargs.get("past_key_values")]
        if seen is None or any(one is not None for one in given) or not _is_unwatched(encoder.layer):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        kind = hidden_states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype
        attention = encoder.layer[0].attention.self
        packing = Packing(seen, attention.num_attention_heads, attention.attention_head_size, dtype)
        rows = hidden_states.flatten(0, 1).index_select(0, packing.tokens).to(dtype)
        with torch.autocast(kind, enabled=False):
            for layer in encoder.layer:
                rows = _layer(layer, rows, packing, ends=layer is encoder.layer[-1])
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=rows.unsqueeze(1).to(hidden_states.dtype))


@functools.cache
def _packed(kind: type) -> type:
    return type(f"Packed{kind.__name__}", (_PackedEncoder, kind), {"__module__": __name__})


def _seen(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """Which places of (B, W) hold a token, if that is to be told from the mask and each example has a first one."""
    if x.device.type != "cpu":
        return None
    if mask is None:
        return torch.ones(x.shape[:2], dtype=torch.bool)
    if not is_key_mask(mask, x):
        return None
    keys = mask[:, 0, 0].expand(x.size(0), -1)
    keys = keys if keys.dtype == torch.bool else keys >= 0
    return keys if bool(keys[:, 0].all()) else None


def _is_unwatched(layers: Any) -> bool:
    """Nobody watches, or changes, what is done here in place of the modules."""
    return not any(
        getattr(layer, "gradient_checkpointing", False) or any(has_hooks(module) for module in _replaced(layer))
        for layer in layers
    )


def _replaced(layer: Any) -> tuple[nn.Module, ...]:
    """All modules but the activation and the Linear layers, which are called where they are special."""
    attention, first, second = layer.attention.self, layer.attention.output, layer.output
    return (
        layer, layer.attention, attention, attention.dropout, first, first.dropout, first.LayerNorm,
        layer.intermediate, second, second.dropout, second.LayerNorm,
    )  # fmt: skip


def _layer(layer: Any, rows: torch.Tensor, packing: Packing, ends: bool) -> torch.Tensor:
    """(T, D) to (T, D); of the last layer to (B, D), the first token of each example."""
    attention = layer.attention.self
    if ends:
        starts = rows.index_select(0, packing.first)
        query, seen = _product(starts, attention.query), _product(rows, attention.key, attention.value)
        rows = starts
    else:
        query, seen = None, _product(rows, attention.query, attention.key, attention.value)
    attended = _Attention.apply(seen, query, packing, _rate(attention.dropout))
    rows = _finish(layer.attention.output, attended, rows)
    inner = layer.intermediate.intermediate_act_fn(_product(rows, layer.intermediate.dense))
    return _finish(layer.output, inner, rows)


def _finish(output: Any, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """A block's end: its product, dropout, residual and normalisation."""
    norm, product = output.LayerNorm, _product(rows, output.dense)
    result: torch.Tensor = _DropoutAddNorm.apply(
        product, residual, _rate(output.dropout), norm.weight, norm.bias, norm.eps
    )
    return result


def _rate(dropout: Any) -> float:
    return dropout.p if dropout.training else 0.0


def _product(rows: torch.Tensor, *modules: nn.Module) -> torch.Tensor:
    """What these layers make of the same rows, side by side."""
    if all(is_frozen_linear(module) for module in modules) and not any(has_hooks(module) for module in modules):
        frozen: Any = modules
        weight = frozen[0].weight if len(frozen) == 1 else joined(*frozen)
        output: torch.Tensor = _FrozenLinear.apply(rows, weight, *(linear.bias for linear in frozen))
        return output
    with torch.autocast("cpu", rows.dtype, enabled=rows.dtype.itemsize == 2):
        outputs = [module(rows).to(rows.dtype) for module in modules]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


class _FrozenLinear(torch.autograd.Function):
    """x W' + biases, the latter one behind the other. Gradients for x, (T, in), and each bias."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, *biases: torch.Tensor) -> torch.Tensor:
        bias = biases[0] if len(biases) == 1 else torch.cat(biases)
        ctx.weight = weight = weight.to(x.dtype)
        ctx.sizes, ctx.of_biases = [len(one) for one in biases], bias.dtype
        return torch.addmm(bias.to(x.dtype), x, weight.t())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_x, _, *needed = ctx.needs_input_grad
        for_biases: list[torch.Tensor | None] = [None] * len(needed)
        if any(needed):
            sums = gradient.sum(0).to(ctx.of_biases).split(ctx.sizes)
            for_biases = [one if need else None for one, need in zip(sums, needed, strict=True)]
        return gradient @ ctx.weight if of_x else None, None, *for_biases


class _Attention(torch.autograd.Function):
    """Scaled dot-product attention of packed queries, keys and values.

    Shapes: rows (T, 3 D) to (T, D); or, with queries (B, D) of the first tokens apart, rows (T, 2 D) to (B, D).
    p: of dropout on the weights.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, query: torch.Tensor | None, packing: Packing, p: float) -> torch.Tensor:
        heads = packing.to_heads(rows)
        key, value = heads[-2], heads[-1]
        queries = heads[0] if query is None else query.view(len(key), 1, -1)
        scale = packing.head_width**-0.5
        bias = packing.bias.expand(-1, queries.size(1), -1)
        weights = torch.baddbmm(bias, queries, key.mT, alpha=scale).softmax(-1, _wide(rows.dtype))
        mask, ctx.factor = drawn_mask(weights, p)
        kept = masked(weights.to(rows.dtype), mask, ctx.factor)
        output = torch.bmm(kept, value)
        ctx.packing, ctx.scale = packing, scale
        ctx.save_for_backward(heads, query, weights, mask, kept)
        return packing.from_heads(output.unsqueeze(0)) if query is None else output.view(query.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        heads, query, weights, mask, kept = ctx.saved_tensors
        packing: Packing = ctx.packing
        key, value = heads[-2], heads[-1]
        queries = heads[0] if query is None else query.view(len(key), 1, -1)
        above = packing.to_heads(gradient)[0] if query is None else gradient.reshape(queries.shape)
        of_heads = torch.empty_like(heads)
        of_weights = masked(torch.bmm(above, value.mT), mask, ctx.factor)
        of_scores = torch._softmax_backward_data(of_weights.to(weights.dtype), weights, -1, weights.dtype).to(key.dtype)
        of_query = of_heads[0] if query is None else torch.empty_like(queries)
        for left, right, scale, out in (
            (of_scores, key, ctx.scale, of_query),
            (of_scores.mT, queries, ctx.scale, of_heads[-2]),
            (kept.mT, above, 1, of_heads[-1]),
        ):
            torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)
        of_rows = packing.from_heads(of_heads)
        of_rows[packing.real :].zero_()
        return of_rows, None if query is None else of_query.view(query.shape), None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Of the softmax: fp32 at least. In half precision torch takes four times as long for all but whole vectors."""
    return torch.promote_types(dtype, torch.float32)


class _DropoutAddNorm(torch.autograd.Function):
    """LayerNorm(residual + dropout(product)), both (T, D). Gradients for both, for weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, product: torch.Tensor, residual: torch.Tensor, p: float, weight: torch.Tensor, bias: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:  # fmt: skip
        mask, ctx.factor = drawn_mask(product, p)
        total = torch.add(residual, masked(product, mask), alpha=ctx.factor)
        output, mean, rstd = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        ctx.save_for_backward(total, mask, mean, rstd, weight, bias)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total, mask, mean, rstd, weight, bias = ctx.saved_tensors
        needed = [True, *ctx.needs_input_grad[3:5]]
        of_total, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(), total, weight.shape, mean, rstd, weight, bias, needed
        )
        return masked(of_total, mask, ctx.factor), of_total, None, of_weight, of_bias, None
