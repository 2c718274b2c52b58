"""AdaLoRA's rank allocation: which triplets of singular value and vectors a growing part of the run has to do without.

Zhang et al., 2023 (https://arxiv.org/abs/2303.10512), sections 3.2 and 3.3, as in the authors' code and PEFT's
`RankAllocator`, but without waiting for the device, and with exactly as many triplets as the budget allows where scores
are equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.adalora import SVDLinear

_ADAPTER = "default"  # PEFT's name of the adapter
#: Of the moving averages of sensitivity and uncertainty (equations 9 and 10), as in PEFT.
_BETAS = (0.85, 0.85)


@dataclass(frozen=True)
class Budget:
    """The number of triplets after each update (equation 12): constant, then falling by a cube, then constant again.

    Attributes:
        initial: triplets at first, over all layers.
        target: triplets at the end.
        first: updates before it begins to fall.
        final: the update after which it is the target.
        interval: updates between two allocations.
    """

    initial: int
    target: int
    first: int
    final: int
    interval: int

    def at(self, step: int) -> int:
        """Return the number of triplets after update `step`, counted from 1."""
        if step <= self.first:
            return self.initial
        if step >= self.final:
            return self.target
        left = 1 - (step - self.first) / (self.final - self.first)
        return int((self.initial - self.target) * left**3 + self.target)

    def is_due(self, step: int) -> bool:
        """Return whether triplets are chosen after this update."""
        return self.first < step < self.final and step % self.interval == 0


class RankAllocation:
    """Keep the importance of every triplet, and set the singular values of the least important ones to 0.

    A `StepHook`. An update that fp16 skips leaves the importances as they are; it counts for the budget, which so ends
    as planned. After the last allocation, its choice holds for the rest of the run.

    Args:
        model: from `AdaLoRA.apply`, on its device; its triplets are changed in place.
        target: mean rank of a layer at the end.
        first, final, interval: see `Budget`.
        penalty: coefficient of the orthogonality penalty (equation 4, where it is gamma).
    """

    def __init__(self, model: PeftModel, *, target: int, first: int, final: int, interval: int, penalty: float) -> None:
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, SVDLinear) and layer.lora_E[_ADAPTER].requires_grad  # not frozen as unread
        }
        self._values, self._rights, self._lefts = (
            [getattr(layer, part)[_ADAPTER] for layer in layers.values()] for part in ("lora_E", "lora_A", "lora_B")
        )
        self._parameters: list[torch.Tensor] = [*self._values, *self._rights, *self._lefts]
        self._names = [f"{name}.{part}" for part in ("lora_E", "lora_A", "lora_B") for name in layers]
        ranks = [len(values) for values in self._values]
        self._ranks, self._penalty = ranks, penalty
        self.budget = Budget(sum(ranks), target * len(ranks), first, final, interval)
        self._sensitivity = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._uncertainty = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._masked: torch.Tensor | None = None  # by the last allocation; shape (triplets,)

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the gradient of the penalty, the mean of ‖A Aᵀ - I‖ and ‖Bᵀ B - I‖ (Frobenius) over all matrices.

        PEFT adds the penalty itself to a loss that its model computes. It depends on no example, so its gradient is
        added once per update, the same on every process. As in PEFT the norm is not squared.
        """
        if not self._penalty:
            return
        weight = self._penalty / (len(self._rights) + len(self._lefts))
        alike = defaultdict(list)  # of one shape: multiplied together
        for matrices, transposed in ((self._rights, False), (self._lefts, True)):
            for matrix in matrices:
                if matrix.grad is not None:
                    pair = (matrix.mT, matrix.grad.mT) if transposed else (matrix, matrix.grad)
                    alike[pair[0].shape].append(pair)
        for pairs in alike.values():
            vectors = torch.stack([matrix for matrix, _ in pairs])
            excess = vectors @ vectors.mT - torch.eye(vectors.size(1), device=vectors.device)
            norms = torch.linalg.matrix_norm(excess, keepdim=True)
            added = torch.where(norms > 0, 2 * weight / norms, 0.0) * (excess @ vectors)
            torch._foreach_add_([gradient for _, gradient in pairs], list(added.unbind()))

    @torch.no_grad()
    def after_step(self, step: int, skipped: torch.Tensor | None) -> None:
        """Update the importances, and set what the budget excludes to 0.

        Args:
            step: number of the update, counted from 1.
            skipped: fp16 only: a scalar that is not 0 if the update was skipped.
        """
        if step >= self.budget.final:
            if self._masked is None:
                self._masked = self._least_important(step)
            self._set_to_zero(self._masked)
            return
        self._masked = None  # the last choice of a shorter run that this one extends
        self._observe(skipped)
        if self.budget.is_due(step):
            self._set_to_zero(self._least_important(step))

    def _observe(self, skipped: torch.Tensor | None) -> None:
        """Update the moving averages of |w · gradient| and of its deviation (equations 8 to 10)."""
        beta1, beta2 = _BETAS
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in self._parameters]
        found = list(torch._foreach_mul(self._parameters, gradients))
        torch._foreach_abs_(found)
        sensitivity = list(torch._foreach_mul(self._sensitivity, beta1))
        torch._foreach_add_(sensitivity, found, alpha=1 - beta1)
        torch._foreach_sub_(found, sensitivity)
        torch._foreach_abs_(found)
        uncertainty = list(torch._foreach_mul(self._uncertainty, beta2))
        torch._foreach_add_(uncertainty, found, alpha=1 - beta2)
        if skipped is not None:
            keep = skipped != 0
            sensitivity = [torch.where(keep, *pair) for pair in zip(self._sensitivity, sensitivity, strict=True)]
            uncertainty = [torch.where(keep, *pair) for pair in zip(self._uncertainty, uncertainty, strict=True)]
        self._sensitivity, self._uncertainty = sensitivity, uncertainty

    def _scores(self) -> torch.Tensor:
        """Return the triplets' importance (equation 7, with equation 11 for s), shape (triplets,)."""
        scores = torch._foreach_mul(self._sensitivity, self._uncertainty)
        layers = len(self._ranks)
        values, rights, lefts = scores[:layers], scores[layers : 2 * layers], scores[2 * layers :]
        triplets = zip(values, rights, lefts, strict=True)
        return torch.cat([value.view(-1) + right.mean(1) + left.mean(0) for value, right, left in triplets])

    def _least_important(self, step: int) -> torch.Tensor:
        """Choose the triplets that the budget excludes; a mask of shape (triplets,)."""
        scores = self._scores()
        masked = torch.zeros_like(scores, dtype=torch.bool)
        excluded = self.budget.initial - self.budget.at(step)
        return masked.index_fill_(0, torch.argsort(scores, stable=True)[:excluded], True)

    def _set_to_zero(self, masked: torch.Tensor) -> None:
        for values, mask in zip(self._values, masked.split(self._ranks), strict=True):
            values.masked_fill_(mask.view(-1, 1), 0.0)

    def state(self) -> dict[str, torch.Tensor]:
        """Copy what a checkpoint needs to the CPU."""
        state = {} if self._masked is None else {"masked": self._masked}
        for kind, averages in (("sensitivity", self._sensitivity), ("uncertainty", self._uncertainty)):
            state |= {f"{kind}.{name}": average for name, average in zip(self._names, averages, strict=True)}
        return {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` has returned."""
        device = self._sensitivity[0].device
        self._sensitivity, self._uncertainty = (
            [state[f"{kind}.{name}"].to(device) for name in self._names] for kind in ("sensitivity", "uncertainty")
        )
        self._masked = state["masked"].to(device) if "masked" in state else None
