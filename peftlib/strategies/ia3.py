"""(IA)³ through PEFT: learned vectors scale keys, values and the inputs of the feed-forward output layers.

Liu et al., 2022 (https://arxiv.org/abs/2205.05638), section 3.3. PEFT's default for BERT-like models also scales the
input of the attention's output layer, since its name has the same ending as the feed-forward one's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from peftlib.errors import UserError
from peftlib.strategies.base import Strategy, names_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained

# For models that PEFT's table lacks: modules whose outputs are scaled, and modules whose inputs are.
_MODULES: dict[str, tuple[list[str], list[str]]] = {
    "albert": (["key", "value"], ["ffn_output"]),
    "big_bird": (["key", "value"], ["output.dense"]),
    "camembert": (["key", "value"], ["output.dense"]),
    "distilbert": (["k_lin", "v_lin"], ["lin2"]),
    "electra": (["key", "value"], ["output.dense"]),
    "funnel": (["k_head", "v_head"], ["linear_2"]),
    "mpnet": (["attn.k", "attn.v"], ["output.dense"]),
    "xlm-roberta": (["key", "value"], ["output.dense"]),
}


@dataclass(frozen=True)
class IA3(Strategy):
    """Train a scaling vector for each key, value and output layer, and the new classification head."""

    _argument_group_name: ClassVar[str] = "--method ia3"
    default_learning_rate: ClassVar[float] = 1e-2
    # As for BitFit, which trains about as many parameters.
    default_dropout: ClassVar[float | None] = 0.0

    ia3_target_modules: str = field(
        default="auto",
        metadata={
            "help": "ia3: modules whose outputs are scaled, a comma-separated list of module-name endings such as "
            "key,value; auto uses PEFT's default for the model"
        },
    )
    ia3_feedforward_modules: str = field(
        default="auto",
        metadata={"help": "ia3: modules whose inputs are scaled, such as output.dense; auto likewise"},
    )

    def __post_init__(self) -> None:
        for name in ("ia3_target_modules", "ia3_feedforward_modules"):
            if not names_in(getattr(self, name)):
                raise UserError(f"--{name} is empty; give name endings such as key,value, or leave it out")

    def _apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        from peft import IA3Config, TaskType

        from peftlib.strategies.adapter import head_modules
        from peftlib.strategies.wrapping import (
            but_for,
            linears_of,
            refuse_what_matches_nothing,
            spare_from_decay,
            wrap,
        )

        modules, kind = head_modules(model, head), model.config.model_type
        outputs, inputs = _choice(kind)
        if (asked := self.ia3_target_modules) != "auto":
            outputs = names_in(asked)
            refuse_what_matches_nothing(model, modules, outputs, f"--ia3_target_modules {asked}")
        if (asked := self.ia3_feedforward_modules) != "auto":
            inputs = names_in(asked)
            refuse_what_matches_nothing(model, modules, inputs, f"--ia3_feedforward_modules {asked}")
        if not outputs + inputs:
            raise UserError(
                f"--method ia3: PEFT has no default layers for {kind}; give --ia3_target_modules and "
                f"--ia3_feedforward_modules ({linears_of(model)})"
            )
        config = IA3Config(
            task_type=TaskType.SEQ_CLS,
            target_modules=outputs + inputs,
            feedforward_modules=inputs,
            exclude_modules=but_for(modules),
            modules_to_save=modules,
        )
        wrapped = wrap(model, config)
        spare_from_decay(wrapped, "ia3_l")
        return wrapped


def _choice(model_type: str) -> tuple[list[str], list[str]]:
    """The default modules whose outputs, and whose inputs, are scaled: PEFT's, else ours; empty if there are none."""
    from peft.utils import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    if model_type in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        inputs = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[model_type]
        both = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[model_type]
        return [name for name in both if name not in inputs], list(inputs)
    return _MODULES.get(model_type, ([], []))
