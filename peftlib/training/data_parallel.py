"""Data parallelism: every process trains a replica of the model, and all add up their gradients once per update.

What DistributedDataParallel does beyond that does not pay here: it overlaps communication with backward, but what these
methods train is small; in return it broadcasts the buffers before every forward pass, keeps a second copy of all
gradients, and cannot be recorded in a CUDA graph together with the step, as its collectives are part of backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

#: Most bytes of gradients that are copied together for one collective.
_MOST_AT_ONCE = 64 << 20


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, *loaders: DataLoader
) -> tuple[Any, ...]:
    """Do what `Accelerator.prepare` does, but leave the model unwrapped; call it on every process.

    Returns:
        The model on its device, with autocast, and equal on all processes; the prepared optimizer and loaders.
    """
    # The mode says only that the model is not wrapped for distributed training.
    model = accelerator.prepare_model(model, evaluation_mode=True)
    if accelerator.num_processes > 1:
        # Seeds and files are alike, but what a method computes from weights may differ between kinds of processors.
        for tensor in (*model.parameters(), *model.buffers()):
            _copy_from_first(tensor.detach())
    return (model, *accelerator.prepare(optimizer, *loaders))


def _copy_from_first(tensor: torch.Tensor) -> None:
    """Overwrite a tensor with that of the first process, as bytes: gloo does not know all types."""
    whole = tensor.contiguous()
    dist.broadcast(whole.view(-1).view(torch.uint8), src=0)
    if whole.data_ptr() != tensor.data_ptr():
        tensor.copy_(whole)


def gradients_of(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """Return the parameters' gradients, after setting missing ones to zeros.

    LoHa's module dropout skips whole layers: a process may lack a gradient that others have, and a window one that
    another cut of the same window would have.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def sum_over_processes(gradients: Sequence[torch.Tensor]) -> None:
    """Replace gradients, in place, by their sums over all processes; every process calls it with the same shapes."""
    for group in _groups(gradients):
        if len(group) == 1 and group[0].is_contiguous():
            dist.all_reduce(group[0])
            continue
        flat = torch.cat([gradient.reshape(-1) for gradient in group])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in group])
        torch._foreach_copy_(group, [part.view_as(gradient) for part, gradient in zip(parts, group, strict=True)])


def _groups(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Divide gradients into groups of at most `_MOST_AT_ONCE` bytes, or of one."""
    group: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        if group and size + gradient.nbytes > _MOST_AT_ONCE:
            yield group
            group, size = [], 0
        group.append(gradient)
        size += gradient.nbytes
    if group:
        yield group
