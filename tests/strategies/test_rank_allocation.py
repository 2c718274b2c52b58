"""AdaLoRA's allocation against PEFT's own, and what it does with equal scores, skipped updates and checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.adalora import SVDLinear
from torch import nn

from peftlib.strategies.adalora import AdaLoRA
from peftlib.strategies.parameters import trained, trained_state
from peftlib.strategies.rank_allocation import Budget, RankAllocation
from tests.strategies.classifiers import classifier, sentences

STEPS = 20
METHOD = AdaLoRA(adalora_tinit=3, adalora_tfinal=5, adalora_deltaT=2)


def adapted(folder: Path, method: AdaLoRA = METHOD) -> tuple[PeftModel, Any]:
    model = method.apply(*classifier(folder)).eval()  # without dropout
    return model, method.step_hook(model, STEPS)


def backward(model: nn.Module, labels: bool = False) -> None:
    """Gradients of the mean loss over four sentences; PEFT's model adds its penalty where it gets labels."""
    answers = torch.tensor([0, 1, 1, 0])
    output = model(**sentences(), **({"labels": answers} if labels else {}))
    (output.loss if labels else nn.functional.cross_entropy(output.logits, answers)).backward()


def advance(model: nn.Module, hook: Any, steps: range, skipped: torch.Tensor | None = None) -> None:
    """Updates as the loop makes them, with plain gradient descent."""
    optimizer = torch.optim.SGD([parameter for _, parameter in trained(model)], lr=0.5)
    for step in steps:
        backward(model)
        hook.before_step()
        optimizer.step()
        hook.after_step(step, skipped)
        optimizer.zero_grad()


def singular_values(model: nn.Module) -> torch.Tensor:
    return torch.cat([one.lora_E["default"].flatten() for one in model.modules() if isinstance(one, SVDLinear)])


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_budget_is_constant_then_cubic_then_constant() -> None:
    budget = Budget(initial=120, target=80, first=3, final=13, interval=2)
    assert [budget.at(step) for step in (1, 3, 8, 13, 20)] == [120, 120, 85, 80, 80]
    assert all(budget.at(step) >= budget.at(step + 1) for step in range(1, 20))
    assert [step for step in range(1, 20) if budget.is_due(step)] == [4, 6, 8, 10, 12]


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_the_penalty_s_gradient_is_that_of_peft_s_loss(tiny_folder: Callable[..., Path], architecture: str) -> None:
    model, hook = adapted(tiny_folder(architecture))
    ours, theirs = model, copy.deepcopy(model)
    backward(ours)
    before = {name: parameter.grad.clone() for name, parameter in trained(ours)}
    hook.before_step()
    backward(theirs, labels=True)
    for (name, mine), (_, other) in zip(trained(ours), trained(theirs), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
        assert torch.equal(mine.grad, before[name]) != ("lora_A" in name or "lora_B" in name)


def test_without_a_penalty_gradients_stay(tiny_folder: Callable[..., Path]) -> None:
    model, hook = adapted(tiny_folder("bert"), AdaLoRA(adalora_orth_reg_weight=0))
    backward(model)
    before = {name: parameter.grad.clone() for name, parameter in trained(model)}
    hook.before_step()
    assert same(before, {name: parameter.grad for name, parameter in trained(model)})


def test_orthonormal_factors_add_nothing(tiny_folder: Callable[..., Path]) -> None:
    model, hook = adapted(tiny_folder("bert"))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SVDLinear):
                layer.lora_A["default"].copy_(torch.eye(*layer.lora_A["default"].shape))
                layer.lora_B["default"].copy_(torch.eye(*layer.lora_B["default"].shape))
    for _, parameter in trained(model):
        parameter.grad = torch.zeros_like(parameter)
    hook.before_step()
    assert all(not parameter.grad.any() for _, parameter in trained(model))


