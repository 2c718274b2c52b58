"""Faster ways to compute the same thing, each with its reason and its gain, and off where it does not pay.

Gains are of MRPC with BitFit on the packaged MiniLM-L6, bf16 on two CPU cores (see `benchmarks/`).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch
from torch import nn

from peftlib.acceleration.attention import always_mask, finish_first_token_only, use_eager_attention
from peftlib.acceleration.bert import unwrapped
from peftlib.acceleration.dropout import use_cheap_dropout
from peftlib.acceleration.gpus import has_tensor_cores, is_hopper, leave_out_workspace
from peftlib.acceleration.packed_encoder import pack_encoder
from peftlib.errors import UserError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def accelerate_model(
    model: nn.Module,
    device: torch.device,
    precision: str,
    frozen_dtype: str = "auto",
    reads_frozen: bool = False,
    loader: Any = None,
) -> None:
    """Switch on, in place, what pays on this device.

    Args:
        model: what a strategy made, still in fp32.
        device: where it will run.
        precision: of the forward pass: "no", "fp16" or "bf16".
        frozen_dtype: "auto" keeps frozen Linear weights in that precision, "fp32" leaves them and their layers.
        reads_frozen: the method uses frozen weights for more than their layers' products; they stay in fp32, and so
            does the arithmetic that PEFT does with them.
        loader: of training batches, whose `collate_fn` is a `Collator`: they are laid out as the model takes them
            fastest.

    Raises:
        UserError: transformers' code for the model fails in this precision.
    """
    if precision in _DTYPES and unwrapped(model).config.model_type == "deberta":
        # It fills bf16 scores with the least number of fp32, as which it takes the sum of a query and its fp32 bias.
        raise UserError(f"--mixed_precision {precision}: transformers' DeBERTa fails in it; use no, or DeBERTa-v3")
    if precision in _DTYPES:
        compute_scores_in_fp32(model)
    if precision in _DTYPES and not reads_frozen:
        leave_casts_to_autocast(model)
        if frozen_dtype == "auto":
            keep_frozen_linears_in(model, _DTYPES[precision])
            if device.type == "cpu":
                leave_the_file(model)
            if has_tensor_cores(device):
                from peftlib.acceleration.row_encoder import take_rows  # it imports Triton

                first_position = take_rows(model, _DTYPES[precision])
                if first_position is not None:
                    if is_hopper(device):
                        leave_out_workspace(model)  # in predictions too: other kernels round otherwise
                    if loader is not None:
                        loader.collate_fn = loader.collate_fn.in_rows(first_position)
    if device.type == "cpu":
        if reads_frozen or not pack_encoder(model):
            finish_first_token_only(model)
        use_cheap_dropout(model)
        use_eager_attention(model)
        if any(hasattr(module, "lora_A") for module in model.modules()):
            from peftlib.acceleration.low_rank import use_one_function_per_layer  # it imports PEFT

            use_one_function_per_layer(model)
        keep_freed_memory()
    else:
        finish_first_token_only(model)
        always_mask(model)


def compute_scores_in_fp32(model: nn.Module) -> None:
    """Let the layer that gives a regression's scores compute in fp32 under autocast too.

    Half precision has few numbers: of bf16's there are 32 between 4 and 5, and scores that are told apart by less
    would be alike to a correlation of ranks. The layer is a millionth of the work.
    """
    base = unwrapped(model)
    for name, module in base.named_modules() if base.config.num_labels == 1 else ():
        in_head = not name.startswith(f"{base.base_model_prefix}.")
        if in_head and type(module) is nn.Linear and module.out_features == 1:
            module.__class__ = _Fp32Linear


class _Fp32Linear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def keep_frozen_linears_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights of Linear layers in the precision that autocast would cast them to.

    Autocast casts a frozen weight anew in every forward pass (it caches trained ones only). Casting once gives the
    same products bit for bit. Embeddings, normalisation weights and biases stay in fp32: autocast does not touch
    them, so casting them would change the result.
    """
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad:
            module.weight.data = module.weight.data.to(dtype)


def leave_the_file(model: nn.Module) -> None:
    """Copy the fp32 weights that the casts have left in the checkpoint's file, which is mapped into memory.

    One tensor in it keeps all pages in the process that were ever read, those of the replaced matrices too: with the
    packaged model 82 MB for the 45 that are needed, with bert-base's shape 417 for 91.
    """
    for weight in model.parameters():
        if weight.dtype == torch.float32:
            weight.data = weight.data.clone()


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
