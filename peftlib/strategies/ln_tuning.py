"""LN tuning: train the normalisation layers, freeze the rest (Qi et al., 2022, https://arxiv.org/abs/2211.08682).

PEFT's LN tuning trains copies beside the original layers. Here the originals train in place, which computes the same
and is as fast as BitFit; they are converted to PEFT's format when saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftlib.errors import UserError
from peftlib.strategies.base import Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained


@dataclass(frozen=True)
class LNTuning(Strategy):
    """Train gain and bias of every normalisation layer of the encoder, and the new classification head."""

    default_learning_rate: ClassVar[float] = 3e-3
    # As for BitFit, which trains about as many parameters.
    default_dropout: ClassVar[float | None] = 0.0

    @classmethod
    def named(cls, flags: Mapping[str, Any]) -> str:
        return "LN tuning"

    def _apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        from peftlib.strategies.parameters import train_only

        normalisations = _normalisations(model, head)
        if not normalisations:
            raise UserError(
                f"--method ln_tuning: {model.config.name_or_path} ({model.config.model_type}) has no normalisation "
                "layers with weights outside its head; try --method lora"
            )
        train_only(model, lambda name: name in head or name.rpartition(".")[0] in normalisations)
        return model

    def _save(self, model: Trained, head: frozenset[str], folder: Path) -> None:
        from peft import LNTuningConfig, TaskType

        from peftlib.strategies.adapter import copy_to_wrap, head_modules, write_adapter
        from peftlib.strategies.wrapping import wrap

        config = LNTuningConfig(
            task_type=TaskType.SEQ_CLS,
            inference_mode=True,
            target_modules=sorted(_normalisations(model, head)),
            modules_to_save=head_modules(model, head),
        )
        write_adapter(wrap(copy_to_wrap(model), config), folder)

    def load(self, model: PreTrainedModel, folder: Path) -> Trained:
        from peftlib.strategies.adapter import load_plain

        return load_plain(model, folder)


def _normalisations(model: Trained, head: frozenset[str]) -> set[str]:
    """Names of the encoder's normalisation layers: LayerNorm, and models' own classes (T5LayerNorm, LlamaRMSNorm)."""
    from torch import nn

    from peftlib.strategies.adapter import head_modules
    from peftlib.strategies.wrapping import outside

    return {
        name
        for name, module in outside(model, head_modules(model, head)).items()
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Norm")
        if any(True for _ in module.parameters(recurse=False))
    }
