"""The loss of one update, spread over micro-batches and processes without changing its gradient."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from peftlib.evaluation.losses import losses


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The loss of a micro-batch, each example weighted by its share in the window.

    With weights 1/N over the N examples of a window, the sum over its micro-batches and processes is the
    window's mean loss, whatever the cut.

    Args:
        logits: shape (B, classes), any float type; the loss is computed in fp32.
        labels: as `losses` takes them.
        weight: fp32, shape (B,).

    Returns:
        A scalar.
    """
    return (losses(logits.float(), labels) * weight).sum()


def backward(accelerator: Accelerator, loss: torch.Tensor) -> None:
    """Add the gradient of one micro-batch's share of the window's loss.

    Not by `Accelerator.backward`, which divides by the accumulation steps, however many micro-batches the window really
    has: the weights in `weighted_loss` have done that already. They know all processes too, over which DDP averages, so
    that is undone here.
    """
    if accelerator.num_processes > 1:
        loss = loss * accelerator.num_processes
    scaler = accelerator.scaler
    (loss if scaler is None else scaler.scale(loss)).backward()
