"""What autocast alone does not compute in half precision is computed, and close to fp32."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from peftlib.acceleration import accelerate_model
from peftlib.acceleration.half_precision import compute_scores_in_fp32, take_half_precision
from peftlib.modeling import find_model, load_classifier
from peftlib.strategies import STRATEGIES
from peftlib.strategies.peft_method import PeftMethod
from tests.strategies.classifiers import METHODS, classifier, sentences, trained_names

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def x_mod(layer_norm_first: bool) -> nn.Module:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        "xmod", vocab_size=1000, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        languages=["en_XX", "de_DE"], default_language="de_DE", ln_before_adapter=layer_norm_first,
        adapter_layer_norm=not layer_norm_first,
    )  # fmt: skip
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("dtype", HALF.values())
def test_autocast_alone_does_not_do(tiny_folder, dtype):
    """Where it does by now, what `take_half_precision` changes in that model can go."""
    deberta, _ = classifier(tiny_folder("deberta-v1"))
    for model, said in ((deberta, "overflow"), (x_mod(True), "dtypes match"), (x_mod(False), "dtypes match")):
        with pytest.raises(RuntimeError, match=said), torch.autocast("cpu", dtype):
            model(**sentences())


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_deberta_s_first_version_computes_in_half_precision(tiny_folder, method, enabled, precision):
    plain, head = classifier(tiny_folder("deberta-v1"))
    plain = METHODS[method].apply(plain, head).eval()
    changed = copy.deepcopy(plain)
    reads_frozen = METHODS[method].reads_frozen_weights
    accelerate_model(changed, torch.device("cpu"), precision, reads_frozen=reads_frozen, enabled=enabled)
    assert_close_in(HALF[precision], changed, plain)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("layer_norm_first", [True, False])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "ia3"])  # PEFT knows no layers of X-MOD
def test_x_mod_computes_in_half_precision(method, layer_norm_first, precision):
    plain = x_mod(layer_norm_first)
    head = frozenset(name for name, _ in plain.named_parameters() if name.startswith("classifier."))
    plain = METHODS[method].apply(plain, head).eval()
    changed = copy.deepcopy(plain)
    reads_frozen = METHODS[method].reads_frozen_weights
    accelerate_model(changed, torch.device("cpu"), precision, reads_frozen=reads_frozen)
    assert_close_in(HALF[precision], changed, plain)


def assert_close_in(dtype: torch.dtype, changed: nn.Module, plain: nn.Module) -> None:
    """Assert that logits and gradients in half precision are those in fp32, up to rounding."""
    labels = torch.tensor([0, 1, 0, 1])
    exact = plain(**sentences(), labels=labels)
    with torch.autocast("cpu", dtype):
        rounded = changed(**sentences(), labels=labels)
    torch.testing.assert_close(rounded.logits.float(), exact.logits, rtol=0, atol=0.02)
    exact.loss.backward()
    rounded.loss.backward()
    found = dict(changed.named_parameters())
    assert trained_names(changed) == trained_names(plain)
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            off = (found[name].grad - parameter.grad).norm()
            assert off <= 0.03 * parameter.grad.norm() + 1e-3, name


def test_what_reads_its_biases_rounded_keeps_them_as_they_are(tiny_folder):
    model, _ = classifier(tiny_folder("deberta-v1"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    take_half_precision(model)
    attention = model.deberta.encoder.layer[0].attention.self
    assert attention.q_bias is attention._parameters["q_bias"]  # without autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.q_bias.dtype == attention.v_bias.dtype == torch.bfloat16
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("peft_type", ["boft", "deft", "loha", "oft", "vera"])
def test_deberta_takes_peft_s_layers_in_half_precision(tiny_folder, peft_type, enabled):
    """Of these types' layers, which return fp32 whatever autocast says."""
    model, head = classifier(tiny_folder("deberta"))
    model = PeftMethod(peft_type, '{"r": 16}' if peft_type == "vera" else "{}").apply(model, head).eval()
    exact = model(**sentences()).logits
    with pytest.raises(RuntimeError, match="overflow"), torch.autocast("cpu", torch.bfloat16):
        model(**sentences())  # if transformers computes it by now, the hooks can go
    accelerate_model(model, torch.device("cpu"), "bf16", enabled=enabled)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**sentences()).logits
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("method", ["bitfit", "bitfit-without-head", "lora"])
def test_scores_are_not_rounded_to_half_precision(tiny_folder, method):
    torch.manual_seed(1)
    model, head, _ = load_classifier(find_model(str(tiny_folder("roberta"))), ())
    model = METHODS[method].apply(model, head).eval()
    accelerate_model(model, torch.device("cpu"), "bf16")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = model(**sentences()).logits
    assert scores.dtype == torch.float32 and scores.shape == (4, 1)
    assert (scores != scores.bfloat16().float()).any()


def test_nothing_else_with_one_output_is_computed_otherwise(tiny_folder):
    model = STRATEGIES["lora"](lora_r=1).apply(*classifier(tiny_folder("bert")))
    kinds = [type(module) for module in model.modules()]
    compute_scores_in_fp32(model)
    assert [type(module) for module in model.modules()] == kinds
    model, head, _ = load_classifier(find_model(str(tiny_folder("bert"))), ())
    model = STRATEGIES["lora"](lora_r=1).apply(model, head)
    compute_scores_in_fp32(model)
    changed = [name for name, module in model.named_modules() if type(module) not in kinds]
    assert changed and all(".classifier." in name for name in changed)
