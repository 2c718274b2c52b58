"""Faster ways to compute the same thing, each with its reason and its gain, and off where it does not pay.

Gains are of MRPC with BitFit on the packaged MiniLM-L6, bf16 on two CPU cores (see `benchmarks/`).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEVELS = 1 << 15
#: The longest vectors that torch's CPU kernels are built for, AVX-512's.
_VECTOR_BYTES = 64
#: Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def accelerate_model(
    model: nn.Module, device: torch.device, precision: str, frozen_dtype: str = "auto", reads_frozen: bool = False
) -> None:
    """Switch on, in place, what pays on this device.

    Args:
        model: what a strategy made, still in fp32.
        device: where it will run.
        precision: of the forward pass: "no", "fp16" or "bf16".
        frozen_dtype: "auto" keeps frozen Linear weights in that precision, "fp32" leaves them.
        reads_frozen: the method uses frozen weights for more than their layers' products; they stay in fp32, and so
            does the arithmetic that PEFT does with them.
    """
    if precision in _DTYPES and not reads_frozen:
        leave_casts_to_autocast(model)
        if frozen_dtype == "auto":
            keep_frozen_linears_in(model, _DTYPES[precision])
    finish_first_token_only(model)
    if device.type == "cpu":
        use_cheap_dropout(model)
        use_eager_attention(model)
        keep_freed_memory()


def keep_frozen_linears_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights of Linear layers in the precision that autocast would cast them to.

    Autocast casts a frozen weight anew in every forward pass (it caches trained ones only). Casting once gives the
    same products bit for bit. Embeddings, normalisation weights and biases stay in fp32: autocast does not touch
    them, so casting them would change the result.
    """
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad:
            module.weight.data = module.weight.data.to(dtype)


def leave_casts_to_autocast(model: nn.Module) -> None:
    """Spare the input of PEFT's layers the way to fp32 and back: autocast casts it for each product anyway.

    PEFT casts every input to the adapter's precision first (`peft.helpers.disable_input_dtype_casting`).
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.cast_input_dtype_enabled = False


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, up to 32 MB a block and 1 GB in all.

    By default it gives large blocks back, and the kernel clears every page of the next one before its first use, some
    thousand times a step. Steps of varying lengths: 1.07 ×. A C library without `mallopt` is left as it is.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc accepts
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def use_cheap_dropout(model: nn.Module) -> None:
    """Replace every `nn.Dropout` by `CheapDropout`: `bernoulli_` alone takes a third of a training step on a CPU."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, CheapDropout(child.p).train(child.training))


def use_eager_attention(model: nn.Module) -> None:
    """Attention as plain products, with the cheap dropout, where the model would use SDPA.

    On a CPU, SDPA with a mask and dropout is the same products, with `bernoulli_`; at a few dozen tokens its
    blocked kernel does not pay either.
    """
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    base = unwrap()
    if getattr(base.config, "_attn_implementation", None) == "sdpa":
        base.set_attn_implementation(_ATTENTION)


#: Architectures whose layers are BERT's and whose head reads the first token of the last layer, and nothing else.
_READ_FIRST_TOKEN = {"bert", "electra", "roberta", "xlm-roberta"}


def finish_first_token_only(model: nn.Module) -> None:
    """Let the last layer end with the first token alone: the head reads no other.

    Behind the last attention, every token goes its own way, so the output projection and the feed-forward block
    (three quarters of a layer's products) are computed for one token instead of all, and our own attention asks
    for that token only. Logits and gradients stay the same; `last_hidden_state` has one token.
    """
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    base = unwrap()
    if base.config.model_type in _READ_FIRST_TOKEN and type(base).__name__.endswith("ForSequenceClassification"):
        attention: Any = base.base_model.encoder.layer[-1].attention
        attention.self.asks_for_first_token_only = True
        attention.output.register_forward_pre_hook(_keep_first_token)


def _keep_first_token(module: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Attention's output and its residual, each of shape (B, tokens, width), cut to (B, 1, width).

    Contiguous: for a product with anything else torch first copies the weight B times.
    """
    return tuple(tensor[:, :1].contiguous() for tensor in inputs)


class CheapDropout(nn.Module):
    """Dropout whose mask is cut from random 64-bit words, four elements each, with integer operations only.

    The rate is `p` rounded to a multiple of 2**-15, and kept values are scaled by the inverse of the rounded keep
    rate, so that the expectation is exact.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return cheap_dropout(values, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def cheap_dropout(values: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Dropout with probability `p`, drawn from torch's CPU generator.

    Args:
        values: bf16, fp16 or fp32, any shape.
    """
    if not training or p == 0:
        return values
    output: torch.Tensor = _CheapDropout.apply(values, p)
    return output


class _CheapDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, p: float) -> torch.Tensor:
        dropped = round(p * _LEVELS)
        ctx.scale = _LEVELS / (_LEVELS - dropped) if dropped < _LEVELS else 0.0
        mask = keep_mask(values.numel(), dropped).view(values.shape)
        ctx.save_for_backward(mask)
        return _masked(values, mask, ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return _masked(gradient, mask, ctx.scale), None


def keep_mask(count: int, dropped: int) -> torch.Tensor:
    """`count` int16 values: all bits set with probability 1 - dropped / 2**15, else none."""
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].bitwise_right_shift_(1)  # 15 random bits: -2**14 .. 2**14 - 1
    # Negative, so all ones after the shift, exactly for the values from dropped - 2**14 on.
    return bits.neg_().add_(dropped - _LEVELS // 2 - 1).bitwise_right_shift_(15)


def _masked(values: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    if values.element_size() == 2:
        return values.view(torch.int16).bitwise_and(mask).view(values.dtype).mul_(scale)
    if values.dtype == torch.float32:
        return mask.to(torch.float32).mul_(-scale).mul_(values)  # in place: a second large tensor costs page faults
    return values * mask.neg().to(values.dtype) * scale


def _eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention in the signature of transformers' attention functions.

    Args:
        query, key, value: shape (B, heads, tokens, width of a head).
        attention_mask: added to the scores, broadcast to (B, heads, tokens, tokens); None for no padding.

    Returns:
        Shape (B, tokens, heads, width of a head), and no weights. Of a module that asks for the first token only,
        every token has the first one's.
    """
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
        weights = cheap_dropout(_softmax(scores), dropout, module.training)
    output = torch.matmul(weights, value).transpose(1, 2)
    return (output.expand(-1, tokens, -1, -1) if first else output.contiguous()), None


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, whose rows are filled up to whole vectors with minus infinity.

    torch goes through the rest of a row number by number: in bf16, 28 scores take five times as long as 32, forward
    and backward. Steps of 16 x 28 tokens: 1.05 ×. Not for rows that would grow by more than half, unless they are
    shorter than one vector.
    """
    keys, lanes = scores.size(-1), _VECTOR_BYTES // scores.element_size()
    spare = -keys % lanes
    if spare == 0 or (keys > lanes and 2 * spare > keys):
        return nn.functional.softmax(scores, dim=-1)
    return nn.functional.softmax(nn.functional.pad(scores, (0, spare), value=-torch.inf), dim=-1)[..., :keys]


_ATTENTION = "eager_with_cheap_dropout"
ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _eager_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
