"""BERT's encoder over rows against transformers' own, on a GPU or, without one, in Triton's interpreter."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

if find_spec("triton") is None:
    pytest.skip("needs triton, which is for Linux", allow_module_level=True)

import triton

from peftlib import acceleration
from peftlib.acceleration import accelerate_model, attention_kernels, layer_calls, layer_kernels, low_rank_kernels
from peftlib.acceleration.attention import finish_first_token_only
from peftlib.acceleration.bert import joined, linears
from peftlib.acceleration.encoder_layer import Embeddings, LastLayer, WholeLayer
from peftlib.acceleration.graphs import GraphedStep
from peftlib.acceleration.layer_calls import Call, Normal, Rate
from peftlib.acceleration.low_rank_layer import LowRankLayer, Trained, Updates, prepare
from peftlib.acceleration.row_encoder import take_rows
from peftlib.data import collation
from peftlib.data.collation import Collator, RowCollator, is_in_rows, split_inputs
from peftlib.data.encoding import Chosen
from peftlib.training.accumulation import weighted_loss
from tests.conftest import ROOT
from tests.launching import run_python

KINDS = (WholeLayer, LastLayer, LowRankLayer)
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """So few programs that each has several blocks of rows, and few rows: an interpreted block takes milliseconds."""
    monkeypatch.setattr(layer_calls, "_PROGRAMS", 3)
    monkeypatch.setattr(layer_calls, "_ROWS", 8)
    monkeypatch.setattr(layer_calls, "_GELU_ROWS", 8)
    monkeypatch.setattr(collation, "STEP", 32)


def classifier(kind="bert", width=64, p=0.0, layers=2, attention="eager", **config):
    """A tiny classifier with two heads on the device, in training, whose biases and normalisation are trained."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=width, num_attention_heads=2, intermediate_size=2 * width + 32,
        num_hidden_layers=layers, hidden_dropout_prob=p, attention_probs_dropout_prob=p,
        **{"embedding_size": width} if kind == "electra" else {}, **config,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).to(DEVICE).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.dim() == 1)
        if parameter.dim() == 1:  # not what they start from: zeros and ones
            nn.init.normal_(parameter, float(name.endswith("LayerNorm.weight")), 0.2)
        else:
            parameter.data.mul_(3)
    return model


