"""LoRA in a layer on rows: the same outputs and gradients as PEFT's, and which kinds are left to PEFT."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("needs triton, which is for Linux", allow_module_level=True)

from peftlib.acceleration.attention import finish_first_token_only
from peftlib.acceleration.layer_calls import Rate
from peftlib.acceleration.low_rank_layer import Trained, Updates, copied_updates
from peftlib.acceleration.row_encoder import take_rows
from tests.acceleration.rows import DEVICE, assert_close, calls, classifier, gradients, in_both, with_lora

pytestmark = pytest.mark.usefixtures("few_programs")


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
    prepared, nothing = copied_updates([([None, one, one], [None], [one], [None]), None], torch.float16)
    assert nothing is None
    qkv, inner = prepared.product_updates.qkv, prepared.product_updates.inner
    assert prepared.product_updates.out is prepared.product_updates.outer is None
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
