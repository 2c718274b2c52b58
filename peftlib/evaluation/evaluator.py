"""Logits for a whole split, over any number of processes, each example exactly once."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from peftlib.data.collation import split_inputs
from peftlib.data.sources import are_hidden
from peftlib.evaluation.losses import losses
from peftlib.evaluation.predictions import answers_of


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on one split.

    Attributes:
        metrics: name -> value, `loss` (the mean of `losses`) among them; nothing where the labels are hidden.
        logits: fp32, shape (examples, classes), or (examples, 1) of scores, in the split's order.
        labels: as `EncodedExamples` has them.
        seconds: wall time of the forward passes and of gathering them.
    """

    metrics: dict[str, float]
    logits: np.ndarray
    labels: np.ndarray
    seconds: float


def predict(accelerator: Accelerator, model: nn.Module, loader: DataLoader, examples: int) -> np.ndarray:
    """Forward passes over a split.

    Args:
        loader: prepared, over `WindowBatches` without a seed.
        examples: the size of the split.

    Returns:
        Logits in the split's order, fp32, shape (examples, classes), the same on every process.

    Raises:
        RuntimeError: an example was left out or seen twice.
    """
    was_training = model.training
    model.eval()
    logits, places = [], []
    with torch.inference_mode():
        for batch in loader:
            inputs, targets = split_inputs(batch)
            logits.append(model(**inputs).logits.float())
            # A filler (weight 0) repeats an example for the sake of equal batch counts: it is no answer.
            places.append(torch.where(targets.weight > 0, targets.example, -1))
    model.train(was_training)
    # One gather at the end: no process waits for another, or for the device, inside the loop.
    local = accelerator.pad_across_processes(torch.cat(places), pad_index=-1)
    place = accelerator.gather(local).cpu().numpy()
    values = accelerator.gather(accelerator.pad_across_processes(torch.cat(logits))).cpu().numpy()
    kept = place >= 0
    if not np.array_equal(np.sort(place[kept]), np.arange(examples)):
        raise RuntimeError(f"evaluation saw {kept.sum()} answers for {examples} examples")
    ordered = np.empty((examples, values.shape[1]), dtype=np.float32)
    ordered[place[kept]] = values[kept]
    return ordered


def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    labels: np.ndarray,
    metrics: tuple[str, ...],
) -> Evaluation:
    """Score a model on a split.

    Args:
        labels: in the split's order, as `EncodedExamples` has them.
        metrics: names from `evaluation/metrics.py`.
    """
    start = time.perf_counter()
    logits = predict(accelerator, model, loader, len(labels))
    seconds = time.perf_counter() - start
    if are_hidden(labels):
        return Evaluation({}, logits, labels, seconds)
    from peftlib.evaluation.metrics import score  # imports `evaluate`, which takes a second

    loss = losses(torch.from_numpy(logits), torch.from_numpy(labels)).mean().item()
    values = score(metrics, answers_of(logits, labels), labels)
    return Evaluation({**values, "loss": loss}, logits, labels, seconds)
