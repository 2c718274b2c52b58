"""Training steps as CUDA graphs: recorded once per batch shape, then launched as a whole."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftlib.acceleration.bert import unwrapped
from peftlib.errors import RunError, in_one_line

Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], torch.Tensor]
#: All gradients lie in one tensor of this many columns; the last row is padded with zeros.
_COLUMNS = 1024
_Shape = tuple[tuple[str, torch.Size], ...]
_OUT_OF_MEMORY = (
    "out of memory: a CUDA graph keeps what a step needs beside what other steps need; use --cuda_graphs false, or a "
    "smaller --per_device_train_batch_size"
)


@dataclass(frozen=True)
class Recording:
    """The graph of one batch shape.

    Attributes:
        inputs: the tensors that the graph reads; every batch is copied into them.
        replay: launches the graph.
        loss: the scalar that the graph overwrites.
    """

    inputs: Batch
    replay: Callable[[], None]
    loss: torch.Tensor


class GraphedStep:
    """A forward and backward step that takes one launch on the GPU instead of some thousand.

    With BERT-like models, a GPU computes a small batch faster than Python can launch its kernels. A graph
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) replays the kernels of an earlier step on new
    contents of the same tensors: the same arithmetic, with dropout drawn from the same generator. The first batch of a
    shape runs eagerly, which lets the libraries choose their kernels; the second is recorded. Batches of a kind that
    needs no such choice (`is_ready`) are recorded at once, except for the very first of that kind: what a model does
    only once, such as initialisation, must not allocate its memory from the pool of a graph.

    Gradients accumulate in tensors that live as long as this object, as a graph requires. Parameters get them back
    after the optimizer has set `.grad` to None.

    Args:
        step: takes a batch on the device, accumulates gradients and returns a scalar. Which kernels it launches may
            depend only on the shapes in the batch, not on random numbers of the host, say. A step that waits for the
            device is always run eagerly.
        parameters: the trained ones.
        warn: called with a message if the step waits for the device.
        is_ready: whether a batch is of a kind that can be recorded at first sight; by default none is.
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
        self._parameters = list(parameters)
        self._gradients: list[torch.Tensor] = []
        self._flat = torch.empty(0)
        self._all_in_one = nn.Parameter(self._flat)  # stands for all parameters: its gradient is all of theirs
        self._recordings: dict[_Shape, Recording | None] = {}
        self._pool: Any = None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Run one step on one batch.

        Raises:
            RunError: the step cannot be recorded (it waits for the device, say), or the graphs use up the memory.
        """
        shape = tuple((name, tensor.shape) for name, tensor in batch.items())
        is_ready = self._is_ready(batch)
        at_first_sight = is_ready and self._kind_has_run
        self._kind_has_run |= is_ready
        if not self._recordable:
            return self._run_eagerly(batch)
        if not self._gradients:
            return self._first(batch)
        self._restore_gradients()
        if shape not in self._recordings and not at_first_sight:
            self._recordings[shape] = None  # seen once
            return self._run_eagerly(batch)
        recording = self._recordings.get(shape) or self._record(batch)
        self._recordings[shape] = recording
        copy_batch(recording.inputs, batch)
        recording.replay()
        return recording.loss.clone()

    def _run_eagerly(self, batch: Batch) -> torch.Tensor:
        try:
            return self._step(batch)
        except torch.OutOfMemoryError as error:
            if any(self._recordings.values()):
                raise RunError(_OUT_OF_MEMORY) from error
            raise

    def _first(self, batch: Batch) -> torch.Tensor:
        """Run the very first step, and move its gradients into one tensor."""
        loss, reason = _watched(self._step, batch)
        if reason is not None:
            # A failed recording would leave the device unusable.
            self._recordable = False
            self._warn(f"no CUDA graphs: this model's step waits for the device ({reason})")
            return loss
        # All gradients are views of one tensor, which a single kernel clears. Zeros stand for those that this batch
        # lacks: a longer one may have them.
        sizes = [parameter.numel() for parameter in self._parameters]
        spare = self._parameters[0].new_zeros(-sum(sizes) % _COLUMNS)
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in self._parameters]
        self._flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), spare])
        parts = self._flat[: sum(sizes)].split(sizes)
        self._gradients = [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]
        self._all_in_one = nn.Parameter(self._flat.detach())
        self._all_in_one.grad = self._flat
        self._assign_gradients()
        return loss

    @property
    def holds_gradients(self) -> bool:
        """Whether all gradients are in one tensor, which `clip` needs; not so if the step cannot be recorded."""
        return self._recordable

    def clip(self, most: float) -> torch.Tensor:
        """Clip all gradients like `torch.nn.utils.clip_grad_norm_`, in a few kernels.

        Returns:
            Their global L2 norm before clipping.
        """
        # Row by row first: torch reduces to a single number in a single thread block, which takes 12 µs for the biases
        # of bert-base.
        rows = torch.linalg.vector_norm(self._flat.view(-1, _COLUMNS), dim=1)
        norm = torch.linalg.vector_norm(rows)
        nn.utils.clip_grads_with_norm_([self._all_in_one], most, norm, foreach=False)
        return norm

    def _restore_gradients(self) -> None:
        """Reattach zeroed gradients if the optimizer has set every `.grad` to None, at the start of a window."""
        if self._parameters[0].grad is not self._gradients[0]:
            self._flat.zero_()
            self._assign_gradients()

    def _assign_gradients(self) -> None:
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _record(self, batch: Batch) -> Recording:
        inputs = cloned(batch)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # One pool for all graphs: no two run at the same time, and none reads what another left. Other threads (a data
        # loader's) may call CUDA during a recording.
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss = self._into_fresh_gradients(inputs)
        except torch.OutOfMemoryError as error:
            raise RunError(_OUT_OF_MEMORY) from error
        except RuntimeError as error:  # the device is unusable from now on, even without graphs
            raise RunError(
                f"this model's step cannot be recorded as a CUDA graph ({in_one_line(error)}); use --cuda_graphs false"
            ) from error
        return Recording(inputs, graph.replay, loss)

    def _into_fresh_gradients(self, inputs: Batch) -> torch.Tensor:
        """Run a step whose gradients are accumulated by a few kernels at its end, instead of one per parameter."""
        for parameter in self._parameters:
            parameter.grad = None
        loss = self._step(inputs)
        pairs = [(kept, parameter.grad) for kept, parameter in zip(self._gradients, self._parameters, strict=True)]
        kept, fresh = zip(*((kept, gradient) for kept, gradient in pairs if gradient is not None), strict=True)
        torch._foreach_add_(kept, fresh)
        self._assign_gradients()
        return loss


def drops_layers(model: nn.Module) -> bool:
    """Return whether the model skips whole layers in training (LayerDrop, Fan et al., 2020, as BART's and OPT's).

    The host decides which, so a graph would skip those of its recording for ever.
    """
    config = unwrapped(model).config
    return any(getattr(config, name, 0) for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"))


def cloned(batch: Batch) -> Batch:
    """Copy a batch; tensors that share memory also do so in the copy."""
    return copy.deepcopy(dict(batch))


def copy_batch(inputs: Batch, batch: Batch) -> None:
    """Copy a batch into the inputs, in as few kernels as possible: one if all tensors share one storage."""
    ours, theirs = _piece(inputs), _piece(batch)
    if ours is not None and theirs is not None and len(ours) == len(theirs):
        ours.copy_(theirs)
        return
    for kind in {tensor.dtype for tensor in batch.values()}:
        names = [name for name, tensor in batch.items() if tensor.dtype == kind]
        torch._foreach_copy_([inputs[name] for name in names], [batch[name] for name in names])


def _piece(batch: Batch) -> torch.Tensor | None:
    """Return the bytes of the storage that all tensors share; None if they do not share one."""
    first = next(iter(batch.values()))
    memory = first.untyped_storage()
    if any(tensor.untyped_storage().data_ptr() != memory.data_ptr() for tensor in batch.values()):
        return None
    return torch.empty(0, dtype=torch.uint8, device=first.device).set_(memory)


def _watched(step: Step, batch: Batch) -> tuple[torch.Tensor, str | None]:
    """Run a step; return its loss, and torch's warning if the host waited for the device, else None."""
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
        elif "debug mode" not in line:  # not about the mode itself: pass it on
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return loss, reason
