"""Faster, and the same: in law where it is random, bit for bit where it is not."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertForTokenClassification

from peftlib.acceleration import (
    CheapDropout,
    _eager_attention,
    _softmax,
    accelerate_model,
    cheap_dropout,
    finish_first_token_only,
    keep_frozen_linears_in,
    keep_mask,
    leave_casts_to_autocast,
    use_cheap_dropout,
    use_eager_attention,
)
from peftlib.strategies import STRATEGIES
from tests.conftest import tiny_config
from tests.strategies.classifiers import classifier, sentences

# ── Dropout ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(count=st.integers(0, 70), dropped=st.integers(0, 2**15))
def test_a_mask_is_all_bits_or_none(count, dropped):
    mask = keep_mask(count, dropped)
    assert mask.shape == (count,) and mask.dtype == torch.int16
    assert set(mask.tolist()) <= {0, -1}
    if dropped == 0:
        assert (mask == -1).all()
    if dropped == 2**15:
        assert (mask == 0).all()


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_rate_is_p_within_five_standard_deviations(p):
    torch.manual_seed(0)
    count = 2_000_000
    dropped = 1 + keep_mask(count, round(p * 2**15)).float().mean().item()
    assert abs(dropped - p) < 5 * (p * (1 - p) / count) ** 0.5 + 2**-15


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = -keep_mask(2_000_000, round(0.1 * 2**15)).double()
    centred = kept - kept.mean()
    for lag in (1, 2, 3, 4, 5, 8):  # four share a 64-bit word
        correlation = (centred[:-lag] * centred[lag:]).mean() / centred.var()
        assert abs(correlation.item()) < 5 / len(kept) ** 0.5, lag


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_kept_values_are_scaled_and_dropped_ones_and_their_gradients_are_zero(dtype):
    torch.manual_seed(0)
    values = torch.full((64, 50), 2.0, dtype=dtype, requires_grad=True)
    out = cheap_dropout(values, 0.25, training=True)
    out.sum().backward()
    kept = out != 0
    assert 0.6 < kept.double().mean() < 0.9
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 2 / 0.75))
    torch.testing.assert_close(values.grad, kept.to(dtype) / 0.75)


def test_the_expectation_is_exact_for_rates_that_15_bits_do_not_hold():
    torch.manual_seed(0)
    out = cheap_dropout(torch.ones(2**15 * 64), 0.1, training=True)
    dropped = round(0.1 * 2**15)
    assert out.max().item() == pytest.approx(2**15 / (2**15 - dropped), rel=1e-7)


def test_no_dropout_in_evaluation_or_at_rate_zero():
    values = torch.randn(5, 5)
    assert cheap_dropout(values, 0.5, training=False) is values
    assert cheap_dropout(values, 0.0, training=True) is values


def test_every_dropout_module_is_replaced_with_its_rate():
    model = nn.Sequential(nn.Dropout(0.3), nn.ModuleDict({"lora": nn.Dropout(0.2)}))
    use_cheap_dropout(model)
    assert [module.p for module in model.modules() if isinstance(module, CheapDropout)] == [0.3, 0.2]
    assert not any(type(module) is nn.Dropout for module in model.modules())


def test_dropout_is_drawn_from_torchs_generator():
    torch.manual_seed(3)
    first = keep_mask(100, 3000)
    torch.manual_seed(3)
    assert torch.equal(keep_mask(100, 3000), first)


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "deberta"])
@pytest.mark.parametrize("method", ["bitfit", "lora", "full"])
def test_an_accelerated_model_computes_the_same(tiny_folder, architecture, method):
    plain, head = classifier(tiny_folder(architecture))
    plain = STRATEGIES[method]().apply(plain, head).eval()
    quick = copy.deepcopy(plain)
    accelerate_model(quick, torch.device("cpu"), "no")
    with torch.no_grad():
        expected, got = plain(**sentences()).logits, quick(**sentences()).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


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


@given(keys=st.integers(1, 130), dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 99))
def test_softmax_over_whole_vectors_is_softmax_and_so_is_its_gradient(keys, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = (4 * torch.randn(2, 3, keys, generator=generator)).to(dtype)
    scores[0, 0] = torch.finfo(dtype).min  # a row with nothing to look at: equal weights, for the real keys only
    upstream = torch.randn(2, 3, keys, generator=generator).to(dtype)
    got, expected = scores.clone().requires_grad_(), scores.double().requires_grad_()
    weights, exact = _softmax(got), nn.functional.softmax(expected, dim=-1)
    weights.backward(upstream)
    exact.backward(upstream.double())
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(weights.double(), exact, **tolerance)
    torch.testing.assert_close(got.grad.double(), expected.grad, **tolerance)


def test_an_adapter_s_input_stays_in_bf16_and_gives_the_same_bits(tiny_folder):
    plain, head = classifier(tiny_folder("bert"))
    plain = STRATEGIES["lora"]().apply(plain, head).eval()
    quick = copy.deepcopy(plain)
    leave_casts_to_autocast(quick)
    seen: dict[str, set[torch.dtype]] = {"plain": set(), "quick": set()}
    for which, model in (("plain", plain), ("quick", quick)):
        for name, module in model.named_modules():
            if name.endswith("lora_dropout.default"):
                module.register_forward_pre_hook(lambda _, inputs, which=which: seen[which].add(inputs[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain(**sentences()).logits, quick(**sentences()).logits)
    assert seen == {"plain": {torch.float32}, "quick": {torch.float32, torch.bfloat16}}


_AFTER_A_STEP = """
import ctypes, sys
from peftlib.acceleration import keep_freed_memory
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "keep":
    keep_freed_memory()
