"""Freeze and count a model's parameters, and copy the trained ones out and back in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from peftlib.errors import UserError, in_one_line

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class ParameterCount:
    """Number of trained parameters.

    `total` is the size of the base model with its classification head, before a method adds anything: the same
    denominator for every method, while PEFT's own count includes the adapter.
    """

    trainable: int
    total: int

    @classmethod
    def of(cls, base_size: int, model: nn.Module) -> ParameterCount:
        """Count the trainable parameters of `model`, whose base had `base_size` scalars before a method was applied."""
        return cls(sum(parameter.numel() for _, parameter in trained(model)), base_size)

    @property
    def ratio(self) -> float:
        """`trainable / total`; above 1 only for an adapter larger than its base model."""
        return self.trainable / self.total


def head_of(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of a classifier's head, as far as the model shows them.

    These are those outside the encoder, and a pooler in it that the checkpoint lacked (one of masked-language modelling
    does): `from_pretrained` marks the parameters that it has read. `modeling.load_classifier` needs no such mark.

    Raises:
        UserError: the marks are gone, so that a pooler may be new or not: `copy.deepcopy` loses them.
    """
    prefix = f"{model.base_model_prefix}."
    parameters = dict(model.named_parameters())
    read = {name for name, parameter in parameters.items() if getattr(parameter, "_is_hf_initialized", False)}
    poolers = {name for name in parameters if name not in read and name.startswith(prefix) and "pool" in name}
    if poolers and not read:
        if getattr(model.config, "_name_or_path", ""):
            raise UserError(
                "whether the model's pooler is new is not known any more (copy.deepcopy loses it): apply the method to "
                "the model of from_pretrained itself, or with head=peftlib.strategies.parameters.head_of(that model)"
            )
        poolers = set()  # not from a checkpoint: its pooler is as random as its encoder
    return frozenset(name for name in parameters if name in poolers or not name.startswith(prefix))


def train_only(model: nn.Module, trains: Callable[[str], bool]) -> list[str]:
    """Freeze all parameters but those whose name satisfies `trains`; return the trainable names in model order."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))
    return [name for name, _ in trained(model)]


def freeze_unread(model: _Model, inputs: Mapping[str, torch.Tensor], warn: Callable[[str], None]) -> _Model:
    """Freeze trainable parameters that no logit depends on (BigBird's pooler, Luke's entity embeddings).

    They would never change, but count as trained, and take up space in the optimizer and in checkpoints.

    Args:
        model: from a strategy; changed in place.
        inputs: a batch as in training: BigBird switches its attention for good if it is shorter.
        warn: called with a line if the model cannot run here, on the CPU; on its own device and precision it may.
    """
    was_training = model.training
    model.eval()  # LoHa and LoKr may drop whole layers in training mode
    try:
        logits = model(**inputs).logits
    except Exception as error:
        reason = in_one_line(error, named=True)
        warn(f"which parameters no logit depends on is not known, the model cannot compute on the CPU: {reason}")
        return model
    finally:
        model.train(was_training)
    read = _leaves(logits)
    for _, parameter in trained(model):
        if parameter not in read:
            parameter.requires_grad_(False)
    return model


def _leaves(output: torch.Tensor) -> set[torch.Tensor]:
    """The leaves of a tensor's autograd graph; a backward pass would find them too, but compute all gradients."""
    leaves, seen, waiting = set(), set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):  # an AccumulateGrad node
                leaves.add(node.variable)
            waiting += [successor for successor, _ in node.next_functions]
    return leaves


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the (name, parameter) pairs that require gradients, in model order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


class TrainedGroup(NamedTuple):
    """Trained parameters whose names differ only in the layer's number.

    Attributes:
        name: with * in place of that number, and without PEFT's additions to the base model's names.
        tensors: number of parameters.
        shape: shape of each of them.
        in_head: whether they belong to the classification head.
    """

    name: str
    tensors: int
    shape: tuple[int, ...]
    in_head: bool

    @property
    def scalars(self) -> int:
        """Number of scalars in all tensors together."""
        return self.tensors * math.prod(self.shape)


def trained_groups(model: nn.Module, head: frozenset[str]) -> list[TrainedGroup]:
    """Group the trained parameters, in model order, with the head's last.

    Args:
        head: names of the head's parameters in the base model.
    """
    counts: dict[tuple[bool, str, tuple[int, ...]], int] = {}
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    names = {parameter: name for name, parameter in base.named_parameters()}
    for name, parameter in trained(model):
        # Prompts belong to PEFT's wrapper, not to the base model.
        plain = re.sub(r"\.(modules_to_save|default|base_layer)(?=\.|$)", "", names.get(parameter, name))
        pattern = re.sub(r"\.\d+(?=\.)", ".*", plain)
        key = plain in head, pattern, tuple(parameter.shape)
        counts[key] = counts.get(key, 0) + 1
    groups = [TrainedGroup(name, tensors, shape, in_head) for (in_head, name, shape), tensors in counts.items()]
    return sorted(groups, key=lambda group: group.in_head)


def size(model: nn.Module) -> int:
    """Return the number of scalars in all parameters, with shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def trained_in_fp32(model: nn.Module) -> None:
    """Check that every trained parameter is fp32.

    Master weights in half precision lose small updates, and the fp16 gradient scaler refuses to unscale them
    ("Attempting to unscale FP16 gradients") only after the first step; this fails before the optimizer exists.

    Raises:
        TypeError: one is not.
    """
    wrong = [f"{name} ({parameter.dtype})" for name, parameter in trained(model) if parameter.dtype != torch.float32]
    if wrong:
        raise TypeError(f"trained parameters must be fp32, these are not: {', '.join(wrong[:5])}")


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy the trained parameters, the only ones that a run changes, to the CPU."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained(model)}


@torch.no_grad()
def load_trained_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Restore the parameters from `trained_state`.

    Raises:
        KeyError: `state` does not hold exactly the trained parameters.
    """
    parameters = dict(trained(model))
    if parameters.keys() != state.keys():
        odd = sorted(parameters.keys() ^ state.keys())
        raise KeyError(f"the saved state and the model differ in {len(odd)} trained parameters, first {odd[0]}")
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