def test_triplets_are_those_that_peft_chooses(tiny_folder: Callable[..., Path]) -> None:
    """Step by step: importances, budget, and what is set to 0, to the end of the run."""
    model, hook = adapted(tiny_folder("bert"))
    ours, theirs = model, copy.deepcopy(model)
    optimizers = [torch.optim.SGD([one for _, one in trained(model)], lr=0.5) for model in (ours, theirs)]
    zeros = []
    for step in range(1, STEPS + 1):
        for number, model in enumerate((ours, theirs)):
            backward(model)
            optimizers[number].step()
        hook.after_step(step, None)
        theirs.base_model.update_and_allocate(step)
        zeros.append(int((singular_values(ours) == 0).sum()))
        torch.testing.assert_close(singular_values(ours), singular_values(theirs), rtol=1e-4, atol=1e-6)
        assert torch.equal(singular_values(ours) == 0, singular_values(theirs) == 0)
        for optimizer in optimizers:
            optimizer.zero_grad()
        theirs.load_state_dict(ours.state_dict())  # rounding must not add up
    layers = sum(isinstance(one, SVDLinear) for one in ours.modules())
    assert zeros[:3] == [0, 0, 0] and 0 < zeros[3] < zeros[-1]
    assert zeros[STEPS - 6 :] == [4 * layers] * 6  # ranks of 12, of which 8 remain on average


def test_equal_scores_exclude_no_more_than_the_budget(tiny_folder: Callable[..., Path]) -> None:
    model, hook = adapted(tiny_folder("bert"))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SVDLinear):
                layer.lora_E["default"].fill_(1.0)
    hook.after_step(STEPS, None)  # no gradient has arrived: all importances are 0
    values = singular_values(model)
    assert int((values == 0).sum()) == len(values) // 3


def test_a_skipped_update_leaves_the_importances(tiny_folder: Callable[..., Path]) -> None:
    model, hook = adapted(tiny_folder("bert"))
    advance(model, hook, range(1, 4), skipped=torch.zeros(()))
    before = hook.state()
    for _, parameter in trained(model):
        parameter.grad = torch.full_like(parameter, torch.inf)
    hook.after_step(4, torch.ones(()))
    assert same(before, hook.state())
    assert any(tensor.any() for tensor in before.values())
    assert int((singular_values(model) == 0).sum()) == hook.budget.initial - hook.budget.at(4) > 0


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 14, 15, 16, 19])
def test_what_is_restored_goes_on_alike(tiny_folder: Callable[..., Path], stop: int) -> None:
    whole, hook = adapted(tiny_folder("bert"))
    advance(whole, hook, range(1, STEPS + 1))
    first, before = adapted(tiny_folder("bert"))
    advance(first, before, range(1, stop + 1))
    second = copy.deepcopy(first)
    after = METHOD.step_hook(second, STEPS)
    after.load_state(before.state())
    advance(second, after, range(stop + 1, STEPS + 1))
    assert same(trained_state(second), trained_state(whole))
    assert same(after.state(), hook.state())
    assert "masked" in after.state()


def test_a_run_that_is_extended_chooses_anew(tiny_folder: Callable[..., Path]) -> None:
    model, hook = adapted(tiny_folder("bert"))
    advance(model, hook, range(1, STEPS + 1))
    chosen = hook.state()["masked"]
    longer = METHOD.step_hook(model, 2 * STEPS)
    # Other importances than those that the choice came from.
    others = {name: torch.rand_like(tensor) for name, tensor in hook.state().items() if name != "masked"}
    longer.load_state(hook.state() | others)
    longer.after_step(STEPS + 1, None)
    assert "masked" not in longer.state()
    advance(model, longer, range(STEPS + 2, 2 * STEPS + 1))
    anew = longer.state()["masked"]
    assert anew.sum() == chosen.sum() and not torch.equal(anew, chosen)
    assert torch.equal(singular_values(model) == 0, anew)


def test_what_is_frozen_as_unread_is_left_alone(tiny_folder: Callable[..., Path]) -> None:
    model = METHOD.apply(*classifier(tiny_folder("bert")))
    unread = model.base_model.model.bert.encoder.layer[1].output.dense
    for name, parameter in unread.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)
    hook = METHOD.step_hook(model, STEPS)
    assert isinstance(hook, RankAllocation)
    layers = sum(isinstance(one, SVDLinear) for one in model.modules()) - 1
    assert (hook.budget.initial, hook.budget.target) == (12 * layers, 8 * layers)
    before = copy.deepcopy(unread.state_dict())
    advance(model, hook, range(1, STEPS + 1))
    assert same(before, unread.state_dict())
