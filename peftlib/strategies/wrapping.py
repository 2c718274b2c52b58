"""PEFT's wrapper around a classifier: where its layers go, and what it refuses, in one line."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from peftlib.errors import UserError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel


@contextlib.contextmanager
def without_asides() -> Iterator[None]:
    """Leave out what PEFT warns of whatever one does: other warnings, of missing tensors say, come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT and transformers, about each other
        # LN tuning's own layers; BOFT's kernel, and what it does without; SHiRA's sparse tensors.
        for start in ("Unsupported layer type", "Failed to load the CUDA extension", "Setting boft_n", "Sparse inv"):
            warnings.filterwarnings("ignore", start, UserWarning)
        yield


def wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """The model with PEFT's layers, of which what trains is in fp32.

    Raises:
        ValueError: PEFT cannot put such layers into this model.
    """
    from peft import get_peft_model

    with without_asides():
        wrapped: PeftModel = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # PEFT leaves `modules_to_save` in the base's precision
    return wrapped


def spare_from_decay(model: nn.Module, name: str) -> None:
    """Mark factors that start at 1, whatever their shape: weight decay would take them, and what they scale, to 0.

    Args:
        name: of PEFT's parameters in their layers.
    """
    for whole, parameter in model.named_parameters():
        if f".{name}." in whole:
            parameter._no_weight_decay = True  # type: ignore[attr-defined]


def outside(model: nn.Module, head: list[str]) -> dict[str, Any]:
    """The modules that are neither the head's nor in it, by name.

    Args:
        head: the names of the modules that hold it, see `adapter.head_modules`.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if not any(name == one or name.startswith(f"{one}.") for one in head)
    }


def but_for(head: list[str]) -> str:
    """PEFT's `exclude_modules` for the modules that hold the head.

    The head trains in full. PEFT guesses only `classifier` and `score`; `all-linear` would put its layers on
    DistilBERT's `pre_classifier` or DeBERTa's `pooler`, which start from random weights.
    """
    return rf"(.*\.)?({'|'.join(map(re.escape, head))})(\..*)?"


def refuse_what_matches_nothing(model: PreTrainedModel, head: list[str], targets: list[str], flag: str) -> None:
    """PEFT is content with one match: a typing error would train less than was asked for.

    Args:
        head: the names of the modules that hold it, which get none of PEFT's layers.
        targets: endings of names; `all-linear` passes.
        flag: with its value, for the message.

    Raises:
        UserError: a target matches no module outside the head.
    """
    encoder = outside(model, head)
    for target in targets:
        if target != "all-linear" and not any(ends_in(name, target) for name in encoder):
            where = "outside its head" if any(ends_in(name, target) for name, _ in model.named_modules()) else "at all"
            raise UserError(
                f"{flag}: this {model.config.model_type} model has no {target} {where}; {linears_of(model)}"
            )


def ends_in(name: str, target: str) -> bool:
    """Whether a module is one that PEFT's `target_modules` means by this."""
    return f".{name}".endswith(f".{target}")


def linears_of(model: nn.Module) -> str:
    """What can be named, for a message."""
    endings = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module)})
    return f"its Linear layers end in {', '.join(endings)}"


def is_linear(module: nn.Module) -> bool:
    """A Linear, PEFT's layers being none."""
    from torch import nn

    return isinstance(module, nn.Linear)
