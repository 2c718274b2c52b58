"""A LoRA layer in one function against PEFT's own."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from peftlib.acceleration import accelerate_model
from peftlib.acceleration.dropout import use_cheap_dropout
from peftlib.acceleration.frozen_matrices import Bf16Matrix, Fp16Matrix, FrozenMatrix, TiledMatrix
from peftlib.acceleration.low_rank import (
    _LowRankLinear,
    _PackedLowRankLinear,
    _QuickLinear,
    use_one_function_per_layer,
)
from peftlib.strategies import STRATEGIES
from tests.strategies.classifiers import classifier, sentences


def adapted(folder, **flags):
    """Return PEFT's LoRA model with updates that are not zero, and a copy that uses our functions."""
    model, head = classifier(folder)
    plain = STRATEGIES["lora"](**flags).apply(model, head).eval()
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    quick = copy.deepcopy(plain)
    use_one_function_per_layer(quick)
    return plain, quick


def functions_used(model) -> int:
    """Count the layers that compute in one function, in a forward pass over some sentences."""
    calls = []
    apply = _LowRankLinear.apply
    try:
        _LowRankLinear.apply = lambda *given: calls.append(given) or apply(*given)
        model(**sentences())
    finally:
        _LowRankLinear.apply = apply
    return len(calls)


def gradients(model, precision: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        logits = model(**sentences()).logits
    nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 0, 1])).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("flags", [{}, {"target_modules": "all-linear", "use_rslora": True, "lora_r": 3}])
def test_logits_and_gradients_are_peft_s(tiny_folder, architecture, flags):
    plain, quick = adapted(tiny_folder(architecture), **flags)
    assert functions_used(plain) == 0
    assert functions_used(quick) == sum(type(module) is _QuickLinear for module in quick.modules()) > 0
    expected, got = gradients(plain), gradients(quick)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        rounding = 1e-5 * gradient.abs().max().item() + 1e-6  # of sums in another order, which may cancel
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=rounding, msg=name)


def test_in_bf16_gradients_stay_fp32_and_differ_by_rounding(tiny_folder):
    plain, quick = adapted(tiny_folder("bert"))
    expected, got = gradients(plain, torch.bfloat16), gradients(quick, torch.bfloat16)
    for name, gradient in expected.items():
        assert got[name].dtype == torch.float32
        assert (got[name] - gradient).norm() <= 0.05 * gradient.norm() + 1e-6, name


def test_merged_weights_are_not_those_that_were_packed_before():
    """PEFT changes `weight.data` in place, which does not bump the version counter."""
    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=100
    )
    torch.manual_seed(0)
    model = get_peft_model(
        BertForSequenceClassification(config), LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")
    ).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    accelerate_model(model, torch.device("cpu"), "bf16")
    ids = torch.randint(0, 100, (4, 12))

    def logits(model):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model(input_ids=ids).logits.float()

    adapted = logits(model)
    model.merge_adapter()
    merged = logits(model)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), adapted, rtol=0, atol=2e-3)
    torch.testing.assert_close(merged, adapted, rtol=0, atol=2e-3)
    torch.testing.assert_close(logits(model.merge_and_unload()), adapted, rtol=0, atol=2e-3)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 5), width=st.integers(1, 5), r=st.integers(1, 3), out=st.integers(1, 5),
    p=st.sampled_from([0.0, 0.1, 0.9]), scaling=st.sampled_from([0.5, 2.0]),
    biased=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_function_s_gradients_are_those_of_its_formula(rows, width, r, out, p, scaling, biased, seed):
    """Against numerical differentiation; the same seed draws the same mask each time."""
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias, a, b = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, width), (out, width), (out,), (r, width), (out, r))
    )

    def function(x, a, b):
        torch.manual_seed(seed)
        return _LowRankLinear.apply(x, FrozenMatrix(weight), bias if biased else None, a, b, scaling, p)

    assert torch.autograd.gradcheck(function, [tensor.requires_grad_() for tensor in (x, a, b)])
    if p == 0:
        plain = nn.functional.linear(x, weight, bias if biased else None) + scaling * x @ a.t() @ b.t()
        torch.testing.assert_close(function(x, a, b), plain)


