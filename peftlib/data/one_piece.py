"""A batch as one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

#: Bytes at whose multiples tensors start: Triton would compile its kernels once more for others.
_ALIGNMENT = 16
#: Most bytes that the driver takes to itself at once from memory that is not pinned. With more, the host would wait for
#: what the device was given before (CUDA Programming Guide, "Asynchronous Concurrent Execution").
_MOST_AT_ONCE = 1 << 16


class _Part(NamedTuple):
    """A tensor, contiguous, that starts after so many elements of its type."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class OnePiece(dict[str, torch.Tensor]):
    """A batch whose tensors are parts of one piece of memory, which goes to a device in few copies.

    For each, however small, a GPU takes 2 µs, and 1 to begin with the next one. Tensors put into it later do not move.
    """

    def __init__(self, memory: torch.Tensor, parts: Mapping[str, _Part]) -> None:
        self._memory, self._parts = memory, parts
        as_type = {dtype: memory.view(dtype) for dtype in {part.dtype for part in parts.values()}}
        super().__init__(
            (name, as_type[part.dtype].as_strided(part.shape, part.strides, part.start)) for name, part in parts.items()
        )

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> OnePiece:
        """Copy these into one piece."""
        starts = np.cumsum([0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays.values())]).tolist()
        memory = np.zeros(starts[-1], np.uint8)
        parts = {}
        for (name, array), start in zip(arrays.items(), starts, strict=False):
            memory[start : start + array.nbytes].view(array.dtype)[:] = array.reshape(-1)
            strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
            parts[name] = _Part(start // array.itemsize, _TYPES[array.dtype], array.shape, strides)
        return cls(torch.from_numpy(memory), parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return OnePiece, (self._memory, self._parts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> OnePiece:
        """A copy on this device: accelerate asks what has a `to`, as tensors have, to move itself."""
        memory = torch.empty_like(self._memory, device=device)
        for ours, theirs in zip(memory.split(_MOST_AT_ONCE), self._memory.split(_MOST_AT_ONCE), strict=True):
            ours.copy_(theirs, non_blocking=non_blocking)
        return OnePiece(memory, self._parts)


_TYPES = {np.dtype(name): getattr(torch, name) for name in ("int32", "int64", "float32")}
