"""Faster attention: plain products on a CPU, no synchronisation on a GPU, and a last layer of the first token only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftlib.acceleration.bert import bert_encoder, unwrapped
from peftlib.acceleration.dropout import cheap_dropout

#: Options of transformers' attention functions that the mask already covers, or that do not affect the result.
_IN_THE_MASK = frozenset({
    "is_causal", "sliding_window", "position_ids", "cache_position", "output_attentions", "use_cache",
})  # fmt: skip


def use_eager_attention(model: nn.Module) -> None:
    """Replace SDPA by plain matrix products with cheap dropout.

    On a CPU, SDPA with a mask and dropout computes the same products, with `bernoulli_`; its blocked kernel does not
    pay at a few dozen tokens either.
    """
    base = unwrapped(model)
    if getattr(base.config, "_attn_implementation", None) == "sdpa":
        base.set_attn_implementation(_ATTENTION)


def always_mask(model: nn.Module) -> None:
    """Make SDPA always use the padding mask.

    transformers checks on the device whether each batch has any padding, so the host would have to wait.
    """
    base = unwrapped(model)
    if getattr(base.config, "_attn_implementation", None) == "sdpa":
        base.set_attn_implementation(_MASKED_SDPA)


def finish_first_token_only(model: nn.Module) -> None:
    """Make the last layer compute the first token only: the head reads no other.

    Tokens do not interact after the last attention, so the output projection and the feed-forward block (three
    quarters of a layer's products) run on one token instead of all, and our own attention uses that token's query
    only. Logits and gradients stay the same; `last_hidden_state` has one token.
    """
    encoder = bert_encoder(model)
    if encoder is not None:
        attention = encoder.layer[-1].attention
        attention.self.asks_for_first_token_only = True
        attention.output.register_forward_pre_hook(keep_first_token)


def keep_first_token(module: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Cut attention's output and its residual from (B, tokens, width) to (B, 1, width).

    The result is contiguous: to multiply anything else, torch first copies the weight B times.
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
    """Compute scaled dot-product attention, with the signature of transformers' attention functions.

    Calls that add anything else to the scores (T5's positions) or share keys between heads go to transformers' SDPA.

    Args:
        query, key, value: shape (B, heads, tokens, head width).
        attention_mask: added to the scores, broadcast to (B, heads, tokens, tokens); None for no padding.

    Returns:
        The output, shape (B, tokens, heads, head width), and None for the weights. If the module asks for the first
        token only, every token has the first one's output.
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
        # The mask's fp32 minimum would become -inf in half precision, and the softmax of a row of -inf is NaN.
        scores = scores + attention_mask.clamp(min=torch.finfo(scores.dtype).min).to(scores.dtype)
    # Autocast would cast the scores to fp32 and the weights back, but torch's softmax accumulates in fp32 anyway.
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
    """Call transformers' SDPA, for the first token only if the module asks for that; shapes as above."""
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