@pytest.mark.parametrize("kind", [
    pytest.param(kind, id=name, marks=pytest.mark.skipif(
        not kind.calls.are_there(), reason=f"this processor has no {name}, or there is no g++"
    ))
    for kind, name in ((TiledMatrix, "AMX"), (Fp16Matrix, "AVX512-FP16"), (Bf16Matrix, "AVX512-BF16"))
])  # fmt: skip
@settings(max_examples=40)
@given(
    rows=st.integers(0, 70), width=st.integers(1, 3), r=st.integers(1, 40), out=st.integers(1, 5),
    p=st.sampled_from([0.0, 0.1, 0.7]), scaling=st.sampled_from([0.5, 0.7, 2.0]), biased=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_on_packed_matrices_it_is_the_same_function(kind, rows, width, r, out, p, scaling, biased, seed):
    """Against the function on torch's operators, in bf16 with the same dropout masks."""
    torch.manual_seed(seed)
    width, out = (length * (16 if kind is Bf16Matrix else 32) for length in (width, out))
    x, weight = torch.randn(rows, width).bfloat16(), (torch.randn(out, width) / width**0.5).bfloat16()
    bias, a, b = torch.randn(out) if biased else None, torch.randn(r, width) / width**0.5, torch.randn(out, r)
    gradient = torch.randn(rows, out).bfloat16()

    def of(function, matrix, change=torch.clone):
        given = [change(one).requires_grad_() for one in (x, a, b)]
        torch.manual_seed(seed)
        output = function.apply(given[0], matrix, None if bias is None else change(bias), *given[1:], scaling, p)
        output.backward(change(gradient))
        return output.detach(), *(one.grad for one in given)

    plain, packed = of(_LowRankLinear, FrozenMatrix(weight)), of(_PackedLowRankLinear, kind(weight))
    # What is left of large terms of either sign is as far off as they are, each rounded.
    terms = of(_LowRankLinear, FrozenMatrix(weight.abs()), torch.abs)
    for left, right, sums in zip(packed, plain, terms, strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert (left.float() - right.float()).norm() <= 0.02 * right.float().norm() + 0.002 * sums.float().norm() + 1e-6


def test_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    x, weight, a, b = torch.ones(1, 4), torch.zeros(2, 4), torch.ones(1, 4), torch.ones(2, 1)
    given = x, FrozenMatrix(weight), None, a, b, 1.0, 0.5
    outputs = torch.stack([_LowRankLinear.apply(*given)[0, 0] for _ in range(4000)])
    assert set(outputs.tolist()) == {0.0, 2.0, 4.0, 6.0, 8.0}
    assert abs(outputs.mean().item() - 4) < 5 * 2 / 4000**0.5


def test_a_layer_in_training_draws_masks_and_in_evaluation_none(tiny_folder):
    _, quick = adapted(tiny_folder("bert"), lora_dropout=0.5)
    use_cheap_dropout(quick)
    layer = next(module for module in quick.modules() if isinstance(module, _QuickLinear)).train()
    x = torch.randn(3, layer.in_features)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_what_is_not_plain_is_left_to_peft(tiny_folder):
    _, quick = adapted(tiny_folder("bert"))
    with quick.disable_adapter():
        assert functions_used(quick) == 0
    layers = [module for module in quick.modules() if isinstance(module, _QuickLinear)]
    layers[0].base_layer.bias.requires_grad_()
    assert functions_used(quick) == len(layers) - 1
    before = quick(**sentences()).logits
    quick.merge_adapter()
    assert functions_used(quick) == 0
    torch.testing.assert_close(quick(**sentences()).logits, before, rtol=1e-4, atol=1e-5)
    dora, _ = adapted(tiny_folder("bert"), use_dora=True)
    use_one_function_per_layer(dora)
    assert functions_used(dora) == 0


def test_an_accelerated_lora_model_uses_it(tiny_folder):
    plain, _ = adapted(tiny_folder("bert"))
    accelerate_model(plain, torch.device("cpu"), "bf16")
    assert functions_used(plain) == sum(hasattr(module, "lora_A") for module in plain.modules()) > 0


def test_a_model_may_change_an_update_s_result_in_place():
    """DeBERTa's first version divides its queries in place, after a permutation."""
    config = AutoConfig.for_model(
        "deberta", vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        pooler_hidden_size=32, relative_attention=True, pos_att_type=["c2p", "p2c"], max_position_embeddings=64,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules="all-linear", exclude_modules="classifier|.*pooler.*")
    )
    use_one_function_per_layer(adapted)
    given = {"input_ids": torch.arange(10).view(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    adapted(**given).logits.sum().backward()
    assert all(one.grad is not None for name, one in adapted.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_layer_takes_no_rows(tiny_folder, precision):
    _, quick = adapted(tiny_folder("distilbert"))
    layer = next(module for module in quick.modules() if type(module) is _QuickLinear)
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        output = layer(torch.zeros(2, 0, layer.in_features))
    assert output.shape == (2, 0, layer.out_features)
    output.sum().backward()
    assert all(not one.grad.any() for name, one in layer.named_parameters() if "lora_" in name)
