"""GPU architectures, and settings of cuBLAS."""

from __future__ import annotations

import os

import torch
from torch import nn


def has_tensor_cores(device: torch.device) -> bool:
    """Return whether this is an NVIDIA GPU from Ampere on, as the Triton kernels need; they were run on Hopper only."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def is_hopper(device: torch.device) -> bool:
    """Return whether this is Hopper, the only architecture that the tuning constants were measured on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def leave_out_workspace(model: nn.Module) -> None:
    """Disable cuBLAS's workspace, unless the model has LoRA layers or the user has chosen a setting.

    With a workspace, cuBLAS chooses kernels for the intermediate layer that assign tiles by a counter, which a memset
    clears first: in a CUDA graph that takes 5 µs, and the kernels are no faster (on an H100, 3,584 × 768 × 3,072 takes
    35.0 µs with it, 32.4 without). LoRA's narrow products are split along their depth, which needs the workspace.

    torch reads the variables at the first product of a process, for the whole process. If the user prefers cuBLASLt,
    torch would mistake an empty workspace for a failed allocation.
    """
    chosen = {"CUBLAS_WORKSPACE_CONFIG", "TORCH_BLAS_PREFER_CUBLASLT"} & os.environ.keys()
    if not chosen and not any(hasattr(module, "lora_A") for module in model.modules()):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":0:0"
        os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "0")  # part of the workspace; torch warns if it is larger
