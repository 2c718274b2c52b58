"""BERT's encoder on a CPU without padding: every layer processes real tokens only, in few and large operations.

In transformers' encoder, a tenth of a layer's elements is padding, even in batches of similar lengths, and a training
step takes more than twice as many operations.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from peftlib.acceleration import cpu_calls
from peftlib.acceleration.bert import (
    bert_encoder,
    has_hooks,
    is_key_mask,
    is_plain_encoder,
    is_plain_gelu,
    linears,
    unwrapped,
)
from peftlib.acceleration.cpu_layer import FrozenLayer
from peftlib.acceleration.first_tokens import attend_first
from peftlib.acceleration.frozen_matrices import frozen_matrix
from peftlib.acceleration.layer_parts import Parts, parts_for
from peftlib.acceleration.normalisation import use_kernels
from peftlib.acceleration.packed_linear import FrozenProduct, is_frozen_linear
from peftlib.acceleration.packing import Packing

#: Encoder kwargs that BERT's layers ignore: positions are in the embeddings, and there is no decoding.
_IGNORED_KWARGS = ("position_ids", "use_cache")


def pack_encoder(model: nn.Module) -> bool:
    """Make the encoder of a BERT-like classifier skip padding, and its last layer compute the first token only.

    The head reads no other: `last_hidden_state` has one token. Logits and gradients are the same up to rounding.
    Under autocast, hidden states stay in its precision between layers; normalisation accumulates in fp32. Layers for
    which gradient checkpointing is on are computed twice, as transformers does. Calls that it
    does not support (hooks inside, tensors not on a CPU) go to transformers.

    Returns:
        Whether the model has such an encoder.
    """
    encoder = bert_encoder(model)
    if encoder is None or not is_plain_encoder(encoder.config):
        return False
    cpu_calls.are_there()  # builds the kernels now rather than in the first step
    use_kernels(unwrapped(model).base_model.embeddings.LayerNorm)
    kind: Any = type(encoder)
    encoder.__class__ = kind if isinstance(encoder, _PackedEncoder) else _packed(kind)
    return True


class _PackedEncoder(nn.Module):
    """A mixin that overrides transformers' encoder."""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        encoder: Any = self
        seen = _seen(hidden_states, attention_mask)
        others = [*args, *(value for name, value in kwargs.items() if name not in _IGNORED_KWARGS)]
        has_options = any(value is not None and value is not False for value in others)
        if seen is None or has_options or not _is_unwatched(encoder.layer):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        kind = hidden_states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype
        attention = encoder.layer[0].attention.self
        compute = _recomputed if encoder.training and encoder.layer[0].gradient_checkpointing else _layer
        packing = Packing(seen, attention.num_attention_heads, attention.attention_head_size, dtype)
        parts = parts_for(encoder.layer[0], dtype)
        rows = hidden_states.flatten(0, 1).index_select(0, packing.tokens).to(dtype)
        with torch.autocast(kind, enabled=False):
            for layer in encoder.layer:
                rows = compute(layer, rows, packing, parts, ends=layer is encoder.layer[-1])
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=rows.unsqueeze(1).to(hidden_states.dtype))


@functools.cache
def _packed(kind: type) -> type:
    return type(f"Packed{kind.__name__}", (_PackedEncoder, kind), {"__module__": __name__})


