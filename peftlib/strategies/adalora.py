"""AdaLoRA through PEFT: low-rank updates P Λ Q whose ranks are allocated to the layers during training.

Zhang et al., 2023 (https://arxiv.org/abs/2303.10512). Every layer starts with rank `init_r`. The least important
singular values of all layers together are set to 0, more and more of them, until `target_r` per layer are left on
average (`rank_allocation.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from peftlib.errors import UserError
from peftlib.strategies.base import StepHook, Strategy, refuse_wrong_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained


@dataclass(frozen=True)
class AdaLoRA(Strategy):
    """Train low-rank updates whose ranks differ between layers, and the new classification head."""

    _argument_group_name: ClassVar[str] = "--method adalora"
    # Well above LoRA's: singular values start at 0, and their factors are small.
    default_learning_rate: ClassVar[float] = 1e-2
    named_by: ClassVar[tuple[str, ...]] = ("adalora_target_r",)

    adalora_init_r: int = field(default=12, metadata={"help": "adalora: rank of each layer's update at first"})
    adalora_target_r: int = field(default=8, metadata={"help": "adalora: mean rank of the layers' updates at the end"})
    adalora_alpha: float = field(default=32.0, metadata={"help": "adalora: the update is scaled by alpha / init_r"})
    adalora_dropout: float = field(default=0.1, metadata={"help": "adalora: dropout probability on the input of A"})
    adalora_target_modules: str = field(
        default="all-linear",
        metadata={"help": "adalora: modules to adapt, a list of name endings such as query,value, or all-linear"},
    )
    adalora_tinit: float = field(
        default=0.15,
        metadata={"help": "adalora: updates before ranks begin to fall; below 1, as a share of the run's updates"},
    )
    adalora_tfinal: float = field(
        default=0.5,
        metadata={"help": "adalora: updates at the end with the final ranks; below 1, as a share of the run's updates"},
    )
    adalora_deltaT: float = field(
        default=0.01,
        metadata={"help": "adalora: updates between two allocations; below 1, as a share of the run's updates"},
    )
    adalora_orth_reg_weight: float = field(
        default=0.5, metadata={"help": "adalora: coefficient of the penalty on factors that are not orthogonal"}
    )

    def __post_init__(self) -> None:
        start, end = self.adalora_init_r, self.adalora_target_r
        if not 1 <= end < start:
            raise UserError(
                f"--adalora_target_r {end} --adalora_init_r {start}: the target must be at least 1 and below the "
                "initial rank; for a constant rank use --method lora"
            )
        if not 0 < self.adalora_alpha < math.inf:
            raise UserError(f"--adalora_alpha {self.adalora_alpha:g}: must be greater than 0 and finite")
        if not 0 <= self.adalora_dropout < 1:
            raise UserError(f"--adalora_dropout {self.adalora_dropout:g}: must be in 0 <= p < 1")
        if not 0 <= (weight := self.adalora_orth_reg_weight) < math.inf:
            raise UserError(f"--adalora_orth_reg_weight {weight:g}: must be at least 0, and finite")
        for name in ("adalora_tinit", "adalora_tfinal", "adalora_deltaT"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value >= 1 and value != int(value)):
                raise UserError(f"--{name} {value:g}: must be a number of updates, or below 1 a share of the run's")
        if max(self.adalora_tinit, self.adalora_tfinal) < 1 <= self.adalora_tinit + self.adalora_tfinal:
            raise UserError(
                f"--adalora_tinit {self.adalora_tinit:g} --adalora_tfinal {self.adalora_tfinal:g}: must be less than 1 "
                "together, as ranks fall in between"
            )
        refuse_wrong_targets("--adalora_target_modules", self.adalora_target_modules)

    @classmethod
    def named(cls, flags: Mapping[str, Any]) -> str:
        return f"AdaLoRA r={flags['adalora_target_r']}" if "adalora_target_r" in flags else "AdaLoRA"

    def _apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        from functools import partial

        from peft import AdaLoraConfig

        from peftlib.strategies.wrapping import wrap_targets

        # The schedule follows in `step_hook`, which knows the run's length; PEFT demands one here. `rank_pattern` stays
        # empty, so that all triplets are saved, and the best state may be one from before the last allocation.
        config = partial(
            AdaLoraConfig,
            init_r=self.adalora_init_r,
            target_r=self.adalora_target_r,
            lora_alpha=self.adalora_alpha,
            lora_dropout=self.adalora_dropout,
            orth_reg_weight=self.adalora_orth_reg_weight,
            total_step=1,
        )
        ranks, targets = ("--adalora_init_r", self.adalora_init_r), self.adalora_target_modules
        return wrap_targets(model, head, config, ranks, ("--adalora_target_modules", targets))

    def step_hook(self, model: Trained, steps: int) -> StepHook:
        from peftlib.strategies.rank_allocation import RankAllocation

        first, last = _updates(self.adalora_tinit, steps), _updates(self.adalora_tfinal, steps)
        interval = max(1, _updates(self.adalora_deltaT, steps))
        if first + last >= steps:
            raise UserError(
                f"--adalora_tinit {self.adalora_tinit:g} --adalora_tfinal {self.adalora_tfinal:g}: {first} and {last} "
                f"of the run's {steps} updates leave none in which ranks fall; use smaller numbers, or shares below 1"
            )
        config: Any = model.peft_config["default"]
        config.total_step, config.tinit, config.tfinal, config.deltaT = steps, first, last, interval
        return RankAllocation(
            model, target=self.adalora_target_r, first=first, final=steps - last, interval=interval,
            penalty=self.adalora_orth_reg_weight,
        )  # fmt: skip


def _updates(number: float, steps: int) -> int:
    """A number of updates as it was given, or as a share of all."""
    return int(round(number * steps, 6)) if number < 1 else int(number)  # .29 of 100 is 28.999999999999996
