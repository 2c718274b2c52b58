"""Compute logits for a whole split on any number of processes, each example exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.utils.data import DataLoader

from peftlib.data.collation import split_inputs
from peftlib.data.loading import batches_of
from peftlib.data.sources import are_hidden
from peftlib.distributed import true_everywhere
from peftlib.errors import OutOfMemory
from peftlib.evaluation.losses import losses
from peftlib.evaluation.predictions import answers_of

#: Called between batches, equally often on every process; an exception from it ends the evaluation.
Between = Callable[[], None]


@dataclass(frozen=True)
class Evaluation:
    """Logits and metrics of a model on one split.

    Attributes:
        metrics: name -> value, including `loss` (the mean of `losses`); empty if the labels are hidden.
        logits: fp32, shape (examples, classes), or (examples, 1) in regression, in the split's order.
        labels: as in `EncodedExamples`.
        seconds: wall time of the forward passes and of gathering them.
    """

    metrics: dict[str, float]
    logits: np.ndarray
    labels: np.ndarray
    seconds: float


def predict(
    accelerator: Accelerator, model: nn.Module, loader: DataLoader, examples: int, between: Between | None = None
) -> np.ndarray:
    """Run the model over a split.

    Args:
        loader: prepared, over `WindowBatches` without a seed.
        examples: the size of the split.

    Returns:
        Logits in the split's order, fp32, shape (examples, classes), the same on every process.

    Raises:
        OutOfMemory: a batch did not fit into memory on some process; raised on all of them.
        RuntimeError: an example was missed or seen twice.
    """
    was_training = model.training
    logits: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    model.eval()
    try:
        with torch.inference_mode():
            fits = _answer(model, loader, logits, places, between)
    finally:
        model.train(was_training)
    if not true_everywhere(accelerator, fits):
        logits.clear()
        clear_device_cache(garbage_collection=True)  # the caller may have a checkpoint to write
        raise OutOfMemory.in_evaluation(batches_of(loader).micro_batch_size)
    # One gather at the end: inside the loop no process waits for the device or for another process.
    local = accelerator.pad_across_processes(torch.cat(places), pad_index=-1)
    place = accelerator.gather(local).cpu().numpy()
    values = accelerator.gather(accelerator.pad_across_processes(torch.cat(logits))).cpu().numpy()
    kept = place >= 0
    if not np.array_equal(np.sort(place[kept]), np.arange(examples)):
        raise RuntimeError(f"evaluation saw {kept.sum()} answers for {examples} examples")
    ordered = np.empty((examples, values.shape[1]), dtype=np.float32)
    ordered[place[kept]] = values[kept]
    return ordered


def _answer(
    model: nn.Module,
    loader: DataLoader,
    logits: list[torch.Tensor],
    places: list[torch.Tensor],
    between: Between | None,
) -> bool:
    """Collect logits and the indices of their examples (-1 for fillers); return False if memory ran out.

    Goes through all batches in any case, as `between` may communicate with other processes.
    """
    fits = True
    for number, batch in enumerate(loader):
        if number > 0 and between is not None:
            between()
        if fits:
            inputs, targets = split_inputs(batch)
            try:
                logits.append(model(**inputs).logits.float())
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                fits = False
            # A filler (weight 0) repeats an example to equalise batch counts: its logits are dropped.
            places.append(torch.where(targets.weight > 0, targets.example, -1))
    return fits


def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    labels: np.ndarray,
    metrics: tuple[str, ...],
    between: Between | None = None,
) -> Evaluation:
    """Score a model on a split.

    Args:
        labels: in the split's order, as in `EncodedExamples`.
        metrics: names from `evaluation/metrics.py`.

    Raises:
        OutOfMemory: see `predict`.
    """
    start = time.perf_counter()
    logits = predict(accelerator, model, loader, len(labels), between)
    seconds = time.perf_counter() - start
    if are_hidden(labels):
        return Evaluation({}, logits, labels, seconds)
    from peftlib.evaluation.metrics import score  # imports `evaluate`, which takes a second

    loss = losses(torch.from_numpy(logits), torch.from_numpy(labels)).mean().item()
    values = score(metrics, answers_of(logits, labels), labels)
    return Evaluation({**values, "loss": loss}, logits, labels, seconds)