def _seen(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return which positions of (B, W) hold tokens; None if the mask does not say or an example starts with padding."""
    if x.device.type != "cpu":
        return None
    if mask is None:
        return torch.ones(x.shape[:2], dtype=torch.bool)
    if not is_key_mask(mask, x):
        return None
    if mask.size(2) > 1 and mask.stride(2) != 0 and not torch.equal(mask, mask[:, :, :1].expand_as(mask)):
        return None  # every query has a mask of its own
    keys = mask[:, 0, 0].expand(x.size(0), -1)
    if keys.dtype != torch.bool:
        if not bool(((keys == 0) | (keys <= torch.finfo(keys.dtype).min / 2)).all()):
            return None  # added to the scores, but hiding nothing
        keys = keys == 0
    return keys if bool(keys[:, 0].all()) else None


def _is_unwatched(layers: Any) -> bool:
    """Return whether no hook depends on the modules that are bypassed here."""
    return not any(has_hooks(module) for layer in layers for module in _replaced(layer))


def _replaced(layer: Any) -> tuple[nn.Module, ...]:
    """Return the bypassed modules: all but the activation and the Linear layers, which are called if not plain."""
    attention, first, second = layer.attention.self, layer.attention.output, layer.output
    return (
        layer, layer.attention, attention, attention.dropout, first, first.dropout, first.LayerNorm,
        layer.intermediate, second, second.dropout, second.LayerNorm,
    )  # fmt: skip


def _layer(layer: Any, rows: torch.Tensor, packing: Packing, parts: Parts, ends: bool) -> torch.Tensor:
    """Compute a layer, (T, D) to (T, D); the last layer returns each example's first token, (B, D)."""
    attention = layer.attention.self
    if not ends and parts.add_biases and _is_frozen(layer):
        return _frozen_layer(layer, rows, packing)
    p = _rate(attention.dropout)
    if ends:
        starts = rows.index_select(0, packing.first)
        query, query_update = _product(starts, parts, attention.query)
        query = query if query_update is None else (query + query_update).to(rows.dtype)
        if parts.add_biases and _are_frozen(attention.key, attention.value):
            attended = attend_first(query, rows, attention.key, attention.value, packing, p)
        else:  # the products include their biases
            attended = parts.attend(_product(rows, parts, attention.key, attention.value)[0], query, None, packing, p)
        rows = starts
    else:
        seen, bias = _product(rows, parts, attention.query, attention.key, attention.value)
        attended = parts.attend(seen, None, bias, packing, p)
    rows = _finish(layer.attention.output, attended, rows, parts)
    inner = parts.activate(*_product(rows, parts, layer.intermediate.dense), layer.intermediate.intermediate_act_fn)
    return _finish(layer.output, inner, rows, parts)


def _recomputed(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Compute a layer as `_layer` does, and again in the backward pass, with the same dropout."""
    return checkpoint(_layer, *args, **kwargs, use_reentrant=False)


def _is_frozen(layer: Any) -> bool:
    """Return whether all of the layer's matrices are frozen and `FrozenLayer` can compute it."""
    return is_plain_gelu(layer.intermediate.intermediate_act_fn) and _are_frozen(*linears(layer))


def _are_frozen(*modules: nn.Module) -> bool:
    return all(is_frozen_linear(module) and not has_hooks(module) for module in modules)


def _frozen_layer(layer: Any, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
    attention, first, second = layer.attention.self, layer.attention.output, layer.output
    query, key, value, out, inner, outer = linears(layer)
    result: torch.Tensor = FrozenLayer.apply(
        rows, packing, tuple(_rate(block.dropout) for block in (attention, first, second)),
        (first.LayerNorm.eps, second.LayerNorm.eps),
        tuple(frozen_matrix(rows.dtype, *group) for group in ((query, key, value), (out,), (inner,), (outer,))),
        torch.is_grad_enabled(),
        *(vector.float() for vector in (
            query.bias, key.bias, value.bias, out.bias, first.LayerNorm.weight, first.LayerNorm.bias,
            inner.bias, outer.bias, second.LayerNorm.weight, second.LayerNorm.bias,
        )),
    )  # fmt: skip
    return result


def _finish(output: Any, rows: torch.Tensor, residual: torch.Tensor, parts: Parts) -> torch.Tensor:
    """Compute the end of a block: product, dropout, residual and normalisation."""
    return parts.add_norm(*_product(rows, parts, output.dense), residual, _rate(output.dropout), output.LayerNorm)


def _rate(dropout: Any) -> float:
    return dropout.p if dropout.training else 0.0


def _product(rows: torch.Tensor, parts: Parts, *modules: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Apply layers to the same rows; return the outputs, concatenated, and the biases if the parts add them later."""
    if _are_frozen(*modules):
        frozen: Any = modules
        matrix, biases = frozen_matrix(rows.dtype, *frozen), [linear.bias for linear in frozen]
        if parts.add_biases:
            return FrozenProduct.apply(rows, matrix), biases[0] if len(biases) == 1 else torch.cat(biases)
        return FrozenProduct.apply(rows, matrix, *biases), None
    with torch.autocast("cpu", rows.dtype, enabled=rows.dtype.itemsize == 2):
        outputs = [module(rows).to(rows.dtype) for module in modules]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1), None