def with_lora(model, r=4, alpha=8, p=0.0, targets=("query", "key", "value", "dense"), **options):
    """In PEFT's wrapper, with updates that are not zero; nothing else is trained."""
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=p, target_modules=list(targets), bias="none", **options,
        exclude_modules=["pooler.dense", "classifier.dense"],
    )  # fmt: skip
    model = get_peft_model(model.requires_grad_(False), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.to(DEVICE)


def batches(tokens, first_position=0, changed=None):
    """Three examples, padded and in rows, on the host; the second one with other tokens if asked for."""
    lengths = np.array([tokens, tokens - 2, 2])
    ids = np.random.default_rng(tokens).integers(5, 50, lengths.sum())
    if changed is not None:
        ids[tokens : 2 * tokens - 2] = changed
    labels, weight = np.array([0, 1, 0]), np.full(3, 1 / 3, dtype=np.float32)
    chosen = Chosen({"input_ids": ids}, lengths, labels, np.arange(3), weight)
    collator = Collator({"input_ids": 1})
    return collator(chosen), collator.in_rows(first_position)(chosen)


def in_both(model, tokens, dtype=torch.float32):
    """A copy of the model that takes rows, and the batch padded and in rows."""
    ours = copy.deepcopy(model)
    first_position = take_rows(ours, dtype)
    assert first_position is not None
    return ours, *batches(tokens, first_position)


def gradients(model, given):
    """Logits of the three examples, and the gradients of every trained parameter by name."""
    model.zero_grad()
    inputs, targets = split_inputs({name: tensor.to(DEVICE) for name, tensor in given.items()})
    logits = model(**inputs).logits.float()
    weighted_loss(logits, targets.labels, targets.weight).backward()
    return logits.detach()[:3], {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def calls(monkeypatch, run):
    """How often embeddings, and each of `KINDS` of layers, compute in rows while `run` runs."""
    made = []
    with monkeypatch.context() as patched:
        for kind, name in ((Embeddings, "apply"), *((kind, "forward") for kind in KINDS)):
            compute = getattr(kind, name)
            counted = lambda *given, kind=kind, compute=compute: made.append(kind) or compute(*given)  # noqa: E731
            patched.setattr(kind, name, counted)
        run()
    return [made.count(kind) for kind in (Embeddings, *KINDS)]


def assert_close(ours, theirs, tolerance, least=1e-6):
    """Up to `tolerance` of the largest element, or of `least`: a key bias has no gradient but rounding."""
    scale = max(theirs.abs().max().item(), least)
    assert (ours - theirs).abs().max().item() <= tolerance * scale


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


@pytest.mark.parametrize(
    ("kind", "width", "tokens", "layers", "options"),
    [
        ("bert", 64, 5, 3, {}), ("roberta", 128, 33, 2, {"r": 20, "targets": ["query", "value"]}),
        ("bert", 64, 70, 1, {"r": 16, "alpha": 40, "use_rslora": True}),
        ("electra", 64, 9, 3, {"targets": ["output.dense"], "layers_to_transform": [0, 2]}),
    ],
)  # fmt: skip
def test_lora_s_outputs_and_gradients_are_peft_s(monkeypatch, kind, width, tokens, layers, options):
    plain = with_lora(classifier(kind, width, layers=layers), **options)
    ours, padded, laid = in_both(plain, tokens)
    finish_first_token_only(ours)
    logits, expected = gradients(plain, padded)
    found = []
    updated = options.get("layers_to_transform", range(layers))
    assert calls(monkeypatch, lambda: found.append(gradients(ours, laid))) == [
        1,
        layers - len(updated),
        0,
        len(updated),
    ]
    assert_close(found[0][0], logits, 1e-5)
    assert found[0][1].keys() == expected.keys() and all("lora" in name for name in expected)
    for name, gradient in expected.items():
        assert found[0][1][name].dtype == torch.float32
        assert_close(found[0][1][name], gradient, 3e-5)


@pytest.mark.parametrize("adapt", [lambda model: model, with_lora])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_far_from_fp32_as_autocast(dtype, adapt):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter cannot multiply bf16 matrices")
    exact = adapt(classifier(layers=3))
    ours, padded, laid = in_both(exact, 23, dtype)
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
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad or (layers > 1 and not lora and "layer.1" in name):
            continue
        # One direction of each, so steep that fp32 can measure it.
        direction = parameter.grad.sign() if "key" not in name else torch.ones_like(parameter)
        slope = (parameter.grad * direction).sum().item()
        with torch.no_grad():
            start, step = parameter.clone(), 1e-3
            values = []
            for factor in (-step, step):
                parameter.copy_(start + factor * direction)
                with torch.enable_grad():
                    values.append(value().item())
            parameter.copy_(start)
        measured = (values[1] - values[0]) / (2 * step)
        # With dropout behind it, softmax still does not see what is added to all keys.
        assert measured == pytest.approx(slope, rel=2e-2, abs=5e-2), name


def attention_mask_drawn(seed, p, tokens=32):
    """(heads, tokens, tokens): the factors on the attention weights of one example with two heads."""
    qkv = torch.zeros(tokens, 3 * 64)
    qkv[:, 128:] = torch.eye(32).repeat(1, 2)[:tokens] * tokens  # equal weights, and the values show which are kept
    zeros = torch.zeros(64, device=DEVICE)
    places = torch.full((1, 1, 1, 32), -1, dtype=torch.int32, device=DEVICE)
    places[..., :tokens] = torch.arange(tokens)
    out = layer_calls.attend(Call(places, seed, 2, (Rate.of(p),)), qkv.to(DEVICE), (zeros,) * 3)
    return out.view(tokens, 2, 32)[..., :tokens].transpose(0, 1)


def mixed_mask_drawn(seed, p, examples=16, tokens=32):
    """(examples · heads, tokens): the same of the first tokens' attention."""
    places = torch.arange(tokens, dtype=torch.int32, device=DEVICE).expand(examples, 1, 1, tokens).contiguous()
    asked = torch.zeros(examples, 2, tokens, device=DEVICE)  # equal weights on the rows of a unit matrix
    out, kept = layer_calls.mix(Call(places, seed, 2, (Rate.of(p),)), asked, torch.eye(tokens, device=DEVICE) * tokens)
    torch.testing.assert_close(out.sum(2), kept * tokens)
    return out.flatten(0, 1)


def row_mask_drawn(seed, p, site, rows=64, width=96):
    gradient = torch.randn(rows, width, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    nothing = torch.empty(3, 0, device=DEVICE)
    places = torch.zeros(1, 1, 1, 32, dtype=torch.int32, device=DEVICE)
    ones = torch.ones(max(rows, width), device=DEVICE)
    below, dropped = layer_calls.norm_backward(
        Call(places, seed, 1, (Rate.of(p),) * 3), site, gradient, Normal(gradient, ones[:rows]), ones[:width],
        nothing, nothing, nothing,
    )  # fmt: skip
    return dropped / below


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_have_their_rate_and_what_is_kept_its_factor(p):
    seed = torch.tensor([123 + (321 << 32)], device=DEVICE)
    masks = [
        attention_mask_drawn(seed, p), mixed_mask_drawn(seed, p), row_mask_drawn(seed, p, 1), row_mask_drawn(seed, p, 2)
    ]  # fmt: skip
    for mask in masks:
        kept = mask > 0
        torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))
        assert abs(kept.float().mean().item() - (1 - p)) < 4 * (p * (1 - p) / kept.numel()) ** 0.5
    sites = torch.stack([mask.flatten() for mask in masks[2:]])
    assert abs(torch.corrcoef(sites)[0, 1]) < 4 / masks[2].numel() ** 0.5
    kept = masks[2] > 0
    assert len(kept.unique(dim=0)) == len(kept)
    if p == 0.5:
        assert len((masks[0] > 0).flatten(0, 1).unique(dim=0)) == 64
    neighbours = torch.corrcoef(torch.stack([kept[:, :-1].flatten().float(), kept[:, 1:].flatten().float()]))[0, 1]
    assert abs(neighbours) < 4 / kept.numel() ** 0.5


def test_masks_depend_on_the_seed_alone():
    seed, others = torch.tensor([5], device=DEVICE), (6, 5 + (1 << 32))  # either half of it
    assert torch.equal(row_mask_drawn(seed, 0.5, 1), row_mask_drawn(seed, 0.5, 1))
    assert torch.equal(attention_mask_drawn(seed, 0.5), attention_mask_drawn(seed, 0.5))
    for number in others:
        other = torch.tensor([number], device=DEVICE)
        assert not torch.equal(row_mask_drawn(seed, 0.5, 1), row_mask_drawn(other, 0.5, 1))
        assert not torch.equal(attention_mask_drawn(seed, 0.5), attention_mask_drawn(other, 0.5))
    # Row by row the same among fewer tokens.
    short = attention_mask_drawn(seed, 0.5, 16)
    assert torch.equal(short > 0, attention_mask_drawn(seed, 0.5)[:, :16, :16] > 0)


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


@pytest.mark.parametrize(
    ("adapt", "options", "laid_out"),
    [
        (lambda model: model, {}, True), (with_lora, {}, True), (with_lora, {"precision": "bf16"}, True),
        (lambda model: model, {"precision": "no"}, False), (lambda model: model, {"frozen_dtype": "fp32"}, False),
        (with_lora, {"reads_frozen": True}, False), (lambda model: model.requires_grad_(), {}, False),
    ],
)  # fmt: skip
def test_batches_are_laid_out_where_the_encoder_takes_rows(monkeypatch, adapt, options, laid_out):
    monkeypatch.setattr(acceleration, "_has_tensor_cores", lambda device: True)
    collator = Collator({"input_ids": 1})
    loader = SimpleNamespace(collate_fn=collator)
    given = {"precision": "fp16", **options}
    accelerate_model(adapt(classifier("roberta")), torch.device("cuda"), **given, loader=loader)
    assert loader.collate_fn == (RowCollator(collator, 2) if laid_out else collator)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"rank_pattern": {"query": 2}},
        {"alpha_pattern": {"key": 3}},
        {"r": 65},
    ],
)
def test_other_loras_are_left_to_peft(options):
    assert take_rows(with_lora(classifier(), **options), torch.float32) is None


