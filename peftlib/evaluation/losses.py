"""The loss of each example, in training and in evaluation."""

from __future__ import annotations

import torch
from torch import nn


def losses(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Compute each example's loss, as transformers' models do for the three problem types.

    Single-label: cross-entropy in nats. Multi-label: the mean over classes of the binary cross-entropy. Regression:
    squared error.

    Label smoothing (Szegedy et al., 2016, https://arxiv.org/abs/1512.00567, section 7) mixes the true distribution with
    the uniform one: over all classes, as torch's `cross_entropy` and transformers' `LabelSmoother` do, or in
    multi-label tasks over the two answers of each decision.

    Args:
        logits: fp32, shape (B, classes).
        labels: class indices, int64, shape (B,); multi-label indicators, int64, shape (B, classes); or scores, of a
            float type, shape (B,), for logits of shape (B, 1).
        smoothing: share of the uniform distribution, 0 to 1; scores are never smoothed.

    Returns:
        fp32, shape (B,).
    """
    if labels.dim() == 2:
        targets = labels.float()
        if smoothing:
            targets = targets * (1 - smoothing) + smoothing / 2
        decisions = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return decisions.mean(dim=-1)
    if labels.is_floating_point():
        return nn.functional.mse_loss(logits.squeeze(-1), labels, reduction="none")
    return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