before = libc.mallinfo2()
blocks = [libc.malloc(20 << 20) for _ in range(10)]
mapped = libc.mallinfo2().hblks - before.hblks
for block in blocks:
    libc.free(block)
print(mapped, libc.mallinfo2().arena - before.arena)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_what_a_step_frees_stays_with_the_process():
    def step(how: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", _AFTER_A_STEP, how], capture_output=True, check=True)
        return [int(word) for word in done.stdout.split()]

    assert step("give back")[0] > 0, "glibc keeps large blocks by itself: keep_freed_memory can go"
    mapped, kept = step("keep")
    assert mapped == 0
    assert kept >= 200 << 20


@pytest.mark.parametrize("method", ["bitfit", "lora", "head"])
def test_frozen_weights_in_bf16_give_the_same_bits_under_autocast(tiny_folder, method):
    plain, head = classifier(tiny_folder("bert"))
    plain = STRATEGIES[method]().apply(plain, head).eval()
    kept = copy.deepcopy(plain)
    keep_frozen_linears_in(kept, torch.bfloat16)
    assert any(parameter.dtype == torch.bfloat16 for parameter in kept.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in kept.parameters() if parameter.requires_grad)
    losses = []
    for model in (plain, kept):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**sentences(), labels=torch.tensor([0, 1, 0, 1])).loss
        loss.backward()
        losses.append(loss)
    assert torch.equal(losses[0], losses[1])
    pairs = zip(plain.named_parameters(), kept.named_parameters(), strict=True)
    assert all(a.grad is None or torch.equal(a.grad, b.grad) for (_, a), (_, b) in pairs)


def test_full_fine_tuning_has_nothing_to_keep_in_half_precision(tiny_folder):
    model, head = classifier(tiny_folder("bert"))
    model = STRATEGIES["full"]().apply(model, head)
    keep_frozen_linears_in(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_only_a_method_that_reads_frozen_weights_keeps_them():
    assert STRATEGIES["lora"](use_dora=True).reads_frozen_weights
    assert not STRATEGIES["lora"]().reads_frozen_weights
