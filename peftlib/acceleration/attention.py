"""Attention as a CPU does it fast, without asking a GPU, and no more of the last layer than the head reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftlib.acceleration.bert import bert_encoder, unwrapped
from peftlib.acceleration.dropout import cheap_dropout

#: Options of transformers' attention functions that say again what the mask holds, or nothing about the result.
_IN_THE_MASK = frozenset({
    "is_causal", "sliding_window", "position_ids", "cache_position", "output_attentions", "use_cache",
})  # fmt: skip


def use_eager_attention(model: nn.Module) -> None:
    """Attention as plain products, with the cheap dropout, where the model would use SDPA.

    On a CPU, SDPA with a mask and dropout is the same products, with `bernoulli_`; at a few dozen tokens its
    blocked kernel does not pay either.
    """
    base = unwrapped(model)
    if getattr(base.config, "_attn_implementation", None) == "sdpa":
        base.set_attn_implementation(_ATTENTION)


def always_mask(model: nn.Module) -> None:
    """SDPA with the padding mask, whatever it holds.

    transformers asks the device whether a batch has padding at all, for every batch: the host would wait for it.
    """
    base = unwrapped(model)
    if getattr(base.config, "_attn_implementation", None) == "sdpa":
        base.set_attn_implementation(_MASKED_SDPA)


def finish_first_token_only(model: nn.Module) -> None:
    """Let the last layer end with the first token alone: the head reads no other.

    Behind the last attention, every token goes its own way, so the output projection and the feed-forward block
    (three quarters of a layer's products) are computed for one token instead of all, and our own attention asks
    for that token only. Logits and gradients stay the same; `last_hidden_state` has one token.
    """
    encoder = bert_encoder(model)
    if encoder is not None:
        attention = encoder.layer[-1].attention
        attention.self.asks_for_first_token_only = True
        attention.output.register_forward_pre_hook(keep_first_token)


def keep_first_token(module: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Attention's output and its residual, each of shape (B, tokens, width), cut to (B, 1, width).

    Contiguous: for a product with anything else torch first copies the weight B times.
    """
    return tuple(tensor[:, :1].contiguous() for tensor in inputs)


def _eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention in the signature of transformers' attention functions.

    What adds more to the scores (T5's positions), or shares keys between heads, is left to transformers' SDPA.

    Args:
        query, key, value: shape (B, heads, tokens, width of a head).
        attention_mask: added to the scores, broadcast to (B, heads, tokens, tokens); None for no padding.

    Returns:
        Shape (B, tokens, heads, width of a head), and no weights. Of a module that asks for the first token only,
        every token has the first one's.
    """
    others = {name for name, value in options.items() if value is not None and name not in _IN_THE_MASK}
    if others or key.size(1) != query.size(1):
        return _sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
    tokens = query.size(2)
    if first := getattr(module, "asks_for_first_token_only", False):
        query = query[:, :, :1]
        attention_mask = None if attention_mask is None else attention_mask[:, :, :1]
    scores = torch.matmul(query * (query.size(-1) ** -0.5 if scaling is None else scaling), key.transpose(2, 3))
    if attention_mask is not None:
        # Its least fp32 would become minus infinity in half precision, and a row of those NaN.
        scores = scores + attention_mask.clamp(min=torch.finfo(scores.dtype).min).to(scores.dtype)
    # Without autocast, which would take the scores to fp32 and the weights back: torch's softmax sums in fp32 anyway.
    with torch.autocast(scores.device.type, enabled=False):
        weights = cheap_dropout(nn.functional.softmax(scores, dim=-1), dropout, module.training)
    output = torch.matmul(weights, value).transpose(1, 2)
    return (output.expand(-1, tokens, -1, -1) if first else output.contiguous()), None


def _sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA, for the first token only where the module asks for no more; shapes as above."""
    tokens = query.size(2)
    if first := getattr(module, "asks_for_first_token_only", False):
        query = query[:, :, :1]
        attention_mask = None if attention_mask is None else attention_mask[:, :, :1]
    output: torch.Tensor = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **options)[0]
    return (output.expand(-1, tokens, -1, -1) if first else output), None


def _sdpa_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    mask: torch.Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](
        *args, **{**kwargs, "allow_is_bidirectional_skip": False}
    )
    return mask


_ATTENTION, _MASKED_SDPA = "eager_with_cheap_dropout", "sdpa_always_masked"
ALL_ATTENTION_FUNCTIONS.register(_MASKED_SDPA, _sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(_MASKED_SDPA, _sdpa_mask)
ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _eager_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
