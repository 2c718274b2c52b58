"""A batch as one piece of memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

#: Bytes at whose multiples tensors start: Triton would compile its kernels once more for others.
_ALIGNMENT = 16


class _Part(NamedTuple):
    """Where a tensor lies: its bytes, how many more separate it from the next, its type and shape."""

    size: int
    gap: int
    dtype: torch.dtype
    shape: torch.Size


class OnePiece(dict[str, torch.Tensor]):
    """A batch whose tensors are parts of one piece of memory: it goes to a device in one copy.

    A GPU takes 2 µs for each copy, however small, and as long to begin the next one.
    """

    def __init__(self, memory: torch.Tensor, parts: Mapping[str, _Part]) -> None:
        self._memory, self._parts = memory, parts
        pieces = memory.split([size for part in parts.values() for size in (part.size, part.gap)])[::2]
        super().__init__(
            (name, piece.view(part.dtype).view(part.shape))
            for (name, part), piece in zip(parts.items(), pieces, strict=True)
        )

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> OnePiece:
        """Copy these into one piece."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        parts = {
            name: _Part(tensor.nbytes, -tensor.nbytes % _ALIGNMENT, tensor.dtype, tensor.shape)
            for name, tensor in tensors.items()
        }
        memory = torch.empty(sum(part.size + part.gap for part in parts.values()), dtype=torch.uint8)
        batch = cls(memory, parts)
        for name, tensor in tensors.items():
            batch[name].copy_(tensor)
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        return OnePiece, (self._memory, self._parts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> OnePiece:
        """On this device; as `torch.Tensor.to`, which is how accelerate moves a batch.

        From pinned memory, if the host is not to wait: torch keeps that until it has been read. A copy of more than
        64 KB from elsewhere waits for all that the device has been given before.
        """
        memory = self._memory
        if non_blocking and torch.device(device).type == "cuda":
            memory = memory.pin_memory()
        return OnePiece(memory.to(device, non_blocking=non_blocking), self._parts)