def test_lora_beside_other_trained_parameters_or_merged_is_left_to_peft():
    model = with_lora(classifier())
    model.base_model.model.base_model.encoder.layer[0].output.LayerNorm.bias.requires_grad_()
    assert take_rows(model, torch.float32) is None
    ours, _, laid = in_both(with_lora(classifier()), 4)
    ours.merge_adapter()
    with pytest.raises(RuntimeError, match="changed after it was told to take rows"):
        gradients(ours, laid)


def test_lora_s_updates_are_scaled_by_what_dropout_keeps():
    a, b = torch.randn(4, 8, device=DEVICE), torch.randn(6, 4, device=DEVICE)
    one = Trained(a, b, 2.5, Rate.of(0.2))
    prepared, nothing = prepare([([None, one, one], [None], [one], [None]), None], torch.float16)
    assert nothing is None
    qkv, inner = prepared.of_products.qkv, prepared.of_products.inner
    assert prepared.of_products.out is prepared.of_products.outer is None
    assert qkv.factor == pytest.approx(2.5 / 0.8)
    assert qkv.starts == (6, 12) and inner.starts == (0,)
    assert torch.equal(qkv.a, torch.cat([a, a]).half()) and all(torch.equal(copy, b.half()) for copy in qkv.b)
    assert [one.data_ptr() for one in prepared.trained] == [a.data_ptr(), b.data_ptr()] * 3
    # Sites of dropout: attention's, the layer's two, then the six products' in their order.
    assert (qkv.site, inner.site) == (3, 7)


