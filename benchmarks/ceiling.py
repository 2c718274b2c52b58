"""What the machine could do: its matrix products per second, and how many operations the work needs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: (rows, inner, columns). The first is the intermediate layer of MiniLM-L6, or of BERT-base, over a micro-batch; the
#: others let the units show what they have.
_SHAPES = {
    "cpu": ((1024, 384, 1536), (1024, 1024, 1024)),
    "cuda": ((4096, 768, 3072), (8192, 8192, 8192)),
}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_ceiling(device: torch.device, precision: str, seconds: float = 1.0) -> float:
    """The most operations per second that a matrix product reaches here, over the shapes (a product is 2·n·k·m)."""
    shapes = _SHAPES[device.type]
    return max(_rate(device, _DTYPES[precision], shape, seconds / len(shapes)) for shape in shapes)


def _rate(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float) -> float:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(columns, inner, device=device, dtype=dtype)
    repeats = 1 if device.type == "cpu" else 20  # enough for the host to stay ahead of the device
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(repeats):
            nn.functional.linear(left, weight)
        synchronize(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * rows * inner * columns / best


def operations(model: Any, lengths: np.ndarray, *, training: bool) -> float:
    """Additions and multiplications that the matrix products of one pass over examples of these lengths need.

    What the plain algorithm needs: a system that finds a way to leave something out is credited with it. Real
    tokens only: padding is waste. A Linear of N weights costs 2·N a token forward, as much again for the gradient of
    its input, and as much again for that of its weight where that one trains: 4·N for BitFit, 6·N for full
    fine-tuning. Attention's two products cost 4·width·length a token and layer forward and twice that backward. The
    head and the pooler see one token per example and are left out.

    Args:
        model: a BERT-like classifier, with or without PEFT's wrapper.
        lengths: tokens per example, shape (examples,).
    """
    per_token = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "pooler" not in name and "classifier" not in name:
            passes = 1 + training + (training and module.weight.requires_grad)
            per_token += 2 * module.weight.numel() * passes
    config = model.config
    attention = 4 * config.num_hidden_layers * config.hidden_size * (3 if training else 1)
    tokens = lengths.astype(np.float64)
    return float(per_token * tokens.sum() + attention * (tokens**2).sum())
