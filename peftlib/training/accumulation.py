"""Split the loss of an update over micro-batches and processes without changing its gradient."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from peftlib.evaluation.losses import losses


def weighted_loss(
    logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Compute the loss of a micro-batch, each example weighted by its share of the window.

    With weights 1/N for the N examples of a window, the losses of its micro-batches on all processes add up to the
    window's mean loss, however it is split. With class weights, the weights are shares in a weighted mean, and the
    whole loss of an example has its own class's weight, the smoothed part included.

    Args:
        logits: shape (B, classes), any float type; the loss is computed in fp32.
        labels: see `losses`.
        weight: fp32, shape (B,).
        smoothing: see `losses`.

    Returns:
        A scalar.
    """
    return (losses(logits.float(), labels, smoothing) * weight).sum()


def backward(accelerator: Accelerator, loss: torch.Tensor) -> None:
    """Accumulate the gradient of a micro-batch's share of the window's loss.

    `Accelerator.backward` would divide by the number of accumulation steps, even if the window has fewer micro-batches;
    the weights in `weighted_loss` normalise already, over all processes.
    """
    scaler = accelerator.scaler
    (loss if scaler is None else scaler.scale(loss)).backward()
