"""BERT's encoder over rows against transformers' own, on a GPU or, without one, in Triton's interpreter."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

if find_spec("triton") is None:
    pytest.skip("needs triton, which is for Linux", allow_module_level=True)

from peftlib import acceleration
from peftlib.acceleration import accelerate_model
from peftlib.acceleration.attention import finish_first_token_only
from peftlib.acceleration.bert import joined, linears
from peftlib.acceleration.graphs import GraphedStep
from peftlib.acceleration.row_encoder import take_rows
from peftlib.data.collation import Collator, RowCollator, is_in_rows, split_inputs
from peftlib.strategies.peft_method import PeftMethod
from peftlib.training.accumulation import weighted_loss
from tests.acceleration.rows import DEVICE, assert_close, batches, calls, classifier, gradients, in_both, with_lora

pytestmark = pytest.mark.usefixtures("few_programs")


@pytest.mark.parametrize(
    ("kind", "width", "tokens", "attention"),
    [
        ("bert", 64, 5, "eager"), ("bert", 128, 16, "sdpa"), ("bert", 64, 23, "sdpa"), ("electra", 64, 3, "sdpa"),
        ("roberta", 64, 33, "eager"), ("xlm-roberta", 128, 4, "eager"), ("bert", 64, 70, "sdpa"),
    ],
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_transformers(monkeypatch, kind, width, tokens, attention):
    plain = classifier(kind, width, layers=3, attention=attention)
    ours, padded, laid = in_both(plain, tokens)
    finish_first_token_only(ours)  # as `accelerate_model` does, for padded batches
    logits, expected = gradients(plain, padded)
    found = []
    assert calls(monkeypatch, lambda: found.append(gradients(ours, laid))) == [1, 2, 1, 0]
    assert_close(found[0][0], logits, 1e-5)
    assert found[0][1].keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[0][1][name], gradient, 3e-5, 1e-3 if "key.bias" in name else 1e-6)


def test_without_token_types_and_for_the_last_layer_alone(monkeypatch):
    plain = classifier(layers=1)
    ours, padded, laid = in_both(plain, 7)
    logits, expected = gradients(plain, padded)
    types = {"token_type_ids": torch.zeros_like(laid["input_ids"])}
    for given in (laid, {**laid, **types}):
        found = []
        assert calls(monkeypatch, lambda given=given, found=found: found.append(gradients(ours, given))) == [1, 0, 1, 0]
        assert_close(found[0][0], logits, 1e-5)
        for name, gradient in expected.items():
            assert_close(found[0][1][name], gradient, 3e-5, 1e-3 if "key.bias" in name else 1e-6)


@pytest.mark.parametrize(("adapt", "tokens"), [(lambda model: model, 23), (with_lora, 23), (lambda model: model, 70)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_far_from_fp32_as_autocast(dtype, adapt, tokens):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter cannot multiply bf16 matrices")
    exact = adapt(classifier(layers=3))
    ours, padded, laid = in_both(exact, tokens, dtype)
    logits, expected = gradients(exact, padded)
    errors = []
    for model, given in ((copy.deepcopy(exact), padded), (ours, laid)):
        with torch.autocast(DEVICE, dtype):
            found, of = gradients(model, given)
        assert all(gradient.dtype == torch.float32 for gradient in of.values())
        differences = [
            ((of[name] - one).norm() / one.norm()).item() for name, one in expected.items() if "key" not in name
        ]
        errors.append((max(differences), (found - logits).abs().max().item()))
    assert errors[1][0] < 2 * errors[0][0] + torch.finfo(dtype).eps
    assert errors[1][1] < 2 * errors[0][1] + torch.finfo(dtype).eps


@pytest.mark.parametrize(("p", "layers", "lora"), [(0.7, 1, False), (0.1, 2, False), (0.3, 2, True)])
def test_gradients_with_dropout_are_the_slopes_at_the_same_masks(p, layers, lora):
    model = classifier(p=p, layers=layers, width=128 if lora else 64)  # more columns than a program holds at a time
    model.classifier.weight.data.mul_(5)
    model.dropout = nn.Identity()  # transformers' own, behind the pooler
    if lora:
        model = with_lora(model, p=p, targets=["key", "value", "intermediate.dense"])
    ours, _, laid = in_both(model, 6)
    given = split_inputs({name: tensor.to(DEVICE) for name, tensor in laid.items()})[0]

    def value():
        torch.manual_seed(7)
        return ours(**given).logits[:3].square().sum()

    value().backward()
    directions: dict[str, list[tuple[float, nn.Parameter, torch.Tensor]]] = {"keys": [], "others": []}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad and (layers == 1 or lora or "layer.1" not in name):
            # So steep that fp32 can measure it; softmax does not see what is added to all keys, dropout or not.
            key = "key" in name
            direction = torch.ones_like(parameter) if key else parameter.grad.sign()
            slope = (parameter.grad * direction).sum().item()
            directions["keys" if key else "others"].append((slope, parameter, direction))
    for group in (directions["keys"], *fours(directions["others"])):
        # Those of a group have like slopes, and steps that change the value alike: none hides behind another.
        least = min(slope for slope, *_ in group)
        factors = [least / slope if group is not directions["keys"] else 1.0 for slope, *_ in group]
        step, values = 1e-3, []
        for sign in (-1, 1):
            for factor, (_, parameter, direction) in zip(factors, group, strict=True):
                parameter.data.add_(direction, alpha=sign * step * factor)
            values.append(value().item())
            for factor, (_, parameter, direction) in zip(factors, group, strict=True):
                parameter.data.add_(direction, alpha=-sign * step * factor)
        measured = (values[1] - values[0]) / (2 * step)
        slopes = sum(factor * slope for factor, (slope, *_) in zip(factors, group, strict=True))
        assert measured == pytest.approx(slopes, rel=2e-2, abs=5e-2), [tuple(one.shape) for _, one, _ in group]


def fours(directions):
    """In fours of like slopes, the last of them maybe fewer."""
    sorted_ones = sorted(directions, key=lambda one: one[0])
    return [sorted_ones[at : at + 4] for at in range(0, len(sorted_ones), 4)]


def test_torch_s_generator_seeds_each_call():
    ours, _, laid = in_both(classifier(p=0.5), 4)
    torch.manual_seed(3)
    (first, _), (second, _) = gradients(ours, laid), gradients(ours, laid)
    torch.manual_seed(3)
    assert torch.equal(gradients(ours, laid)[0], first)
    assert not torch.equal(first, second)


def test_examples_do_not_see_each_other_and_fillers_count_nothing():
    ours, padded, laid = in_both(classifier(), 6)
    logits, of = gradients(ours, laid)
    after, _ = gradients(ours, batches(6, changed=7)[1])
    assert torch.equal(after[0], logits[0]) and torch.equal(after[2], logits[2])
    assert not torch.equal(after[1], logits[1])
    tokens = int(padded["attention_mask"].sum())
    laid["input_ids"][0, tokens:] = 9
    laid["position_ids"][0, tokens:] = 3
    again, same = gradients(ours, laid)
    assert torch.equal(again, logits)
    assert all(torch.equal(same[name], one) for name, one in of.items())


def test_only_what_is_trained_has_gradients():
    plain = classifier()
    trained = ("0.intermediate.dense.bias", "0.attention.self.query.bias", "1.attention.self.value.bias")
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith(trained))
    ours, padded, laid = in_both(plain, 5)
    _, expected = gradients(plain, padded)
    _, found = gradients(ours, laid)
    assert found.keys() == expected.keys() and len(found) == 3
    for name in expected:
        assert_close(found[name], expected[name], 1e-5)
    # Only behind attention: its backward is not needed.
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_("layer.0.output" in name and "bias" in name)
    assert [*gradients(ours, laid)[1]] == [
        f"{ours.base_model_prefix}.encoder.layer.0.output.{name}.bias" for name in ("dense", "LayerNorm")
    ]
    ours.requires_grad_(False)
    ours.classifier.bias.requires_grad_()
    assert [*gradients(ours, laid)[1]] == ["classifier.bias"]


def test_normalisation_alone_is_trained_as_in_transformers():
    plain = classifier(layers=3)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_("LayerNorm" in name)
    ours, padded, laid = in_both(plain, 9)
    _, expected = gradients(plain, padded)
    _, found = gradients(ours, laid)
    assert found.keys() == expected.keys() and len(found) == 14
    for name in expected:
        assert_close(found[name], expected[name], 3e-5)


def test_padded_batches_are_left_to_transformers(monkeypatch):
    plain = classifier()
    ours, padded, laid = in_both(plain, 5)
    assert take_rows(ours, torch.float32) == 0  # once more changes nothing
    found = []
    assert calls(monkeypatch, lambda: found.append(gradients(ours, padded))) == [0, 0, 0, 0]
    logits, expected = gradients(plain, padded)
    assert torch.equal(found[0][0], logits)
    assert all(torch.equal(found[0][1][name], one) for name, one in expected.items())
    ours.eval()
    given = split_inputs({name: tensor.to(DEVICE) for name, tensor in laid.items()})[0]
    with torch.no_grad():
        assert calls(monkeypatch, lambda: ours(**given)) == [1, 1, 1, 0]
        ids = given["input_ids"][:, :5]
        assert calls(monkeypatch, lambda: ours(input_ids=ids)) == [0, 0, 0, 0]
    ours.train()
    ours.base_model.encoder.layer[0].output.dense.weight.requires_grad_()
    with pytest.raises(RuntimeError, match="changed after it was told to take rows"):
        gradients(ours, laid)
    gradients(ours, padded)


def test_embeddings_that_are_trained_or_watched_are_left_to_transformers(monkeypatch):
    plain = classifier()
    plain.base_model.embeddings.word_embeddings.weight.requires_grad_()
    ours, padded, laid = in_both(plain, 5)
    found = []
    assert calls(monkeypatch, lambda: found.append(gradients(ours, laid))) == [0, 1, 1, 0]
    logits, expected = gradients(plain, padded)
    assert_close(found[0][0], logits, 1e-5)
    assert found[0][1].keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[0][1][name], gradient, 3e-5, 1e-3 if "key.bias" in name else 1e-6)
    ours, _, laid = in_both(classifier(), 5)
    seen = []
    ours.base_model.embeddings.LayerNorm.register_forward_hook(lambda *_: seen.append(1))
    assert calls(monkeypatch, lambda: gradients(ours, laid)) == [0, 1, 1, 0]
    assert seen


def test_only_plain_frozen_layers_of_bert_s_kind_take_rows():
    assert take_rows(classifier(hidden_act="relu"), torch.float32) is None
    assert take_rows(classifier(width=32), torch.float32) is None
    assert take_rows(classifier().requires_grad_(), torch.float32) is None
    assert take_rows(classifier(is_decoder=True), torch.float32) is None
    assert take_rows(classifier().base_model, torch.float32) is None
    assert take_rows(nn.Linear(2, 2), torch.float32) is None
    for part in ("intermediate", "attention.self", ""):
        watched = classifier()
        watched.base_model.encoder.layer[0].get_submodule(part).register_forward_hook(lambda *_: None)
        assert take_rows(watched, torch.float32) is None
    assert take_rows(classifier("roberta"), torch.float32) == 2


def with_prompts(model):
    return PeftMethod("prompt_tuning").apply(model)


@pytest.mark.parametrize(
    ("adapt", "options", "laid_out"),
    [
        (lambda model: model, {}, True), (with_lora, {}, True), (with_lora, {"precision": "bf16"}, True),
        (lambda model: model, {"precision": "no"}, False), (lambda model: model, {"frozen_dtype": "fp32"}, False),
        (with_lora, {"reads_frozen": True}, False), (lambda model: model, {"enabled": False}, False),
        (with_prompts, {}, False), (lambda model: model.requires_grad_(), {}, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("hopper", [True, False])
def test_batches_are_laid_out_where_the_encoder_takes_rows(monkeypatch, adapt, options, laid_out, hopper):
    monkeypatch.setattr(acceleration, "has_tensor_cores", lambda device: True)
    monkeypatch.setattr(acceleration, "is_hopper", lambda device: hopper)
    for name in ("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is taken away again
        monkeypatch.delenv(name)
    collator = Collator({"input_ids": 1})
    loader = SimpleNamespace(collate_fn=collator)
    given = {"precision": "fp16", **options}
    accelerate_model(adapt(classifier("roberta")), torch.device("cuda"), **given, loader=loader)
    assert loader.collate_fn == (RowCollator(collator, 2) if laid_out else collator)
    # Products of low rank need it; on other GPUs nothing was measured.
    assert (os.environ.get("CUBLAS_WORKSPACE_CONFIG") == ":0:0") == (laid_out and hopper and adapt is not with_lora)


def test_queries_keys_and_values_share_memory_in_copies_too():
    model = classifier(layers=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert take_rows(model, torch.float32) == 0
    copied = copy.deepcopy(model)
    for one in (model, copied):
        gradients(one, batches(4)[1])
        for layer in one.base_model.encoder.layer:
            query, key, value = linears(layer)[:3]
            assert query.weight.untyped_storage().data_ptr() == value.weight.untyped_storage().data_ptr()
            assert query.weight.untyped_storage().nbytes() == 3 * query.weight.nbytes
            assert joined(query, key, value).data_ptr() == query.weight.data_ptr()
            assert torch.equal(joined(query, key, value), torch.cat([query.weight, key.weight, value.weight]))
        after = one.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (
        copied.base_model.encoder.layer[0].attention.self.query.weight.data_ptr()
        != model.base_model.encoder.layer[0].attention.self.query.weight.data_ptr()
    )


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_weights_are_not_moved_in_a_recording(monkeypatch):
    ours, _, laid = in_both(classifier(), 5)
    gradients(ours, laid)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    gradients(ours, laid)
    query = ours.base_model.encoder.layer[0].attention.self.query
    query.weight.data = query.weight.data.clone()  # as a move to another device leaves them
    with pytest.raises(RuntimeError, match="before a CUDA graph is recorded"):
        gradients(ours, laid)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("adapt", [lambda model: model, with_lora])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_recorded_steps_in_rows_are_plain_ones(dtype, adapt):
    plain = adapt(classifier(layers=3))
    first_position = take_rows(plain, dtype)
    graphed = copy.deepcopy(plain)

    def step_of(model):
        def step(given):
            inputs, targets = split_inputs(given)
            with torch.autocast(DEVICE, dtype):
                logits = model(**inputs).logits
            loss = weighted_loss(logits, targets.labels, targets.weight)
            loss.backward()
            return loss.detach()

        return step

    step, recorded = step_of(plain), GraphedStep(step_of(graphed), graphed.parameters(), pytest.fail, is_in_rows)
    for tokens in (5, 40, 100, 5, 40, 100, 7):
        laid = {name: tensor.to(DEVICE) for name, tensor in batches(tokens, first_position)[1].items()}
        plain.zero_grad()
        graphed.zero_grad()
        assert torch.equal(step(laid), recorded(laid))
        for (name, left), right in zip(plain.named_parameters(), graphed.parameters(), strict=True):
            assert (left.grad is None) == (right.grad is None), name
            assert left.grad is None or torch.equal(left.grad, right.grad), name
