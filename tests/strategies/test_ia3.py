"""(IA)³ by way of PEFT: what it scales, where it starts, and models that PEFT has no choice for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, TaskType, get_peft_model
from peft.tuners.ia3 import IA3Layer
from torch import nn

from peftlib.errors import UserError
from peftlib.strategies.ia3 import IA3
from tests.strategies.classifiers import ARCHITECTURES, classifier, logits


def scaled(model: nn.Module) -> dict[str, bool]:
    """The modules with a vector, by their name in the base model -> whether it scales what they read."""
    prefix = "base_model.model."
    return {n.removeprefix(prefix): one.is_feedforward for n, one in model.named_modules() if isinstance(one, IA3Layer)}


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "big_bird", "funnel"])
def test_is_the_identity_at_the_start(tiny_folder: Callable[..., Path], architecture: str) -> None:
    model, head = classifier(tiny_folder(architecture))
    before = logits(model)
    adapted = IA3().apply(model, head)
    assert torch.equal(before, logits(adapted))
    assert set(scaled(adapted).values()) == {True, False}, "outputs are scaled, and inputs"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta"])
def test_scales_what_stock_peft_scales(tiny_folder: Callable[..., Path], architecture: str) -> None:
    stock = get_peft_model(classifier(tiny_folder(architecture))[0], IA3Config(task_type=TaskType.SEQ_CLS))
    ours = IA3().apply(*classifier(tiny_folder(architecture)))
    heads = ("classifier", "pooler.dense")
    expected = {name: inputs for name, inputs in scaled(stock).items() if not name.startswith(heads)}
    assert scaled(ours) == expected != {}


def test_flags_choose_by_ending(tiny_folder: Callable[..., Path]) -> None:
    method = IA3(ia3_target_modules="value", ia3_feedforward_modules="layer.0.output.dense")
    found = scaled(method.apply(*classifier(tiny_folder("bert"))))
    layers = {f"bert.encoder.layer.{layer}.attention.self.value": False for layer in (0, 1)}
    assert found == layers | {"bert.encoder.layer.0.output.dense": True}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"ia3_target_modules": "qery"},
            r"^--ia3_target_modules qery: .* has no qery at all; its Linear layers",
        ),
        ({"ia3_feedforward_modules": "classifier"}, r"^--ia3_feedforward_modules classifier: .* outside its head; its"),
    ],
)
def test_what_matches_nothing_is_refused(tiny_folder: Callable[..., Path], flags: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        IA3(**flags).apply(*classifier(tiny_folder("bert")))


def test_no_names_at_all_are_refused() -> None:
    with pytest.raises(UserError, match=r"^--ia3_target_modules is empty; give name endings"):
        IA3(ia3_target_modules=" ,")


def test_a_model_that_nobody_has_a_choice_for_needs_the_flags(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("modernbert"))
    with pytest.raises(UserError, match=r"^--method ia3: PEFT has no default layers for modernbert; give --ia3"):
        IA3().apply(model, head)
    found = scaled(IA3(ia3_target_modules="Wqkv", ia3_feedforward_modules="mlp.Wo").apply(model, head))
    assert {(name.rpartition(".")[2], inputs) for name, inputs in found.items()} == {("Wqkv", False), ("Wo", True)}
