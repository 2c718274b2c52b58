"""An encoder layer in one function against transformers' own, on a GPU or, without one, in Triton's interpreter."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

if find_spec("triton") is None:
    pytest.skip("needs triton, which is for Linux", allow_module_level=True)

from peftlib.acceleration import encoder_layer, layer_calls
from peftlib.acceleration.encoder_layer import _EncoderLayer, fuse_frozen_layers
from peftlib.acceleration.layer_calls import Call, Rate

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """So few that each has more than one block of rows; an interpreted one takes a millisecond at least."""
    monkeypatch.setattr(layer_calls, "PROGRAMS", 3)


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


def batch(tokens, examples=3):
    """Examples of which some are padded."""
    lengths = torch.tensor([[tokens], [tokens - 2], [2]])[:examples]
    ids = torch.randint(5, 50, (examples, tokens), generator=torch.Generator().manual_seed(tokens))
    return {"input_ids": ids.to(DEVICE), "attention_mask": (torch.arange(tokens) < lengths).long().to(DEVICE)}


def gradients(model, given):
    """Logits, and the gradients of every trained parameter by name."""
    model.zero_grad()
    logits = model(**given).logits.float()
    nn.functional.cross_entropy(logits, torch.arange(len(logits), device=DEVICE) % 2).backward()
    return logits.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def calls(monkeypatch, run):
    """How many layers compute in one function while `run` runs."""
    made = []
    apply = _EncoderLayer.apply
    with monkeypatch.context() as patched:
        patched.setattr(_EncoderLayer, "apply", lambda *given: made.append(given) or apply(*given))
        run()
    return len(made)


def layer_and_input(tokens=5, p=0.0, width=64):
    model = classifier(p=p, width=width)
    assert fuse_frozen_layers(model, torch.float32) == 1
    x = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return model.base_model.encoder.layer[0], x


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
    fused = copy.deepcopy(plain)
    assert fuse_frozen_layers(fused, torch.float32) == 2
    given = batch(tokens)
    logits, expected = gradients(plain, given)
    found = []
    assert calls(monkeypatch, lambda: found.append(gradients(fused, given))) == 2
    assert_close(found[0][0], logits, 1e-5)
    assert found[0][1].keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[0][1][name], gradient, 3e-5, 1e-3 if "key.bias" in name else 1e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_the_input_s_gradient_is_that_of_transformers(masked):
    layer, x = layer_and_input(7)
    mask = (torch.arange(7) < torch.tensor([[7], [3]])).to(DEVICE)[:, None, None].expand(2, 1, 7, 7) if masked else None
    upstream = torch.randn(7, 2, 64, device=DEVICE).transpose(0, 1)  # not contiguous
    found = []
    for function in (layer, lambda x, mask: super(type(layer), layer).forward(x, mask)):
        one = x.clone().requires_grad_()
        output = function(one, mask)
        output.backward(upstream)
        found.append((output.detach(), one.grad))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_far_from_fp32_as_autocast(dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter cannot multiply bf16 matrices")
    exact = classifier(layers=3)
    half, fused = copy.deepcopy(exact), copy.deepcopy(exact)
    assert fuse_frozen_layers(fused, dtype) == 2
    given = batch(23)
    logits, expected = gradients(exact, given)
    errors = []
    for model in (half, fused):
        with torch.autocast(DEVICE, dtype):
            output = model.base_model.encoder.layer[0](torch.randn(1, 4, 64, device=DEVICE))
            found, of = gradients(model, given)
        assert output.dtype == (dtype if model is fused else torch.float32)
        assert all(gradient.dtype == torch.float32 for gradient in of.values())
        differences = [
            ((of[name] - one).norm() / one.norm()).item() for name, one in expected.items() if "key" not in name
        ]
        errors.append((max(differences), (found - logits).abs().max().item()))
    assert errors[1][0] < 2 * errors[0][0] + torch.finfo(dtype).eps
    assert errors[1][1] < 2 * errors[0][1] + torch.finfo(dtype).eps


@pytest.mark.parametrize("p", [0.1, 0.7])
def test_gradients_with_dropout_are_the_slopes_at_the_same_masks(p):
    layer, x = layer_and_input(6, p)
    mask = (torch.arange(6) < torch.tensor([[6], [4]])).to(DEVICE)[:, None, None]
    weights = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(2)).to(DEVICE)

    def value():
        torch.manual_seed(7)
        return (layer(x, mask) * weights).sum()

    trained = {"x": x.requires_grad_(), **{name: one for name, one in layer.named_parameters() if one.requires_grad}}
    value().backward()
    assert len(trained) == 11
    for name, parameter in trained.items():
        # One direction of each, so steep that fp32 can measure it.
        direction = parameter.grad.sign() if "key" not in name else torch.ones_like(parameter)
        slope = (parameter.grad * direction).sum().item()
        with torch.no_grad():
            start, step = parameter.clone(), 2e-3
            values = []
            for factor in (-step, step):
                parameter.copy_(start + factor * direction)
                with torch.enable_grad():
                    values.append(value().item())
            parameter.copy_(start)
        measured = (values[1] - values[0]) / (2 * step)
        # With dropout behind it, softmax still does not see what is added to all keys.
        assert measured == pytest.approx(slope, rel=1e-2, abs=5e-2), name


def attention_mask_drawn(seed, p, tokens=32):
    """(heads, tokens, tokens): the factors on the attention weights of one example with two heads."""
    qkv = torch.zeros(tokens, 3 * 64)
    qkv[:, 128:] = torch.eye(32).repeat(1, 2)[:tokens] * tokens  # equal weights, and the values show which are kept
    zeros = torch.zeros(64, device=DEVICE)
    call = Call(None, seed, tokens, 2, (Rate.of(p),))
    out = layer_calls.attend(call, qkv.to(DEVICE), (zeros,) * 3)
    return out.view(tokens, 2, 32)[..., :tokens].transpose(0, 1)


def row_mask_drawn(seed, p, site, rows=64, width=96):
    gradient = torch.randn(rows, width, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    nothing = torch.empty(layer_calls.PROGRAMS, 0, device=DEVICE)
    below, dropped = layer_calls.norm_backward(
        Call(None, seed, rows, 1, (Rate.of(p),) * 3), site, gradient, gradient, torch.ones(rows, device=DEVICE),
        torch.ones(width, device=DEVICE), nothing, nothing, nothing,
    )  # fmt: skip
    return dropped / below


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_have_their_rate_and_what_is_kept_its_factor(p):
    seed = torch.tensor([123], device=DEVICE)
    masks = [attention_mask_drawn(seed, p), row_mask_drawn(seed, p, 1), row_mask_drawn(seed, p, 2)]
    for mask in masks:
        kept = mask > 0
        torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))
        assert abs(kept.float().mean().item() - (1 - p)) < 4 * (p * (1 - p) / kept.numel()) ** 0.5
    sites = torch.stack([mask.flatten() for mask in masks[1:]])
    assert abs(torch.corrcoef(sites)[0, 1]) < 4 / masks[1].numel() ** 0.5
    rows = masks[1] > 0
    assert len(rows.unique(dim=0)) == len(rows)
    if p == 0.5:
        assert len((masks[0] > 0).flatten(0, 1).unique(dim=0)) == 64
    neighbours = torch.corrcoef(torch.stack([rows[:, :-1].flatten().float(), rows[:, 1:].flatten().float()]))[0, 1]
    assert abs(neighbours) < 4 / rows.numel() ** 0.5


def test_masks_depend_on_the_seed_alone():
    seed, other = torch.tensor([5], device=DEVICE), torch.tensor([6], device=DEVICE)
    assert torch.equal(row_mask_drawn(seed, 0.5, 1), row_mask_drawn(seed, 0.5, 1))
    assert not torch.equal(row_mask_drawn(seed, 0.5, 1), row_mask_drawn(other, 0.5, 1))
    assert torch.equal(attention_mask_drawn(seed, 0.5), attention_mask_drawn(seed, 0.5))
    assert not torch.equal(attention_mask_drawn(seed, 0.5), attention_mask_drawn(other, 0.5))
    # Row by row the same in a smaller block, as of shorter sentences.
    short = attention_mask_drawn(seed, 0.5, 16)
    assert torch.equal(short > 0, attention_mask_drawn(seed, 0.5)[:, :16, :16] > 0)


def test_torch_s_generator_seeds_each_call():
    layer, x = layer_and_input(4, 0.5)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_padding_does_not_reach_the_tokens():
    layer, x = layer_and_input(6)
    seen = (torch.arange(6) < torch.tensor([[6], [3]])).to(DEVICE)[:, None, None]
    output = layer(x, seen)
    added = torch.zeros(2, 1, 1, 6, device=DEVICE).masked_fill(~seen, torch.finfo(torch.float32).min)
    assert torch.equal(layer(x, added.expand(2, 1, 6, 6)), output)
    changed = x.clone()
    changed[1, 3:] = 9.0
    after = layer(changed, seen)
    assert torch.equal(after[1, :3], output[1, :3]) and torch.equal(after[0], output[0])
    assert not torch.equal(layer(changed)[1, :3], output[1, :3])
    assert layer(x, torch.zeros_like(seen)).isfinite().all()


def test_only_what_is_trained_has_gradients():
    plain = classifier()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith(("0.intermediate.dense.bias", "0.attention.self.query.bias")))
    fused = copy.deepcopy(plain)
    fuse_frozen_layers(fused, torch.float32)
    _, expected = gradients(plain, batch(5))
    _, found = gradients(fused, batch(5))
    assert found.keys() == expected.keys() and len(found) == 2
    for name in expected:
        assert_close(found[name], expected[name], 1e-5)
    # Only behind attention: its backward is not needed.
    for name, parameter in fused.named_parameters():
        parameter.requires_grad_("layer.0.output" in name and "bias" in name)
    assert [*gradients(fused, batch(5))[1]] == [
        f"{fused.base_model_prefix}.encoder.layer.0.output.{name}.bias" for name in ("dense", "LayerNorm")
    ]


def test_what_does_not_fit_is_left_to_transformers(monkeypatch):
    model = classifier()
    assert fuse_frozen_layers(model, torch.float32) == fuse_frozen_layers(model, torch.float32) == 1
    layer, x = model.base_model.encoder.layer[0], torch.randn(1, 4, 64, device=DEVICE)
    assert calls(monkeypatch, lambda: layer(x)) == 1
    assert calls(monkeypatch, lambda: layer(torch.randn(1, 129, 64, device=DEVICE))) == 0
    assert calls(monkeypatch, lambda: layer(x, torch.zeros(1, 2, 4, 4, device=DEVICE))) == 0
    with torch.no_grad():
        assert calls(monkeypatch, lambda: layer(x)) == 0
    assert calls(monkeypatch, lambda: model.eval()(**batch(4))) == 0
    model.train()
    layer.output.dense.weight.requires_grad_()
    assert calls(monkeypatch, lambda: layer(x)) == 0
    layer.output.dense.weight.requires_grad_(False)
    assert calls(monkeypatch, lambda: model(**batch(4), output_hidden_states=True)) == 0  # hooks within, from here on
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert calls(monkeypatch, lambda: layer(x)) == 0


def test_only_plain_frozen_layers_of_bert_s_kind_are_changed():
    assert fuse_frozen_layers(classifier(hidden_act="relu"), torch.float32) == 0
    assert fuse_frozen_layers(classifier(width=32), torch.float32) == 0
    assert fuse_frozen_layers(classifier().requires_grad_(), torch.float32) == 0
    assert fuse_frozen_layers(classifier(is_decoder=True), torch.float32) == 0
    assert fuse_frozen_layers(classifier().base_model, torch.float32) == 0
    assert fuse_frozen_layers(nn.Linear(2, 2), torch.float32) == 0
    watched = classifier()
    watched.base_model.encoder.layer[0].intermediate.register_forward_hook(lambda *_: None)
    assert fuse_frozen_layers(watched, torch.float32) == 0
    wrapped = classifier()
    wrapped.get_base_model = lambda: wrapped
    assert fuse_frozen_layers(wrapped, torch.float32) == 0


def test_queries_keys_and_values_share_memory_in_copies_too():
    model = classifier(layers=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fuse_frozen_layers(model, torch.float32) == 2
    copied = copy.deepcopy(model)
    for one in (model, copied):
        gradients(one, batch(4))
        for layer in one.base_model.encoder.layer[:-1]:
            query, key, value = encoder_layer.linears(layer)[:3]
            assert query.weight.untyped_storage().data_ptr() == value.weight.untyped_storage().data_ptr()
            assert query.weight.untyped_storage().nbytes() == 3 * query.weight.nbytes
            joined = encoder_layer.joined(query, key, value)
            assert joined.data_ptr() == query.weight.data_ptr()
            assert torch.equal(joined, torch.cat([query.weight, key.weight, value.weight]))
        after = one.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (
        copied.base_model.encoder.layer[0].attention.self.query.weight.data_ptr()
        != model.base_model.encoder.layer[0].attention.self.query.weight.data_ptr()
    )
