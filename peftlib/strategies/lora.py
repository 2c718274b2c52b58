"""LoRA through PEFT: W + (alpha / r) B A with W frozen (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

DoRA (https://arxiv.org/abs/2402.09353) and rank-stabilised scaling (https://arxiv.org/abs/2312.03732) are flags.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from peftlib.errors import UserError
from peftlib.strategies.base import Strategy, refuse_wrong_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained


@dataclass(frozen=True)
class LoRA(Strategy):
    """Train low-rank updates of Linear layers, and the new classification head."""

    _argument_group_name: ClassVar[str] = "--method lora"
    default_learning_rate: ClassVar[float] = 5e-4
    named_by: ClassVar[tuple[str, ...]] = ("lora_r",)

    lora_r: int = field(default=16, metadata={"help": "lora: rank r of the update matrices"})
    lora_alpha: float = field(
        default=32.0,
        metadata={"help": "lora: the update is scaled by alpha / r (by alpha / sqrt(r) with --use_rslora)"},
    )
    lora_dropout: float = field(default=0.1, metadata={"help": "lora: dropout probability on the input of A"})
    target_modules: str = field(
        default="all-linear",
        metadata={
            "help": "lora: modules to adapt, a comma-separated list of module-name endings such as query,value, or "
            "all-linear"
        },
    )
    use_dora: bool = field(default=False, metadata={"help": "lora: weight-decomposed LoRA (DoRA)"})
    use_rslora: bool = field(default=False, metadata={"help": "lora: rank-stabilised scaling (rsLoRA)"})

    def __post_init__(self) -> None:
        if self.lora_r < 1:
            raise UserError(f"--lora_r {self.lora_r}: the rank must be at least 1")
        if not 0 < self.lora_alpha < math.inf:
            raise UserError(f"--lora_alpha {self.lora_alpha:g}: must be greater than 0 and finite")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout {self.lora_dropout:g}: must be in 0 <= p < 1")
        refuse_wrong_targets("--target_modules", self.target_modules)

    @classmethod
    def named(cls, flags: Mapping[str, Any]) -> str:
        return f"LoRA r={flags['lora_r']}" if "lora_r" in flags else "LoRA"

    @property
    def reads_frozen_weights(self) -> bool:
        """True for DoRA, which divides by the norm of the whole weight, frozen part included (its equation 5)."""
        return self.use_dora

    def _apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        from functools import partial

        from peft import LoraConfig

        from peftlib.strategies.wrapping import wrap_targets

        config = partial(
            LoraConfig,
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
        )
        ranks, targets = ("--lora_r", self.lora_r), ("--target_modules", self.target_modules)
        return wrap_targets(model, head, config, ranks, targets)
