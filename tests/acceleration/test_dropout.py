"""Cheap dropout has the distribution that dropout is defined by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peftlib.acceleration import cpu_calls
from peftlib.acceleration.dropout import CheapDropout, cheap_dropout, drawn, keep_mask, use_cheap_dropout


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


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def kernels(request, monkeypatch):
    """Run the test with the CPU kernels and without them."""
    if request.param and not cpu_calls.are_there():
        pytest.skip("this machine has no g++ for the CPU kernels")
    monkeypatch.setattr(cpu_calls, "are_there", lambda: request.param)
    return request.param


@pytest.mark.parametrize("width", [50, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_kept_values_are_scaled_and_dropped_ones_and_their_gradients_are_zero(dtype, width, kernels):
    torch.manual_seed(0)
    values = torch.full((2, 32, width), 2.0, dtype=dtype, requires_grad=True)
    out = cheap_dropout(values, 0.25, training=True)
    out.sum().backward()
    kept = out != 0
    assert 0.6 < kept.double().mean() < 0.9
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 2 / 0.75))
    torch.testing.assert_close(values.grad, kept.to(dtype) / 0.75)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_drawn_stays_and_can_be_added_in_place(dtype, kernels):
    torch.manual_seed(0)
    values, total = torch.randn(6, 7, 32).to(dtype), torch.randn(6, 7, 32).to(dtype)
    one = drawn(values, 0.3)
    assert torch.equal(one.of(values), one.of(values)) and not torch.equal(one.of(values), values)
    expected = total + one.of(values)
    given = total.clone()
    assert one.onto(values, given) is given
    torch.testing.assert_close(given, expected, rtol=0, atol=2**-5 if dtype == torch.bfloat16 else 1e-6)
    torch.testing.assert_close(one.of(values.transpose(0, 1).contiguous().transpose(0, 1)), one.of(values))


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


@pytest.mark.parametrize("shape", [(4, 32), (2, 3, 32), (2, 3, 5)])
def test_what_comes_out_may_be_changed_in_place(shape):
    """X-MOD adds its residual so; of a view made inside the autograd function torch would refuse it."""
    x = torch.randn(shape, requires_grad=True)
    output = CheapDropout(0.5)(x)
    kept = output.detach().clone() / x.detach()
    output += 1
    output.sum().backward()
    torch.testing.assert_close(x.grad, kept, rtol=1e-5, atol=1e-6)
