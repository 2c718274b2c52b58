"""Head only (linear probing): the baseline that every other method has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftlib.strategies.base import Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained


@dataclass(frozen=True)
class HeadOnly(Strategy):
    """Train the new classification head on a frozen encoder."""

    default_learning_rate: ClassVar[float] = 3e-3

    @classmethod
    def named(cls, flags: Mapping[str, Any]) -> str:
        return "Head"

    def _apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        from peftlib.strategies.adapter import smallest_linear
        from peftlib.strategies.parameters import train_only

        smallest_linear(model, head)  # fails before training if the result could not be saved
        train_only(model, head.__contains__)
        return model

    def _save(self, model: Trained, head: frozenset[str], folder: Path) -> None:
        from peftlib.strategies.adapter import save_as_adapter

        save_as_adapter(model, head, folder, bias="none")

    def load(self, model: PreTrainedModel, folder: Path) -> Trained:
        from peftlib.strategies.adapter import load_plain

        return load_plain(model, folder)
