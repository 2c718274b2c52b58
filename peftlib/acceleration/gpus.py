"""What kind of GPU it is, and how its libraries are set."""

from __future__ import annotations

import os

import torch
from torch import nn


def has_tensor_cores(device: torch.device) -> bool:
    """An NVIDIA GPU from Ampere on, for which Triton's kernels are written; they were run on Hopper only."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def is_hopper(device: torch.device) -> bool:
    """Where the kernels were measured: what the clock has decided holds there, and nowhere else before it was asked."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def leave_out_workspace(model: nn.Module) -> None:
    """Let cuBLAS do without memory of its own, where all products are of matrices of a model's size.

    For the inner layer it would choose kernels that hand out their tiles by a counter, which a memset clears first: in
    a CUDA graph that takes 5 µs, and the kernels are no faster (an H100, 3,584 × 768 × 3,072: 35.0 µs with it, 32.4
    without). LoRA's narrow products are divided along their depth, which needs that memory.

    torch reads the variables with the first product of a process, for the whole process. Where cuBLASLt multiplies,
    torch would take a workspace of no bytes for one that could not be had.
    """
    chosen = {"CUBLAS_WORKSPACE_CONFIG", "TORCH_BLAS_PREFER_CUBLASLT"} & os.environ.keys()
    if not chosen and not any(hasattr(one, "lora_A") for one in model.modules()):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":0:0"
        os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "0")  # a part of it; torch warns of a larger one
