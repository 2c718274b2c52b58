"""Faster ways to compute the same results. Each states its reason and its gain, and is off where it does not pay.

Gains were measured on MRPC with BitFit and the packaged MiniLM-L6, in bf16 on two CPU cores (see `benchmarks/`).
"""

from __future__ import annotations

import ctypes
import logging
import sys
from typing import Any

import torch
from torch import nn

from peftlib.acceleration.attention import always_mask, finish_first_token_only, use_eager_attention
from peftlib.acceleration.bert import unwrapped
from peftlib.acceleration.dropout import use_cheap_dropout
from peftlib.acceleration.gpus import has_tensor_cores, is_hopper, leave_out_workspace
from peftlib.acceleration.half_precision import take_half_precision
from peftlib.acceleration.packed_encoder import pack_encoder
from peftlib.acceleration.packed_linear import pack_linears
from peftlib.errors import UserError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def accelerate_model(
    model: nn.Module,
    device: torch.device,
    precision: str,
    frozen_dtype: str = "auto",
    reads_frozen: bool = False,
    loader: Any = None,
    enabled: bool = True,
    recompute: bool = False,
) -> None:
    """Apply to the model, in place, the optimisations that pay on this device.

    Args:
        model: the output of a strategy, still in fp32.
        device: where it will run.
        precision: of the forward pass: "no", "fp16" or "bf16".
        frozen_dtype: "auto" casts frozen Linear weights to that precision; "fp32" keeps them as is.
        reads_frozen: the method uses frozen weights outside their layers' products; they stay in fp32, and so does
            PEFT's arithmetic on them.
        loader: of training batches, with a `Collator` as its `collate_fn`; it is replaced by one for batches in rows
            if the model can take them.
        enabled: False leaves the model as transformers and PEFT have made it, but for what half precision needs.
        recompute: compute every layer a second time in the backward pass, rather than keep its activations.

    Raises:
        UserError: transformers' code for the model cannot compute layers twice.
    """
    if precision in _DTYPES:
        take_half_precision(model)
    if recompute:
        compute_layers_twice(model)
    if not enabled:
        return
    if precision in _DTYPES and not reads_frozen:
        leave_casts_to_autocast(model)
        if frozen_dtype == "auto":
            keep_frozen_linears_in(model, _DTYPES[precision])
            if device.type == "cpu":
                leave_the_file(model)
            if has_tensor_cores(device) and not recompute:
                from peftlib.acceleration.row_encoder import take_rows  # imports Triton

                first_position = take_rows(model, _DTYPES[precision])
                if first_position is not None:
                    if is_hopper(device):
                        leave_out_workspace(model)  # for prediction too: other cuBLAS kernels round differently
                    if loader is not None:
                        loader.collate_fn = loader.collate_fn.in_rows(first_position)
    if device.type == "cpu":
        if reads_frozen or not pack_encoder(model):
            finish_first_token_only(model)
        use_cheap_dropout(model)
        use_eager_attention(model)
        if any(hasattr(module, "lora_A") for module in model.modules()):
            from peftlib.acceleration.low_rank import use_one_function_per_layer  # imports PEFT

            use_one_function_per_layer(model)
        if precision == "bf16":
            pack_linears(model)
        keep_freed_memory()
    else:
        finish_first_token_only(model)
        always_mask(model)


def compute_layers_twice(model: nn.Module) -> None:
    """Turn on transformers' gradient checkpointing (Chen et al., 2016, https://arxiv.org/abs/1604.06174).

    Raises:
        UserError: the model does not have it.
    """
    base = unwrapped(model)
    if not base.supports_gradient_checkpointing:
        raise UserError(
            f"--gradient_checkpointing: transformers' {base.config.model_type} does not have it; lower "
            "--per_device_train_batch_size and raise --gradient_accumulation_steps"
        )
    logging.getLogger("transformers.utils.generic").addFilter(_is_not_about_caches)
    # Its name until transformers 5.22.
    enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
    enable({"use_reentrant": False})  # the other kind needs inputs that require gradients, unlike frozen embeddings


def _is_not_about_caches(record: logging.LogRecord) -> bool:
    """Whether a message is not the warning that keys and values are not kept for generating text: nobody asked to."""
    return "incompatible with gradient checkpointing" not in record.getMessage()


def keep_frozen_linears_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the frozen weights of Linear layers to the precision that autocast would cast them to.

    Autocast casts a frozen weight again in every forward pass (it caches casts of trained weights only). Casting once
    gives bit-identical products. Biases stay in fp32, and so do embeddings and normalisation weights, which autocast
    does not cast: casting those would change the result.
    """
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad:
            module.weight.data = module.weight.data.to(dtype)


def leave_the_file(model: nn.Module) -> None:
    """Copy the remaining fp32 weights out of the memory-mapped checkpoint file.

    As long as one tensor refers to the mapping, every page that was ever read stays resident, including those of the
    matrices that were cast: 82 MB where 45 are needed for the packaged model, 417 where 91 are for bert-base's shape.
    """
    for weight in model.parameters():
        if weight.dtype == torch.float32:
            weight.data = weight.data.clone()


def leave_casts_to_autocast(model: nn.Module) -> None:
    """Stop PEFT's layers from casting their input to fp32: autocast casts it back for each product anyway.

    PEFT casts every input to the adapter's precision first; see `peft.helpers.disable_input_dtype_casting`.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.cast_input_dtype_enabled = False


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees for the next one: blocks of up to 32 MB, 1 GB in total.

    By default it returns large blocks, and the operating system zeroes every page of a new one at first use, some
    thousand times a step. Speeds up steps of varying lengths by 1.07 ×. Does nothing with other C libraries.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc accepts
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
