"""Our attention, and a last layer that computes one token, against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForTokenClassification

from peftlib.acceleration.attention import (
    _eager_attention,
    always_mask,
    finish_first_token_only,
    use_eager_attention,
)
from peftlib.strategies import STRATEGIES
from tests.conftest import tiny_config
from tests.strategies.classifiers import classifier, sentences


@pytest.mark.parametrize("choose_attention", [None, always_mask, use_eager_attention])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("method", ["bitfit", "lora", "full"])
def test_a_last_layer_of_one_token_gives_the_same_gradients(tiny_folder, architecture, method, choose_attention):
    whole, head = classifier(tiny_folder(architecture))
    whole = STRATEGIES[method]().apply(whole, head).eval()
    cut = copy.deepcopy(whole)
    finish_first_token_only(cut)
    if choose_attention is not None:
        choose_attention(cut)
    widths = []
    ends = [module for name, module in cut.named_modules() if name.endswith("encoder.layer.1.output")]
    ends[0].register_forward_hook(lambda module, inputs, output: widths.append(output.size(1)))
    for model in (whole, cut):
        logits = model(**sentences()).logits
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1])).backward()
    assert widths == [1]
    for (name, a), (_, b) in zip(whole.named_parameters(), cut.named_parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-7, msg=name)


class Questions(TorchDispatchMode):
    """Counts reads of a tensor's value by the host, which would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __torch_dispatch__(self, function, kinds, inputs=(), options=None):
        self.asked += function is torch.ops.aten._local_scalar_dense.default
        return function(*inputs, **(options or {}))


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "distilbert"])
def test_nobody_asks_the_device_about_padding(tiny_folder, architecture, padded):
    model, _ = classifier(tiny_folder(architecture))
    inputs = sentences()
    inputs["attention_mask"] = inputs["attention_mask"] if padded else torch.ones_like(inputs["attention_mask"])
    expected = model.eval()(**inputs).logits
    with Questions() as plain:
        model(**inputs)
    always_mask(model)
    with Questions() as masked:
        logits = model(**inputs).logits
    assert (plain.asked, masked.asked) == (1, 0)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("architecture", ["distilbert", "deberta", "modernbert"])
def test_only_models_known_to_read_the_first_token_are_cut(tiny_folder, architecture):
    model, _ = classifier(tiny_folder(architecture))
    finish_first_token_only(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_head_that_reads_every_token_is_left_alone():
    model = BertForTokenClassification(tiny_config("bert"))
    finish_first_token_only(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_own_attention_in_bf16_masks_a_whole_row_without_nan():
    """If all tokens of a sentence are masked, its scores all equal the dtype's minimum and its weights are uniform."""
    query, key, value = torch.randn(3, 2, 1, 5, 4, dtype=torch.bfloat16)
    mask = torch.zeros(2, 1, 5, 5)
    mask[1] = torch.finfo(torch.float32).min
    output, _ = _eager_attention(nn.Identity().eval(), query, key, value, mask)
    expected = nn.functional.scaled_dot_product_attention(query[:1], key[:1], value[:1]).transpose(1, 2)
    torch.testing.assert_close(output[:1], expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(output[1], value[1].mean(1, keepdim=True).expand(-1, 5, -1).transpose(0, 1))


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
                "decoder_start_token_id": 0}),
        ("llama", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                   "intermediate_size": 64}),
        ("modernbert", {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
                        "local_attention": 4}),
    ],
)  # fmt: skip
def test_models_of_other_kinds_compute_what_they_would_without_us(kind, sizes):
    """Positions added to the scores (T5), heads that share keys (Llama), sliding windows (ModernBERT)."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=1000, num_labels=2, pad_token_id=0, eos_token_id=1, **sizes)
    plain = AutoModelForSequenceClassification.from_config(config).eval()
    if plain.config._attn_implementation == "eager":
        pytest.skip(f"this transformers has no other attention for {kind}")
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = copy.deepcopy(plain)
    use_eager_attention(ours)
    assert ours.config._attn_implementation != plain.config._attn_implementation
    given = sentences()
    given["input_ids"][torch.arange(4), given["attention_mask"].sum(1) - 1] = 1  # T5's end of a sentence
    with torch.inference_mode():
        assert (ours(**given).logits - plain(**given).logits).abs().max() < 1e-4
