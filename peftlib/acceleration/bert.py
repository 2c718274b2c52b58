"""BERT-like classifiers: how to recognise them, and where and how their layers' matrices are stored."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

#: Architectures with BERT's layers and a head that reads only the first token of the last layer.
_LIKE_BERT = {"bert", "electra", "roberta", "xlm-roberta"}


def unwrapped(model: nn.Module) -> Any:
    """Return the transformers model, without PEFT's wrapper if it has one."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    return unwrap()


def has_virtual_tokens(model: nn.Module) -> bool:
    """Return whether PEFT's wrapper adds prompts or a prefix to the input."""
    config: Any = getattr(model, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)


def bert_encoder(model: nn.Module) -> Any:
    """Return the encoder of a BERT-like classifier, with or without PEFT's wrapper; None for any other model.

    Custom code that is shipped with a model may call it BERT too, whatever its head reads, so only transformers' own
    classes count.
    """
    base = unwrapped(model)
    alike = getattr(getattr(base, "config", None), "model_type", None) in _LIKE_BERT
    kind = type(base)
    known = kind.__module__.startswith("transformers.models.") and kind.__name__.endswith("ForSequenceClassification")
    return base.base_model.encoder if alike and known else None


def is_plain_encoder(config: Any) -> bool:
    """Return whether layers use bidirectional self-attention only, and positions come from the embeddings alone."""
    return (
        not config.is_decoder
        and not config.add_cross_attention
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
    )


def linears(layer: Any) -> tuple[nn.Linear, ...]:
    """Return query, key, value, attention output, intermediate and output; PEFT's layers where it has wrapped them."""
    attention = layer.attention.self
    return (
        attention.query, attention.key, attention.value, layer.attention.output.dense,
        layer.intermediate.dense, layer.output.dense,
    )  # fmt: skip


def is_key_mask(mask: Any, x: torch.Tensor) -> bool:
    """Return whether this is transformers' bidirectional mask: (B or 1, 1, W or 1, W), bool or added to the scores."""
    return (
        isinstance(mask, torch.Tensor)
        and mask.device == x.device
        and mask.dim() == 4
        and mask.size(0) in (1, x.size(0))
        and mask.size(1) == 1
        and mask.size(3) == x.size(1)
        and (mask.dtype == torch.bool or mask.is_floating_point())
    )


def has_hooks(module: nn.Module, known: Any = None) -> bool:
    """Return whether the module has a hook other than `known`, so that calling it cannot be bypassed."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hook is not known for some in hooks for hook in some.values())


def is_plain_gelu(activation: Any) -> bool:
    """Return whether this is transformers' module of the exact GELU, without hooks."""
    return getattr(activation, "act", None) is nn.functional.gelu and not has_hooks(activation)


def joined(*modules: nn.Linear) -> torch.Tensor:
    """Stack the weights, each (out, in), along `out`; from the first call on, they are views of the result.

    Copying a model or moving it to another device separates its weights; they are then joined again.

    Raises:
        RuntimeError: the weights are separate while a CUDA graph is being recorded.
    """
    weights = [linear.weight.data for linear in modules]
    rows, first = [len(weight) for weight in weights], weights[0].storage_offset()
    starts = itertools.accumulate((weight.numel() for weight in weights[:-1]), initial=first)
    memory = weights[0].untyped_storage().data_ptr()
    if any(
        not weight.is_contiguous() or weight.untyped_storage().data_ptr() != memory or weight.storage_offset() != start
        for start, weight in zip(starts, weights, strict=True)
    ):
        if weights[0].is_cuda and torch.cuda.is_current_stream_capturing():
            # Each replay would copy from the weights' old addresses.
            raise RuntimeError("the weights must be joined before a CUDA graph is recorded")
        together = torch.cat(weights)
        for linear, weight in zip(modules, together.split(rows), strict=True):
            linear.weight.data = weight
        return together
    return weights[0].as_strided((sum(rows), weights[0].size(1)), weights[0].stride(), first)
