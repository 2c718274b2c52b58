"""LoRA by way of PEFT: where its updates go, how they start, and what its flags do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from peftlib.errors import UserError
from peftlib.strategies.lora import LoRA
from tests.strategies.classifiers import ARCHITECTURES, classifier, logits, trained_names


def updated_modules(model: nn.Module) -> dict[str, LoraLayer]:
    """The modules with low-rank updates, by their name in the base model."""
    prefix = "base_model.model."
    return {n.removeprefix(prefix): module for n, module in model.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_is_the_identity_at_the_start(tiny_folder: Callable[..., Path], architecture: str, use_rslora: bool) -> None:
    model, head = classifier(tiny_folder(architecture))
    before = logits(model)
    after = logits(LoRA(use_rslora=use_rslora).apply(model, head))
    assert torch.equal(before, after)
    assert before.abs().max() > 0


def test_a_user_sees_no_warning_of_libraries_about_each_other(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("bert"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LoRA().apply(model, head)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "modernbert"])
def test_updates_every_linear_of_the_encoder_and_trains_the_head_in_full(
    tiny_folder: Callable[..., Path], architecture: str
) -> None:
    model, head = classifier(tiny_folder(architecture))
    heads = {name.rpartition(".")[0] for name in head}
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    values = {name: parameter.numel() for name, parameter in model.named_parameters() if name in head}
    adapted = LoRA().apply(model, head)

    assert updated_modules(adapted).keys() == linears - heads
    assert linears & heads, "the head has a Linear that could have been updated"
    in_full = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name}
    assert len(in_full) == len(values)
    assert sum(in_full.values()) == sum(values.values())


def test_target_modules_chooses_by_ending(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("bert"))
    adapted = LoRA(target_modules="query, value").apply(model, head)
    layers = [f"bert.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")]
    assert sorted(updated_modules(adapted)) == layers


def test_a_target_module_that_is_not_there_is_refused_with_those_that_are(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("distilbert"))
    with pytest.raises(UserError, match=r"^--target_modules query: .* has no query at all; .*lin1, lin2.*q_lin") as e:
        LoRA(target_modules="query").apply(model, head)
    assert "\n" not in str(e.value)


def test_the_head_alone_is_no_target(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("distilbert"))
    with pytest.raises(UserError, match=r"--target_modules pre_classifier: .* has no pre_classifier outside its head;"):
        LoRA(target_modules="pre_classifier").apply(model, head)


@pytest.mark.parametrize("targets", ["q_lin,query", "q_lin,v_line", "q_lin,_lin"])
def test_every_target_module_has_to_be_there(tiny_folder: Callable[..., Path], targets: str) -> None:
    """PEFT is content with one that is."""
    model, head = classifier(tiny_folder("distilbert"))
    with pytest.raises(UserError, match=f"^--target_modules {targets}: .* has no {targets.split(',')[1]} at all; its"):
        LoRA(target_modules=targets).apply(model, head)


def test_a_normalisation_is_no_target(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("bert"))
    with pytest.raises(UserError, match=r"^--target_modules query,LayerNorm: some of .* cannot be adapted; its Linear"):
        LoRA(target_modules="query,LayerNorm").apply(model, head)


def test_the_flags_reach_peft(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("bert"))
    adapted = LoRA(lora_r=4, lora_alpha=8, lora_dropout=0.25, use_dora=True, use_rslora=True).apply(model, head)
    layers = updated_modules(adapted).values()
    assert {layer.r["default"] for layer in layers} == {4}
    assert {layer.scaling["default"] for layer in layers} == {8 / 4**0.5}  # rank-stabilised: alpha / sqrt(r)
    assert {layer.lora_dropout["default"].p for layer in layers} == {0.25}
    assert {layer.use_dora["default"] for layer in layers} == {True}
    assert any("lora_magnitude_vector" in name for name in trained_names(adapted))


def test_the_defaults_are_the_documented_ones(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("bert"))
    config = LoRA().apply(model, head).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.1)
    assert (config.task_type, config.use_dora, config.use_rslora) == ("SEQ_CLS", False, False)


def test_trained_parameters_are_fp32_on_a_base_in_half_precision(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("bert"))
    adapted = LoRA().apply(model.half(), head)
    dtypes = {(parameter.requires_grad, parameter.dtype) for parameter in adapted.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.float16)}


def test_a_model_without_a_head_is_refused(tiny_folder: Callable[..., Path]) -> None:
    model, _ = classifier(tiny_folder("bert"))
    with pytest.raises(UserError, match="no classification head"):
        LoRA().apply(model, frozenset())


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"lora_r": 0}, "--lora_r 0"),
        ({"lora_alpha": 0}, "--lora_alpha 0"),
        ({"lora_alpha": -1.5}, "--lora_alpha -1.5"),
        ({"lora_dropout": 1.0}, "--lora_dropout 1"),
        ({"lora_dropout": -0.1}, "--lora_dropout -0.1"),
        ({"lora_dropout": float("nan")}, "--lora_dropout nan"),
        ({"lora_alpha": float("nan")}, "--lora_alpha nan"),
        ({"target_modules": " , "}, "--target_modules"),
        ({"target_modules": "all-linear,query"}, "--target_modules"),
        ({"target_modules": "query,all-linear"}, "--target_modules"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, object], flag: str) -> None:
    with pytest.raises(UserError, match=f"^{flag}"):
        LoRA(**fields)


def test_a_rank_that_no_layer_has_is_refused(tiny_folder):
    model, head = classifier(tiny_folder())
    gpt, head = classifier(tiny_folder("gpt2"))  # whose layers are no Linear ones, but its head, of rank 2, is
    assert any("c_attn.lora_A" in name for name in trained_names(LoRA(lora_r=32).apply(gpt, head)))
    with pytest.raises(UserError, match=r"--lora_r 33: this gpt2 model has no layer of rank above 32"):
        LoRA(lora_r=33).apply(*classifier(tiny_folder("gpt2")))
    with pytest.raises(UserError, match=r"--lora_r 33: this bert model has no layer of rank above 32"):
        LoRA(lora_r=33).apply(model, head)
    assert LoRA(lora_r=32).apply(model, head)
