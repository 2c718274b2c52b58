"""All encoder layers on rows of tokens as one autograd function, so that torch keeps no graph of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from peftlib.acceleration.encoder_layer import Sums, Vectors, WholeLayer
from peftlib.acceleration.low_rank_layer import LowRankLayer


class Layers(torch.autograd.Function):
    """Run rows (T, D) through all layers. Gradients for the rows and for every layer's `trained`.

    Args:
        layers: created for this pass, as they save what backward needs. The last one may return fewer rows.
        trained: of all layers, one after the other.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layers: Sequence[WholeLayer], *trained: torch.Tensor) -> torch.Tensor:
        ctx.layers, ctx.rows = layers, rows.size(0)
        with torch.autocast(rows.device.type, enabled=False):
            for layer in layers:
                rows = layer.forward(rows)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs_rows, _, *needed = ctx.needs_input_grad
        layers, flags = ctx.layers, iter(needed)
        needs = [[next(flags) for _ in layer.trained] for layer in layers]
        lowest = 0 if needs_rows else next(place for place, need in enumerate(needs) if any(need))
        below: torch.Tensor | None = gradient.contiguous()
        found: dict[int, Sequence[torch.Tensor | None]] = {}
        with torch.autocast(gradient.device.type, enabled=False):
            frozen = [place for place in range(lowest, len(layers)) if not isinstance(layers[place], LowRankLayer)]
            last = len(layers) - 1  # apart, as its rows are the first tokens only
            groups = [place for place in frozen if place < last], [place for place in frozen if place == last]
            gathered = [
                (group, Sums([(layers[place].vectors, Vectors(*needs[place])) for place in group], rows, len(gradient)))
                for group, rows in zip(groups, (ctx.rows, len(gradient)), strict=True)
                if group
            ]
            columns = {
                place: layer_sums
                for group, sums in gathered
                for place, layer_sums in zip(group, sums.by_layer(), strict=True)
            }
            for place in reversed(range(lowest, len(layers))):
                onward = needs_rows or place > lowest
                if place in columns:
                    below = layers[place].backward(below, columns[place], onward)
                else:
                    below, found[place] = layers[place].backward_of_updates(below, onward)
            for group, sums in gathered:
                found |= dict(zip(group, sums.finish(), strict=True))
        grads = [grad for place, need in enumerate(needs) for grad in found.get(place, [None] * len(need))]
        return below, None, *_in_fp32(grads)


def _in_fp32(gradients: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Cast gradients in half precision to fp32, with a single kernel."""
    narrow = {place: grad for place, grad in enumerate(gradients) if grad is not None and grad.dtype != torch.float32}
    if narrow:
        wide = [torch.empty_like(grad, dtype=torch.float32) for grad in narrow.values()]
        torch._foreach_copy_(wide, list(narrow.values()))
        for place, grad in zip(narrow, wide, strict=True):
            gradients[place] = grad
    return gradients
