"""What an answer costs: the loss of each example, in training and in evaluation."""

from __future__ import annotations

import torch
from torch import nn


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Per example the cross-entropy in nats, or the squared error of a score.

    Where an example may have several classes, each is a decision of its own, and the loss the mean of their binary
    cross-entropies: what transformers' models compute for the three types of problem.

    Args:
        logits: fp32, shape (B, classes).
        labels: class indices, int64, shape (B,); for each class whether it is one of the example's, int64, shape
            (B, classes); or scores, of a float type, shape (B,), for logits of shape (B, 1).

    Returns:
        fp32, shape (B,).
    """
    if labels.dim() == 2:
        decisions = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        return decisions.mean(dim=-1)
    if labels.is_floating_point():
        return nn.functional.mse_loss(logits.squeeze(-1), labels, reduction="none")
    return nn.functional.cross_entropy(logits, labels, reduction="none")