def test_lora_s_masks_have_their_rate_and_differ_from_product_to_product():
    p, rows, width, ranks = 0.3, 96, 64, 64
    seed = torch.tensor([9 + (4 << 32)], device=DEVICE)
    unit = torch.eye(width, device=DEVICE)  # of rank 64: what lies between A and B shows the mask
    updates = Updates(torch.cat([unit, unit]), (unit, unit), (0, 64), 1 / (1 - p), Rate.of(p), 3)
    ones = torch.ones(rows, width, device=DEVICE)
    low = updates.onto(seed, ones, torch.zeros(rows, 2 * ranks, device=DEVICE))
    masks = low.view(rows, 2, ranks).transpose(0, 1)
    for mask in masks:
        kept = mask > 0
        torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))
        assert abs(kept.float().mean().item() - (1 - p)) < 4 * (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(torch.corrcoef(masks.flatten(1))[0, 1]) < 4 / masks[0].numel() ** 0.5


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


def test_sums_of_columns_are_exact_for_whatever_sizes():
    for first, second in (((5, 7), (3, 70)), ((20, 64), (1, 0)), ((1, 0), (33, 129)), ((2, 0), (2, 0))):
        left, right = torch.randint(-9, 9, first).float().to(DEVICE), torch.randint(-9, 9, second).float().to(DEVICE)
        assert torch.equal(layer_calls.sums_over_rows(left, right), torch.cat([left.sum(0), right.sum(0)]))


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


@pytest.mark.launch
def test_kernels_compile_for_ampere_and_hopper(tmp_path):
    """In a process of its own, where Triton does not interpret; see there."""
    done = run_python(
        "-m", "tests.acceleration.compile_kernels", cwd=ROOT, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = {line.split()[0] for line in done.stdout.splitlines()}
    assert kernels == {
        name
        for module in (attention_kernels, layer_kernels, low_rank_kernels)
        for name, one in vars(module).items()
        if isinstance(one, triton.runtime.jit.KernelInterface) and not name.startswith("_") and name != "kept"
    }
