"""Wrap a classifier with PEFT: where its layers go, and one-line errors for targets that match nothing."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peftlib.errors import UserError
from peftlib.strategies.base import names_in

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel


@contextlib.contextmanager
def without_asides() -> Iterator[None]:
    """Silence warnings that PEFT emits regardless of use; real ones, for instance of missing tensors, still show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from PEFT and transformers about each other
        # From LN tuning's own layers; BOFT without its CUDA kernel, and its defaults; SHiRA's sparse tensors.
        for start in ("Unsupported layer type", "Failed to load the CUDA extension", "Setting boft_n", "Sparse inv"):
            warnings.filterwarnings("ignore", start, UserWarning)
        yield


def wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Wrap the model with PEFT's layers, with all trainable parameters in fp32.

    Raises:
        ValueError: PEFT cannot add such layers to this model.
    """
    from peft import get_peft_model

    with without_asides():
        wrapped: PeftModel = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # PEFT keeps `modules_to_save` in the base model's precision
    return wrapped


def wrap_targets(
    model: PreTrainedModel,
    head: frozenset[str],
    config: Callable[..., PeftConfig],
    rank: tuple[str, int],
    targets: tuple[str, str],
) -> PeftModel:
    """Wrap the model with low-rank updates, and train its head.

    Args:
        head: names of the head's parameters.
        config: makes PEFT's configuration; only the layers and the head are missing.
        rank: the rank's flag and value.
        targets: the flag and its value, a list of name endings or all-linear.

    Raises:
        UserError: the model has no head, or no such layers, or none of this rank.
    """
    from peft import TaskType

    from peftlib.strategies.adapter import head_modules

    if not head:
        raise UserError(f"this {model.config.model_type} model has no classification head to train")
    modules, names, flag = head_modules(model, head), names_in(targets[1]), " ".join(targets)
    refuse_rank(*rank, model, modules)
    refuse_what_matches_nothing(model, modules, names, flag)
    whole = config(
        task_type=TaskType.SEQ_CLS,
        target_modules="all-linear" if names == ["all-linear"] else names,
        exclude_modules=but_for(modules),
        modules_to_save=modules,
    )
    try:
        return wrap(model, whole)
    except ValueError as error:
        if "target module" not in str(error).lower():  # "... is not supported", for instance a normalisation layer
            raise
        raise UserError(f"{flag}: some of these modules cannot be adapted; {linears_of(model)}") from error


def refuse_rank(flag: str, rank: int, model: PreTrainedModel, head: list[str]) -> None:
    """Refuse a rank above that of all layers that may be adapted: it would cost time and memory, and gain nothing.

    Args:
        head: names of the head's modules, which are not adapted.

    Raises:
        UserError: names the flag and the highest rank.
    """
    from transformers.pytorch_utils import Conv1D  # GPT-2's Linear layers

    adaptable = [module for module in outside(model, head).values() if is_linear(module) or isinstance(module, Conv1D)]
    widths = [min(module.weight.shape) for module in adaptable]
    if widths and rank > max(widths):
        raise UserError(f"{flag} {rank}: this {model.config.model_type} model has no layer of rank above {max(widths)}")


def spare_from_decay(model: nn.Module, name: str) -> None:
    """Exempt parameters from weight decay, for instance scale factors: it would shrink them, and what they scale, to 0.

    Args:
        name: PEFT's attribute name of these parameters.
    """
    for whole, parameter in model.named_parameters():
        if f".{name}." in whole:
            parameter._no_weight_decay = True  # type: ignore[attr-defined]


def outside(model: nn.Module, head: list[str]) -> dict[str, Any]:
    """Return name -> module for all modules outside the head.

    Args:
        head: names of the head's modules, see `adapter.head_modules`.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if not any(name == part or name.startswith(f"{part}.") for part in head)
    }


def but_for(head: list[str]) -> str:
    """Return PEFT's `exclude_modules` for the head's modules.

    The head is trained in full. PEFT excludes only `classifier` and `score` by itself; `all-linear` would adapt
    DistilBERT's `pre_classifier` or DeBERTa's `pooler`, whose initial weights are random.
    """
    return rf"(.*\.)?({'|'.join(map(re.escape, head))})(\..*)?"


def refuse_what_matches_nothing(model: PreTrainedModel, head: list[str], targets: list[str], flag: str) -> None:
    """Check that every target matches a module: PEFT accepts one match, so a typo would train less than asked for.

    Args:
        head: names of the head's modules, which are not adapted.
        targets: name endings; `all-linear` is always valid.
        flag: the flag with its value, for the message.

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
    """Return whether an entry of PEFT's `target_modules` matches a module's name."""
    return f".{name}".endswith(f".{target}")


def linears_of(model: nn.Module) -> str:
    """Describe the possible targets, for messages."""
    endings = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module)})
    return f"its Linear layers end in {', '.join(endings)}"


def is_linear(module: nn.Module) -> bool:
    """Return whether the module is an `nn.Linear`; PEFT's layers, which wrap one, are not."""
    from torch import nn

    return isinstance(module, nn.Linear)
