"""BERT's encoder on a GPU over rows of tokens, with frozen matrices: all layers as one autograd function.

Batches have the layout of `data.collation.RowCollator`: (1, T) tokens, and int32 (S, 1, 1, width) in place of a mask.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from peftlib.acceleration.attention import keep_first_token
from peftlib.acceleration.bert import (
    bert_encoder,
    has_hooks,
    has_virtual_tokens,
    is_plain_encoder,
    is_plain_gelu,
    joined,
    linears,
    unwrapped,
)  # fmt: skip
from peftlib.acceleration.packed_linear import is_frozen_linear

if find_spec("triton") is not None:  # installed with GPU builds of torch only
    from peftlib.acceleration.encoder_layer import Embeddings, LastLayer, Matrices, Vectors, WholeLayer, draw_seeds
    from peftlib.acceleration.layer_calls import Call, Rate, Tables
    from peftlib.acceleration.layer_stack import Layers
    from peftlib.acceleration.low_rank_layer import LowRankLayer, Trained, copied_updates

_HEAD_WIDTHS = (32, 64)
#: The highest supported rank of LoRA: matrices of higher ranks need too much of a multiprocessor's shared memory.
MOST_RANK = 64


def take_rows(model: nn.Module, dtype: torch.dtype) -> int | None:
    """Make the encoder of a BERT-like classifier compute batches that are laid out in rows.

    All matrices of its layers must be frozen, with or without LoRA; in layers without LoRA, biases and normalisation
    may be trained. The last layer returns each example's first token only, as the head reads no other. Padded batches
    are computed as before.

    Args:
        model: a transformers model, with or without PEFT's wrapper.
        dtype: of the products and of what is saved for backward; the matrices are cast to it.

    Returns:
        The position index of an example's first token in the model's embeddings; None if the model cannot take rows.
    """
    encoder = bert_encoder(model)
    if (
        find_spec("triton") is None
        or encoder is None
        or has_virtual_tokens(model)
        or not is_plain_encoder(encoder.config)
        or not all(_is_fusible(layer) for layer in encoder.layer)
    ):
        return None
    for layer in encoder.layer:
        bases = [_base(linear) for linear in linears(layer)]
        for linear in bases:
            linear.weight.data = linear.weight.data.to(dtype)
        joined(*bases[:3])
    kind: Any = type(encoder)
    encoder.__class__ = _before(_RowEncoder, kind)
    embeddings: Any = unwrapped(model).base_model.embeddings
    if _are_plain_embeddings(embeddings):
        embeddings.rows_dtype = dtype
        kind = type(embeddings)
        embeddings.__class__ = _before(_RowEmbeddings, kind)
    # RoBERTa's positions start after its padding index.
    counts_from_padding = hasattr(embeddings, "create_position_ids_from_input_ids")
    return embeddings.padding_idx + 1 if counts_from_padding else 0


class _RowEncoder(nn.Module):
    """A mixin that overrides transformers' encoder."""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if attention_mask is None or not _is_in_rows(hidden_states, attention_mask):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        encoder: Any = self
        if not all(_is_fusible(layer) for layer in encoder.layer):
            raise RuntimeError("the encoder was changed after it was told to take rows; give it padded batches")
        dtype = _base(encoder.layer[0].output.dense).weight.dtype
        rows = hidden_states.flatten(0, 1).to(dtype)  # a view: backward of an index would copy the gradient
        seeds = draw_seeds(len(encoder.layer), rows.device).split(1)
        updates = copied_updates([_groups(layer) for layer in encoder.layer], dtype)
        layers = []
        biases = _biases_of_attention(encoder.layer, dtype)
        for layer, seed, beside, bias in zip(encoder.layer, seeds, updates, biases, strict=True):
            attention = layer.attention.self
            dropouts = (attention.dropout, layer.attention.output.dropout, layer.output.dropout)
            call = Call(attention_mask, seed, attention.num_attention_heads, tuple(_rate(one) for one in dropouts))
            layers.append(_prepared(layer, call, beside, bias, ends=layer is encoder.layer[-1]))
        rows = Layers.apply(rows, layers, *(one for layer in layers for one in layer.trained))
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=rows.unsqueeze(1))


