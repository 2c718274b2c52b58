"""An encoder layer whose matrices are frozen, in one function: eight products and as many kernels a training step.

As torch computes it, such a layer takes some sixty small kernels, most of which read and write all rows once.
"""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from peftlib.acceleration.bert import (
    bert_encoder,
    has_hooks,
    is_frozen_linear,
    is_key_mask,
    is_plain_encoder,
    joined,
    linears,
)  # fmt: skip

if find_spec("triton") is not None:  # it comes with torch for GPUs only
    from peftlib.acceleration import layer_calls as calls

_HEAD_WIDTHS = (32, 64)
#: Of the layer's dropouts, beside attention's.
_FIRST, _SECOND = 1, 2


def fuse_frozen_layers(model: nn.Module, dtype: torch.dtype) -> int:
    """Let every encoder layer but the last of a BERT-like classifier compute its training step in one function.

    Only layers whose matrices are frozen; biases and normalisation may be trained. What such a layer cannot compute
    (evaluation, long sequences, tensors elsewhere than on a GPU) is left to its own forward. The last layer is not
    touched: its head reads one token of it (`attention.finish_first_token_only`).

    Args:
        model: as transformers made it, not in PEFT's wrapper.
        dtype: of the products and of what is kept for backward. The matrices are converted.

    Returns:
        How many layers.
    """
    encoder = None if hasattr(model, "get_base_model") else bert_encoder(model)
    if (
        find_spec("triton") is None
        or encoder is None
        or not is_plain_encoder(encoder.config)
        or encoder.config.hidden_act != "gelu"
    ):
        return 0
    layers = [layer for layer in encoder.layer[:-1] if _is_fusible(layer)]
    for layer in layers:
        for linear in linears(layer):
            linear.weight.data = linear.weight.data.to(dtype)
        joined(*linears(layer)[:3])
        kind: Any = type(layer)
        layer.__class__ = kind if isinstance(layer, _FusedLayer) else _fused(kind)
        layer.fused_dtype = dtype
    return len(layers)


