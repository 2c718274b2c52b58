"""Freezing, counting, and taking out and putting back what trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peftlib.strategies.parameters import (
    ParameterCount,
    TrainedGroup,
    load_trained_state,
    size,
    train_only,
    trained,
    trained_groups,
    trained_in_fp32,
    trained_state,
)
from tests.strategies.classifiers import ARCHITECTURES, METHODS, classifier

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]
NUMBERS = {"0.weight": 12, "0.bias": 4, "1.weight": 4, "1.bias": 4, "2.weight": 8}

subsets = st.sets(st.sampled_from(NAMES))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


@given(subsets, subsets)
def test_train_only_trains_those_and_freezes_the_rest_whatever_was_before(before: set[str], wanted: set[str]) -> None:
    network = model()
    train_only(network, before.__contains__)
    assert train_only(network, wanted.__contains__) == [name for name in NAMES if name in wanted]
    assert [name for name, _ in trained(network)] == [name for name in NAMES if name in wanted]


@given(subsets)
def test_the_count_adds_up(wanted: set[str]) -> None:
    network = model()
    train_only(network, wanted.__contains__)
    count = ParameterCount.of(size(network), network)
    assert count.trainable == sum(NUMBERS[name] for name in wanted)
    assert count.total == 32
    assert count.ratio == count.trainable / 32


def test_shared_parameters_count_once() -> None:
    shared = nn.Linear(3, 3, bias=False)
    network = nn.Sequential(shared, shared)
    assert size(network) == 9
    assert ParameterCount.of(size(network), network).trainable == 9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_groups_are_all_that_trains(tiny_folder: Callable[..., Path], architecture: str, method: str) -> None:
    network, head = classifier(tiny_folder(architecture))
    base, in_head = size(network), {name: parameter.numel() for name, parameter in network.named_parameters()}
    adapted = METHODS[method].apply(network, head)
    groups = trained_groups(adapted, head)
    assert sum(group.scalars for group in groups) == ParameterCount.of(base, adapted).trainable
    assert sum(group.tensors for group in groups) == len(trained(adapted))
    assert len(groups) < len(trained(adapted)) or method in ("head", "prompt_tuning")
    assert not [group.name for group in groups if {"default", "base_layer"} & {*group.name.split(".")}]
    heads = [group for group in groups if group.in_head]
    assert groups[len(groups) - len(heads) :] == heads, "the head comes last"
    expected = {name for name in head if method != "bitfit-without-head" or "bias" in name}
    assert {group.name for group in heads} == expected, "by their names in the base model"
    assert sum(group.scalars for group in heads) == sum(in_head[name] for name in expected)


def test_layers_are_one_group_for_each_shape() -> None:
    layers = [nn.ModuleList([nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)]) for _ in range(5)]
    network = nn.ModuleDict({"layer": nn.ModuleList(layers), "scale": nn.ParameterList([nn.Parameter(torch.ones(()))])})
    assert trained_groups(network, frozenset({"scale.0"})) == [
        TrainedGroup("layer.*.*.weight", 5, (4, 3), False),
        TrainedGroup("layer.*.*.weight", 5, (3, 4), False),
        TrainedGroup("scale.0", 1, (), True),
    ]
    assert [group.scalars for group in trained_groups(network, frozenset())] == [60, 60, 1]


@given(subsets)
def test_the_trained_state_goes_back_bit_for_bit_and_touches_nothing_else(wanted: set[str]) -> None:
    network = model()
    train_only(network, wanted.__contains__)
    state = trained_state(network)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items()), "the state is a copy"
    load_trained_state(network, state)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name] if name in wanted else before[name] + 1.0)


@given(subsets, subsets)
def test_a_state_of_other_parameters_is_refused(taken: set[str], wanted: set[str]) -> None:
    network = model()
    train_only(network, taken.__contains__)
    state = trained_state(network)
    train_only(network, wanted.__contains__)
    if taken == wanted:
        load_trained_state(network, state)
    else:
        with pytest.raises(KeyError):
            load_trained_state(network, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_only_what_trains_has_to_be_fp32(dtype: torch.dtype) -> None:
    network = model()
    network[0].to(dtype)
    train_only(network, lambda name: not name.startswith("0."))
    trained_in_fp32(network)
    network[0].bias.requires_grad_(True)
    with pytest.raises(TypeError, match=r"0\.bias"):
        trained_in_fp32(network)