def _biases_of_attention(layers: Any, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Copy the biases of queries, keys and values, (3 D,) per layer, to this precision, with a single kernel."""
    biases: list[torch.Tensor] = [_base(linear).bias for layer in layers for linear in linears(layer)[:3]]
    copies = biases[0].new_empty((len(biases), len(biases[0])), dtype=dtype, requires_grad=False)
    with torch.no_grad():
        torch._foreach_copy_(list(copies.unbind()), biases)
    return copies.view(len(layers), -1).unbind()


def _is_in_rows(x: torch.Tensor, mask: Any) -> bool:
    """Return whether these are hidden states (1, T, D) and, in place of a mask, the rows of each example's tokens."""
    return isinstance(mask, torch.Tensor) and mask.dtype == torch.int32 and mask.dim() == 4 and x.size(0) == 1


def _prepared(layer: Any, call: Call, updates: Any, biases: torch.Tensor, ends: bool) -> Any:
    """Return the layer in the form that `Layers` computes."""
    first, second = layer.attention.output, layer.output
    query, key, value, out, inner, outer = (_base(linear) for linear in linears(layer))
    eps = (first.LayerNorm.eps, second.LayerNorm.eps)
    matrices = Matrices(joined(query, key, value), out.weight, inner.weight, outer.weight)
    vectors = Vectors(
        query.bias, key.bias, value.bias, out.bias, first.LayerNorm.weight, first.LayerNorm.bias, inner.bias,
        outer.bias, second.LayerNorm.weight, second.LayerNorm.bias,
    )  # fmt: skip
    if updates is not None:
        return LowRankLayer(call, eps, matrices, vectors, biases, updates, ends)
    return (LastLayer if ends else WholeLayer)(call, eps, matrices, vectors, biases)


def _groups(layer: Any) -> tuple[list[Trained | None], ...] | None:
    """Return LoRA's updates, grouped by shared input, in the order of `linears`; None if there are none at all."""
    updates = [_update(linear) for linear in linears(layer)]
    if all(update is None for update in updates):
        return None
    return updates[:3], *([update] for update in updates[3:])


def _update(linear: Any) -> Trained | None:
    if not hasattr(linear, "lora_A"):
        return None
    (active,) = linear.active_adapters
    dropout = linear.lora_dropout[active]  # an nn.Identity at rate 0
    rate = _rate(dropout) if isinstance(dropout, nn.Dropout) else Rate.of(0.0)
    return Trained(linear.lora_A[active].weight, linear.lora_B[active].weight, linear.scaling[active], rate)


class _RowEmbeddings(nn.Module):
    """A mixin that overrides transformers' embeddings."""

    rows_dtype: torch.dtype

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        embeddings: Any = self
        if not (
            input_ids is not None
            and position_ids is not None  # batches in rows have them, others hardly ever
            and input_ids.size(0) == 1
            and input_ids.shape == position_ids.shape
            and kwargs.get("inputs_embeds") is None
            and _are_plain_embeddings(embeddings)
        ):
            return super().forward(input_ids, token_type_ids, position_ids, *args, **kwargs)
        tables = (embeddings.word_embeddings, embeddings.token_type_embeddings, embeddings.position_embeddings)
        norm = embeddings.LayerNorm
        rows: torch.Tensor = Embeddings.apply(
            (input_ids, token_type_ids, position_ids), Tables(*(table.weight for table in tables)), norm.weight,
            norm.bias, norm.eps, _rate(embeddings.dropout), embeddings.rows_dtype,
        )  # fmt: skip
        return rows


def _are_plain_embeddings(embeddings: Any) -> bool:
    """Return whether these are three frozen tables, normalisation and dropout, without hooks."""
    tables = [getattr(embeddings, f"{name}_embeddings", None) for name in ("word", "token_type", "position")]
    norm = embeddings.LayerNorm
    return (
        all(type(table) is nn.Embedding and not table.weight.requires_grad for table in tables)
        and all(table.max_norm is None for table in tables if table is not None)
        and type(norm) is nn.LayerNorm
        and norm.bias is not None
        and 0 <= embeddings.dropout.p < 1
        and not any(has_hooks(module) for module in embeddings.children())
    )


@functools.cache
def _before(mixin: Any, kind: Any) -> Any:
    """Return a subclass of `kind` in which the mixin comes first; `kind` itself if it has the mixin."""
    if issubclass(kind, mixin):
        return kind
    return type(f"Row{kind.__name__}", (mixin, kind), {"__module__": __name__})


def _rate(dropout: nn.Dropout) -> Rate:
    return Rate.of(dropout.p if dropout.training else 0.0)


def _base(linear: Any) -> nn.Linear:
    """Return the layer itself, or the base layer of LoRA's."""
    base: nn.Linear = getattr(linear, "base_layer", linear)
    return base


def _is_fusible(layer: Any) -> bool:
    """Return whether the layer has plain modules and frozen matrices only, without hooks."""
    attention = layer.attention.self
    matrices, norms = linears(layer), (layer.attention.output.LayerNorm, layer.output.LayerNorm)
    dropouts = (attention.dropout, layer.attention.output.dropout, layer.output.dropout)
    updated = [matrix for matrix in matrices if hasattr(matrix, "lora_A")]
    return (
        all(is_frozen_linear(_base(matrix)) for matrix in matrices)
        and all(type(norm) is nn.LayerNorm and norm.weight is not None and norm.bias is not None for norm in norms)
        and all(0 <= dropout.p < 1 for dropout in dropouts)
        and attention.attention_head_size in _HEAD_WIDTHS
        and attention.all_head_size == _base(matrices[0]).in_features
        and is_plain_gelu(layer.intermediate.intermediate_act_fn)
        and not any(has_hooks(module, keep_first_token) for module in layer.modules())
        and (not updated or _are_plain(updated, layer))
    )


def _are_plain(updated: list[Any], layer: Any) -> bool:
    """Return whether these are basic LoRA, with equal settings for a shared input, and nothing else is trained."""
    from peft.tuners.lora import Linear

    from peftlib.acceleration.low_rank import is_plain_update

    if not all(type(linear) is Linear and is_plain_update(linear) for linear in updated):
        return False
    of_qkv = [update for update in map(_update, linears(layer)[:3]) if update is not None]
    kinds = {(update.a.size(0), update.scaling, update.rate) for update in of_qkv}
    low = all(update.a.size(0) <= MOST_RANK for update in map(_update, updated) if update is not None)
    return (
        low
        and len(kinds) <= 1
        and not any(
            parameter.requires_grad
            for name, parameter in layer.named_parameters()
            if "lora_A." not in name and "lora_B." not in name
        )
    )
