"""Full fine-tuning: every parameter (Devlin et al., 2019, https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from peftlib.strategies.base import Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained


@dataclass(frozen=True)
class Full(Strategy):
    """Train all parameters; the result is a plain checkpoint, not an adapter."""

    default_learning_rate: ClassVar[float] = 5e-5

    def _apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        from peftlib.strategies.parameters import train_only

        train_only(model, lambda name: True)
        return model

    def _save(self, model: Trained, head: frozenset[str], folder: Path) -> None:
        model.save_pretrained(folder)
