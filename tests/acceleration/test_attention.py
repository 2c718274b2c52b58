"""Our attention, and a last layer of one token, against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import BertForTokenClassification

from peftlib.acceleration.attention import (
    _eager_attention,
    finish_first_token_only,
    use_eager_attention,
)
from peftlib.strategies import STRATEGIES
from tests.conftest import tiny_config
from tests.strategies.classifiers import classifier, sentences


@pytest.mark.parametrize("own_attention", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("method", ["bitfit", "lora", "full"])
def test_a_last_layer_of_one_token_gives_the_same_gradients(tiny_folder, architecture, method, own_attention):
    whole, head = classifier(tiny_folder(architecture))
    whole = STRATEGIES[method]().apply(whole, head).eval()
    cut = copy.deepcopy(whole)
    finish_first_token_only(cut)
    if own_attention:
        use_eager_attention(cut)
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
    """A sentence without a token to look at: its scores are all the least number, and its weights equal."""
    query, key, value = torch.randn(3, 2, 1, 5, 4, dtype=torch.bfloat16)
    mask = torch.zeros(2, 1, 5, 5)
    mask[1] = torch.finfo(torch.float32).min
    output, _ = _eager_attention(nn.Identity().eval(), query, key, value, mask)
    expected = nn.functional.scaled_dot_product_attention(query[:1], key[:1], value[:1]).transpose(1, 2)
    torch.testing.assert_close(output[:1], expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(output[1], value[1].mean(1, keepdim=True).expand(-1, 5, -1).transpose(0, 1))
