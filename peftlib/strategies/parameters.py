"""Parameters by name: freeze them, count them, take the trained ones out and put them back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class ParameterCount:
    """How much of a model trains.

    `total` is the size of the base model with its classification head, before a method adds anything to it:
    one denominator for every method, where PEFT's own count also holds what the adapter added.
    """

    trainable: int
    total: int

    @classmethod
    def of(cls, base_size: int, model: nn.Module) -> ParameterCount:
        """Count what trains in `model`, which a method made of a base of `base_size` scalars."""
        return cls(sum(parameter.numel() for _, parameter in trained(model)), base_size)

    @property
    def ratio(self) -> float:
        """`trainable / total`, in 0..1 (an adapter larger than its base would exceed 1)."""
        return self.trainable / self.total


def train_only(model: nn.Module, trains: Callable[[str], bool]) -> list[str]:
    """Freeze every parameter but those whose name `trains`; returns the names that train, in model order."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))
    return [name for name, _ in trained(model)]


def freeze_unread(model: _Model, inputs: Mapping[str, torch.Tensor], warn: Callable[[str], None]) -> _Model:
    """Freeze what would be trained and never change, since no logit depends on it (BigBird's pooler, Luke's entities).

    With several processes DistributedDataParallel waits for the gradient of everything that is trained.

    Args:
        model: what a strategy made; changed in place.
        inputs: a batch as training will give it: BigBird attends otherwise ever after where it is shorter.
        warn: told when the model cannot compute it, here on the CPU: on its device, in its precision, it may.
    """
    was_training = model.training
    model.eval()  # LoHa and LoKr can drop whole layers in training
    try:
        logits = model(**inputs).logits
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        warn(
            f"WARNING: which parameters no logit depends on is not known, the model cannot compute on the CPU: {reason}"
        )
        return model
    finally:
        model.train(was_training)
    read = _leaves(logits)
    for _, parameter in trained(model):
        if parameter not in read:
            parameter.requires_grad_(False)
    return model


def _leaves(output: torch.Tensor) -> set[torch.Tensor]:
    """What a tensor's gradient would reach; a backward pass would tell too, at the cost of all gradients."""
    leaves, seen, waiting = set(), set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):  # autograd's AccumulateGrad
                leaves.add(node.variable)
            waiting += [before for before, _ in node.next_functions]
    return leaves


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The (name, parameter) pairs that receive gradients, in model order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


class TrainedGroup(NamedTuple):
    """Trained parameters that differ in the number of their layer alone.

    `name` has a * in place of that number, and nothing of what PEFT puts around a parameter's name in the base model;
    `shape` is that of each of the `tensors`; `in_head` says whether they are the classification head's.
    """

    name: str
    tensors: int
    shape: tuple[int, ...]
    in_head: bool

    @property
    def scalars(self) -> int:
        """In all tensors together."""
        return self.tensors * math.prod(self.shape)


def trained_groups(model: nn.Module, head: frozenset[str]) -> list[TrainedGroup]:
    """All that trains, in model order, the head's last.

    Args:
        head: the names of its parameters in the base model.
    """
    counts: dict[tuple[bool, str, tuple[int, ...]], int] = {}
    for name, parameter in trained(model):
        plain = re.sub(r"\.(modules_to_save|default|base_layer)(?=\.|$)", "", name.removeprefix("base_model.model."))
        pattern = re.sub(r"\.\d+(?=\.)", ".*", plain)
        key = plain in head, pattern, tuple(parameter.shape)
        counts[key] = counts.get(key, 0) + 1
    groups = [TrainedGroup(name, tensors, shape, in_head) for (in_head, name, shape), tensors in counts.items()]
    return sorted(groups, key=lambda group: group.in_head)


def size(model: nn.Module) -> int:
    """The number of scalars in all parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def trained_in_fp32(model: nn.Module) -> None:
    """Raise unless every trained parameter is fp32.

    Masters in half precision lose small updates, and under fp16 the gradient scaler refuses to unscale them
    ("Attempting to unscale FP16 gradients") only after the first step; this fails before the optimizer exists.
    """
    wrong = [f"{name} ({parameter.dtype})" for name, parameter in trained(model) if parameter.dtype != torch.float32]
    if wrong:
        raise TypeError(f"trained parameters must be fp32, these are not: {', '.join(wrong[:5])}")


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies on the CPU of the trained parameters: all that a run can lose."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained(model)}


@torch.no_grad()
def load_trained_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put back what `trained_state` took.

    Raises:
        KeyError: `state` does not hold exactly the parameters that train.
    """
    parameters = dict(trained(model))
    if parameters.keys() != state.keys():
        odd = sorted(parameters.keys() ^ state.keys())
        raise KeyError(f"the saved state and the model differ in {len(odd)} trained parameters, first {odd[0]}")
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
