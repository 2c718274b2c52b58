"""A training step as CUDA graphs: recorded once per batch shape, then launched as a whole."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftlib.errors import RunError

Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], torch.Tensor]
#: Gradients lie in one tensor of so many columns, the last row filled up with zeros.
_LINE = 1024
_Shape = tuple[tuple[str, torch.Size], ...]
_OUT_OF_MEMORY = (
    "out of memory: a CUDA graph keeps what a step needs beside what other steps need; use --cuda_graphs false, or a "
    "smaller --per_device_train_batch_size"
)


@dataclass(frozen=True)
class Recording:
    """One shape's graph: what it reads, what it runs, what it leaves.

    Attributes:
        inputs: the tensors that the graph reads; a batch is copied into them.
        replay: launches the graph.
        loss: the scalar that the graph overwrites.
    """

    inputs: Batch
    replay: Callable[[], None]
    loss: torch.Tensor


class GraphedStep:
    """A step, forward and backward, that a GPU is given in one launch instead of some thousand.

    With BERT-like models a GPU computes a small batch faster than Python can describe it. A graph
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) replays the kernels of an earlier step on new
    contents of the same tensors: the same arithmetic, dropout drawn from the same generator. The first batch of a shape
    runs as it always would, which lets the libraries choose their kernels; the second is recorded. Where nothing is to
    be chosen, so is the first, but for the very first batch of that kind: what a model does once, it must not do in a
    recording, whose memory is not its own to keep.

    Gradients gather in tensors that live as long as this object, which is what a graph needs. Parameters get them back
    whenever the optimizer has dropped them.

    Args:
        step: takes a batch on the device, adds to the gradients, returns a scalar. What it does may depend on the
            shapes in the batch alone. One that waits for the device is run as it is, always.
        parameters: all that may receive a gradient.
        warn: is told if the step waits.
        is_ready: whether a batch is of the kind that can be recorded at first sight; none is by default.
    """

    def __init__(
        self,
        step: Step,
        parameters: Iterable[nn.Parameter],
        warn: Callable[[str], None],
        is_ready: Callable[[Batch], bool] = lambda _: False,
    ) -> None:
        self._step, self._warn, self._is_ready = step, warn, is_ready
        self._recordable = True
        self._kind_has_run = False
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._gradients: list[torch.Tensor] = []
        self._flat = torch.empty(0)
        self._all_in_one = nn.Parameter(self._flat)  # in name only: its gradient is all the gradients end to end
        self._recordings: dict[_Shape, Recording | None] = {}
        self._pool: Any = None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """One step on one batch.

        Raises:
            RunError: the step cannot be recorded, since it waits for the device, say; or recordings take the memory.
        """
        shape = tuple((name, tensor.shape) for name, tensor in batch.items())
        is_ready = self._is_ready(batch)
        at_first_sight = is_ready and self._kind_has_run
        self._kind_has_run |= is_ready
        if not self._gradients:
            return self._first(batch)
        self._lend_gradients()
        if not self._recordable or (shape not in self._recordings and not at_first_sight):
            self._recordings[shape] = None  # seen once
            return self._beside_recordings(batch)
        recording = self._recordings.get(shape) or self._record(batch)
        self._recordings[shape] = recording
        copy_batch(recording.inputs, batch)
        recording.replay()
        return recording.loss.clone()

    def _beside_recordings(self, batch: Batch) -> torch.Tensor:
        try:
            return self._step(batch)
        except torch.OutOfMemoryError as error:
            if any(self._recordings.values()):
                raise RunError(_OUT_OF_MEMORY) from error
            raise

    def _first(self, batch: Batch) -> torch.Tensor:
        """The very first step shows which parameters receive gradients; only those are given one ever after."""
        loss, reason = _watched(self._step, batch)
        if reason is not None:
            # A recording that fails would leave the device unusable.
            self._recordable = False
            self._warn(f"no CUDA graphs: this model's step waits for the device ({reason})")
        self._parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        # One tensor behind all of them: a single kernel clears it.
        sizes = [parameter.numel() for parameter in self._parameters]
        spare = self._parameters[0].new_zeros(-sum(sizes) % _LINE)
        gradients = [parameter.grad.reshape(-1) for parameter in self._parameters]  # type: ignore[union-attr]
        self._flat = torch.cat([*gradients, spare])
        parts = self._flat[: sum(sizes)].split(sizes)
        self._gradients = [part.view_as(one) for part, one in zip(parts, self._parameters, strict=True)]
        self._all_in_one = nn.Parameter(self._flat.detach())
        self._all_in_one.grad = self._flat
        self._hand_out()
        return loss

    def clip(self, most: float) -> torch.Tensor:
        """`torch.nn.utils.clip_grad_norm_` of all gradients, in a few kernels; their global L2 norm before."""
        # Line by line: torch has a single block of a GPU sum up what goes into one number, which takes 12 µs for the
        # biases of bert-base.
        lines = torch.linalg.vector_norm(self._flat.view(-1, _LINE), dim=1)
        norm = torch.linalg.vector_norm(lines)
        nn.utils.clip_grads_with_norm_([self._all_in_one], most, norm, foreach=False)
        return norm

    def _lend_gradients(self) -> None:
        """At the start of a window the optimizer has set every `.grad` to None."""
        if self._parameters[0].grad is not self._gradients[0]:
            self._flat.zero_()
            self._hand_out()

    def _hand_out(self) -> None:
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _record(self, batch: Batch) -> Recording:
        inputs = cloned(batch)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # One pool for all: no two graphs run at a time, and none reads what another left. Other threads (a data
        # loader's) may call CUDA meanwhile.
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss = self._into_fresh_gradients(inputs)
        except torch.OutOfMemoryError as error:
            raise RunError(_OUT_OF_MEMORY) from error
        except RuntimeError as error:  # nothing can be computed on this device any more: not even without graphs
            raise RunError(
                f"this model's step cannot be recorded as a CUDA graph ({' '.join(str(error).split())[:200]}); use "
                "--cuda_graphs false"
            ) from error
        return Recording(inputs, graph.replay, loss)

    def _into_fresh_gradients(self, inputs: Batch) -> torch.Tensor:
        """A step whose gradients are added up by a few kernels at its end, instead of by one for each parameter."""
        for parameter in self._parameters:
            parameter.grad = None
        loss = self._step(inputs)
        pairs = [(kept, one.grad) for kept, one in zip(self._gradients, self._parameters, strict=True)]
        kept, fresh = zip(*((kept, gradient) for kept, gradient in pairs if gradient is not None), strict=True)
        torch._foreach_add_(kept, fresh)
        self._hand_out()
        return loss


def cloned(batch: Batch) -> Batch:
    """A copy of a batch; tensors that share their memory go on to do so."""
    return copy.deepcopy(dict(batch))


def copy_batch(inputs: Batch, batch: Batch) -> None:
    """Overwrite the inputs with a batch, in as few kernels as their memory allows: one if they are one piece of it."""
    ours, theirs = _piece(inputs), _piece(batch)
    if ours is not None and theirs is not None and len(ours) == len(theirs):
        ours.copy_(theirs)
        return
    for kind in {tensor.dtype for tensor in batch.values()}:
        names = [name for name, tensor in batch.items() if tensor.dtype == kind]
        torch._foreach_copy_([inputs[name] for name in names], [batch[name] for name in names])


def _piece(batch: Batch) -> torch.Tensor | None:
    """The bytes that all tensors are parts of, if there is one piece of memory for all."""
    first = next(iter(batch.values()))
    memory = first.untyped_storage()
    if any(tensor.untyped_storage().data_ptr() != memory.data_ptr() for tensor in batch.values()):
        return None
    return torch.empty(0, dtype=torch.uint8, device=first.device).set_(memory)


def _watched(step: Step, batch: Batch) -> tuple[torch.Tensor, str | None]:
    """A step, and what torch says of it if the host waited for the device in it."""
    if not torch.cuda.is_available():
        return step(batch), None
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loss = step(batch)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    reason = None
    for warning in said:
        line = " ".join(str(warning.message).split())
        if line.startswith("called a synchronizing"):
            reason = line[:100]
        elif "debug mode" not in line:  # not of the mode itself: whoever it was meant for gets it
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return loss, reason
