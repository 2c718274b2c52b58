"""AdamW and its schedule."""

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
    """AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101) over the trained parameters.

    Args:
        learning_rate: the peak rate.
        weight_decay: decoupled decay of matrices; biases, normalisation weights and DoRA's magnitudes never decay, nor
            does what a method has marked with `_no_weight_decay`.
        device: where the updates will be made. CPUs and GPUs get one kernel for many parameters (bert-base's biases on
            a CPU: a quarter of the time), which on GPUs looks for fp16's overflows itself: the host need not wait.

    Raises:
        TypeError: a trained parameter is not fp32.
    """
    trained_in_fp32(model)
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in trained(model):
        never = parameter.dim() < 2 or name.endswith("_bias")  # Funnel's have two dimensions
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
    """What the kernel of a group works on, an entry for each parameter; `steps` are the parts of `counts`."""

    parameters: list[torch.Tensor]
    means: list[torch.Tensor]
    squares: list[torch.Tensor]
    steps: list[torch.Tensor]
    counts: torch.Tensor


class FusedAdamW(torch.optim.AdamW):
    """torch's fused AdamW to the bit, which keeps its lists of tensors.

    torch's own collects and sorts them at every step: with bert-base's biases most of the host's time for it.
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float) -> None:
        self._lists: dict[int, _Lists] = {}
        super().__init__(groups, lr=learning_rate, fused=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._lists = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of the parameters that have a gradient."""
        # fp16's scaler leaves these two here: what the gradients are multiplied by, and whether one overflowed.
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
                lists.counts.sub_(overflow)  # the kernel has left everything as it was

    def _collect(self, group: dict[str, Any]) -> _Lists:
        parameters: list[torch.Tensor] = []
        means: list[torch.Tensor] = []
        squares: list[torch.Tensor] = []
        steps: list[torch.Tensor] = []
        self._init_group(group, parameters, [], means, squares, [], steps)
        counts = torch.stack(steps)  # one kernel counts for all
        steps = list(counts.unbind())
        for parameter, step in zip(parameters, steps, strict=True):
            self.state[parameter]["step"] = step
        return _Lists(parameters, means, squares, steps, counts)


def _same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(operator.is_, left, right))


def build_scheduler(
    optimizer: torch.optim.Optimizer, name: str, steps: int, warmup: int | None, warmup_ratio: float
) -> LRScheduler:
    """The learning rate over all `steps` updates.

    It is not handed to `accelerator.prepare`, which would step it once per process: the loop steps it once per
    update that was really made, so it ends where it should on any number of processes.

    Args:
        name: "linear", "cosine", "constant" or "constant_with_warmup".
        warmup: updates over which the rate rises from 0; None takes `warmup_ratio` of all.
    """
    rising = warmup_steps(name, steps, warmup, warmup_ratio)

    def factor(step: int) -> float:
        return _SHAPES[name](step, rising, steps)

    return LambdaLR(optimizer, factor)


def warmup_steps(name: str, steps: int, warmup: int | None, warmup_ratio: float) -> int:
    """The updates over which the rate rises, of all `steps`; arguments as in `build_scheduler`."""
    if name == "constant":
        return 0
    if warmup is None:  # the first update of a warm-up has a rate of 0: one that is shorter than an update is none
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


# The shares of the peak rate that transformers' schedules of these names give. Its own module loads Trainer's tools
# and PEFT, half a second that a run would wait for its first update.
_SHAPES: dict[str, Callable[[int, int, int], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
}
