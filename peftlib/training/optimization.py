"""AdamW and learning rate schedules."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from peftlib.strategies.parameters import trained, trained_in_fp32


def build_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, device: torch.device | None = None
) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101) for the trained parameters.

    Args:
        learning_rate: the peak rate.
        weight_decay: decoupled, for matrices only: biases, normalisation weights, DoRA's magnitudes and other vectors
            never decay, nor do parameters that a method has marked with `_no_weight_decay`.
        device: the model's. CPUs and CUDA GPUs get the fused kernel (a quarter of the time for bert-base's biases on a
            CPU), which on GPUs also handles fp16 overflows, so that the host need not wait.

    Raises:
        TypeError: a trained parameter is not fp32.
    """
    trained_in_fp32(model)
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in trained(model):
        never = parameter.dim() < 2 or name.endswith("_bias")  # Funnel's biases are 2-D
        (kept if never or getattr(parameter, "_no_weight_decay", False) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if device is not None and device.type in ("cpu", "cuda"):
        return FusedAdamW(groups, learning_rate)
    return torch.optim.AdamW(groups, lr=learning_rate)


@dataclass(frozen=True)
class _Lists:
    """Arguments of the fused kernel for one group, an entry per parameter; `steps` are views of `counts`."""

    parameters: list[torch.Tensor]
    means: list[torch.Tensor]
    squares: list[torch.Tensor]
    steps: list[torch.Tensor]
    counts: torch.Tensor


class FusedAdamW(torch.optim.AdamW):
    """torch's fused AdamW, bit for bit, with cached lists of tensors.

    torch collects and sorts them at every step, which for bert-base's biases is most of the step's host time.
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float) -> None:
        self._lists: dict[int, _Lists] = {}
        super().__init__(groups, lr=learning_rate, fused=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._lists = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        # Set by GradScaler in fp16: the factor on the gradients, and whether one overflowed.
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for number, group in enumerate(self.param_groups):
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            lists = self._lists.get(number)
            if lists is None or not _same(parameters, lists.parameters):
                lists = self._lists[number] = self._collect(group)
            lists.counts.add_(1)
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                lists.parameters, [parameter.grad for parameter in parameters], lists.means, lists.squares, [],
                lists.steps, lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=False, maximize=False, grad_scale=scale, found_inf=overflow,
            )  # fmt: skip
            if overflow is not None:
                lists.counts.sub_(overflow)  # on overflow the kernel changed nothing

    def _collect(self, group: dict[str, Any]) -> _Lists:
        parameters: list[torch.Tensor] = []
        means: list[torch.Tensor] = []
        squares: list[torch.Tensor] = []
        steps: list[torch.Tensor] = []
        self._init_group(group, parameters, [], means, squares, [], steps)
        counts = torch.stack(steps)  # incremented by one kernel
        steps = list(counts.unbind())
        for parameter, step in zip(parameters, steps, strict=True):
            self.state[parameter]["step"] = step
        return _Lists(parameters, means, squares, steps, counts)


def _same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(operator.is_, left, right))


def build_scheduler(
    optimizer: torch.optim.Optimizer, name: str, steps: int, warmup: int | None, warmup_ratio: float
) -> LRScheduler:
    """Build the learning rate schedule for all `steps` updates.

    Do not pass it to `accelerator.prepare`, which would step it once per process. The loop steps it once per update
    that was not skipped, so it ends where it should on any number of processes.

    Args:
        name: "linear", "cosine", "constant" or "constant_with_warmup".
        warmup: updates over which the rate rises from 0; None takes `warmup_ratio` of `steps`.
    """
    rising = warmup_steps(name, steps, warmup, warmup_ratio)

    def factor(step: int) -> float:
        return _SHAPES[name](step, rising, steps)

    return LambdaLR(optimizer, factor)


def warmup_steps(name: str, steps: int, warmup: int | None, warmup_ratio: float) -> int:
    """Return the number of warm-up updates; arguments as in `build_scheduler`."""
    if name == "constant":
        return 0
    if warmup is None:  # the first update of a warm-up has rate 0: drop one shorter than an update
        warmup = math.ceil(steps * warmup_ratio) if steps * warmup_ratio >= 1 else 0
    return min(steps, warmup)


def _linear(step: int, rising: int, steps: int) -> float:
    return _rise(step, rising) if step < rising else max(0.0, (steps - step) / max(1, steps - rising))


def _cosine(step: int, rising: int, steps: int) -> float:
    if step < rising:
        return _rise(step, rising)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising))))


def _constant(step: int, rising: int, steps: int) -> float:
    return 1.0


def _constant_with_warmup(step: int, rising: int, steps: int) -> float:
    return _rise(step, rising) if step < rising else 1.0


def _rise(step: int, rising: int) -> float:
    return step / max(1, rising)


# The factors of transformers' schedules of the same names. Its module imports Trainer's tools and PEFT, which would
# delay a run's first update by half a second.
_SHAPES: dict[str, Callable[[int, int, int], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
}
