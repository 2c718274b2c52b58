"""The machine's ceiling, in operations per second of matrix products, and the number of operations that a job needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from peftlib.acceleration.frozen_matrices import PackedMatrix, frozen_matrix

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: (rows, inner, columns). The first shape is the intermediate layer of MiniLM-L6, or of BERT-base, on a micro-batch;
#: the other one is large enough to reach peak throughput.
_SHAPES = {
    "cpu": ((1024, 384, 1536), (1024, 1024, 1024)),
    "cuda": ((4096, 768, 3072), (8192, 8192, 8192)),
}


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_ceiling(device: torch.device, precision: str, seconds: float = 1.0) -> float:
    """Return the highest rate of a matrix product over the shapes, in operations per second (a product is 2·n·k·m).

    The faster of torch's and, where there is one, of peftlib's own with packed matrices.
    """
    shapes = _SHAPES[device.type]
    return max(_rate(device, _DTYPES[precision], shape, seconds / len(shapes)) for shape in shapes)


def _rate(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float) -> float:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(columns, inner, device=device, dtype=dtype)
    layer = nn.Linear(inner, columns, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    products: list[Callable[[torch.Tensor], torch.Tensor]] = [layer]
    if isinstance(packed := frozen_matrix(dtype, layer), PackedMatrix):
        products.append(packed.times)
    repeats = 1 if device.type == "cpu" else 20  # enough for the host to stay ahead of the device
    best = float("inf")
    for product in products:
        end = time.perf_counter() + seconds / len(products)
        while best == float("inf") or time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(repeats):
                product(left)
            synchronize(device)
            best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * rows * inner * columns / best


def operations(model: Any, lengths: np.ndarray, *, training: bool) -> float:
    """Count the additions and multiplications in the matrix products of one pass over examples of these lengths.

    The count is of the plain algorithm, so a system that avoids work is credited with it, and of real tokens only, as
    padding is waste. A Linear of N weights costs 2·N per token forward, the same again for the gradient of its input,
    and the same again for that of its weight if it is trained: 4·N for BitFit, 6·N for full fine-tuning. Attention's
    two products cost 4·width·length per token and layer forward, and twice that backward. The head and the pooler
    process one token per example and are left out.

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