class _FusedLayer(nn.Module):
    """A mixin in front of transformers' layer class."""

    fused_dtype: torch.dtype

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        output: torch.Tensor
        if (
            not self._applies_to(hidden_states, attention_mask)
            or any(given is not None for given in args)  # encoders' states, masks, caches
            or any(kwargs.get(name) is not None for name in ("encoder_hidden_states", "past_key_values"))
        ):
            output = super().forward(hidden_states, attention_mask, *args, **kwargs)
        else:
            output = self._in_one_function(hidden_states, attention_mask)
        return output

    def _applies_to(self, hidden_states: torch.Tensor, mask: Any) -> bool:
        return (
            self.training
            and torch.is_grad_enabled()
            and (hidden_states.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")
            and hidden_states.size(1) <= calls.MOST_TOKENS
            and (mask is None or is_key_mask(mask, hidden_states))
            and _is_fusible(self)
            and all(linear.weight.dtype == self.fused_dtype for linear in linears(self))
        )

    def _in_one_function(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        layer: Any = self
        attention, first, second = layer.attention.self, layer.attention.output, layer.output
        query, key, value, out, inner, outer = linears(self)
        if mask is not None:  # padding is the same for all queries
            mask = mask[:, 0, 0].expand(x.size(0), -1)
            mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
        output: torch.Tensor = _EncoderLayer.apply(
            x.to(self.fused_dtype), mask, attention.num_attention_heads,
            tuple(one.p if one.training else 0.0 for one in (attention.dropout, first.dropout, second.dropout)),
            (first.LayerNorm.eps, second.LayerNorm.eps),
            (joined(query, key, value), out.weight, inner.weight, outer.weight),
            query.bias, key.bias, value.bias, out.bias, first.LayerNorm.weight, first.LayerNorm.bias,
            inner.bias, outer.bias, second.LayerNorm.weight, second.LayerNorm.bias,
        )  # fmt: skip
        return output


@functools.cache
def _fused(kind: type) -> type:
    return type(f"Fused{kind.__name__}", (_FusedLayer, kind), {"__module__": __name__})


def _is_fusible(layer: Any) -> bool:
    """Plain modules, frozen matrices, and nobody who watches what is inside."""
    attention = layer.attention.self
    matrices, norms = linears(layer), (layer.attention.output.LayerNorm, layer.output.LayerNorm)
    dropouts = (attention.dropout, layer.attention.output.dropout, layer.output.dropout)
    return (
        all(is_frozen_linear(matrix) for matrix in matrices)
        and all(type(norm) is nn.LayerNorm and norm.weight is not None and norm.bias is not None for norm in norms)
        and all(0 <= dropout.p < 1 for dropout in dropouts)
        and attention.attention_head_size in _HEAD_WIDTHS
        and attention.all_head_size == matrices[0].in_features
        and not any(has_hooks(module) for child in layer.children() for module in child.modules())
    )


class _EncoderLayer(torch.autograd.Function):
    """A BERT layer: attention and a GELU network, each with dropout, residual and normalisation behind it.

    Shapes: x (B, W, D); mask (B, W) or None, see `Call`; matrices (3 D, D), (D, D), (F, D), (D, F) in x's
    precision; the vectors are parameters. Gradients for x and the vectors.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, mask: torch.Tensor | None, heads: int, rates: tuple[float, float, float],
        eps: tuple[float, float], matrices: tuple[torch.Tensor, ...], *vectors: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        of_qkv, of_out, of_inner, of_outer = matrices
        query, key, value, out, weight, shift, inner, outer, last_weight, last_shift = vectors
        with torch.autocast(x.device.type, enabled=False):
            # Drawn on the device: in a CUDA graph, anew for every replay.
            seed = torch.randint(0, 2**31 - 1, (1,), device=x.device)
            call = calls.Call(mask, seed, x.size(1), heads, tuple(calls.Rate.of(p) for p in rates))
            rows = x.reshape(-1, x.size(-1))
            qkv = rows @ of_qkv.t()
            seen = calls.attend(call, qkv, (query, key, value))
            middle, normal, rstd = calls.norm_forward(call, _FIRST, seen @ of_out.t(), out, rows, weight, shift, eps[0])
            before = middle @ of_inner.t()
            product = calls.gelu_forward(before, inner) @ of_outer.t()
            result, last_normal, last_rstd = calls.norm_forward(
                call, _SECOND, product, outer, middle, last_weight, last_shift, eps[1]
            )
        ctx.call, ctx.matrices = call, matrices
        ctx.save_for_backward(
            qkv, normal, rstd, before, last_normal, last_rstd, query, key, value, weight, inner, last_weight
        )
        return result.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call, (of_qkv, of_out, of_inner, of_outer) = ctx.call, ctx.matrices
        (
            qkv, normal, rstd, before, last_normal, last_rstd, query, key, value, weight, inner, last_weight
        ) = ctx.saved_tensors  # fmt: skip
        of_x, needed = ctx.needs_input_grad[0], ctx.needs_input_grad[6:]
        # A row for each program's sums, with columns for each trained vector: one sum then finishes them all.
        like = (weight, weight, weight, inner, weight, weight, weight)
        sizes = [len(vector) if need else 0 for vector, need in zip(like, needed[3:], strict=True)]
        sums = gradient.new_empty((calls.PROGRAMS, sum(sizes)), dtype=torch.float32)
        for_out, for_weight, for_shift, for_inner, for_outer, for_last_weight, for_last_shift = sums.split(sizes, 1)
        of_attention: list[torch.Tensor | None] = [None] * 3
        with torch.autocast(gradient.device.type, enabled=False):
            residual, below = calls.norm_backward(
                call, _SECOND, gradient.reshape(-1, gradient.size(-1)).contiguous(), last_normal, last_rstd,
                last_weight, for_last_weight, for_last_shift, for_outer,
            )  # fmt: skip
            below = calls.gelu_backward(below @ of_outer, before, inner, for_inner)
            below = residual.addmm_(below, of_inner)  # in place: with addmm, torch first copies what is added
            residual, below = calls.norm_backward(
                call, _FIRST, below, normal, rstd, weight, for_weight, for_shift, for_out
            )
            if of_x or any(needed[:3]):
                below, for_qkv = calls.attend_backward(
                    call, below @ of_out, qkv, (query, key, value), summed=any(needed[:3])
                )
                of_attention = [*for_qkv.sum(0).chunk(3)] if any(needed[:3]) else of_attention
            for_x = residual.addmm_(below, of_qkv).view(gradient.shape) if of_x else None
            of_vectors = [*of_attention, *sums.sum(0).split(sizes)]
        return for_x, *[None] * 5, *(one if need else None for one, need in zip(of_vectors, needed, strict=True))
