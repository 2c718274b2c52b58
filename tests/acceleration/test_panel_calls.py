"""What arithmetic in fp16 cannot hold, and in bf16 can: tiny and huge rows and columns, infinities; what is rounded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlib.acceleration.panel_calls import IN_BF16, IN_FP16

in_fp16, in_bf16 = (
    pytest.mark.skipif(not calls.are_there(), reason=f"this processor has no AVX512-{name}, or there is no g++")
    for calls, name in ((IN_FP16, "FP16"), (IN_BF16, "BF16"))
)
in_each = pytest.mark.parametrize("calls", [
    pytest.param(IN_FP16, id="fp16", marks=in_fp16), pytest.param(IN_BF16, id="bf16", marks=in_bf16),
])  # fmt: skip
BF16 = torch.bfloat16


def normal(*shape):
    return torch.randn(*shape).to(BF16)


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@in_each
@settings(max_examples=60)
@given(data=st.data(), rows=st.integers(1, 40), columns=st.sampled_from([32, 96, 160]))
def test_rows_and_columns_may_be_of_any_size(calls, data, rows, columns):
    """Each has the same relative error as if all were of size 1: what it is scaled by is a power of two."""
    torch.manual_seed(0)
    powers = st.integers(-50, 60)  # smaller rows are not scaled up to the same size
    of_rows = torch.tensor(data.draw(st.lists(powers, min_size=rows, max_size=rows)))
    of_columns = torch.tensor(data.draw(st.lists(powers, min_size=columns, max_size=columns)))
    x, matrix = normal(rows, 416), normal(416, columns)
    plain = calls.product(x, calls.pack(matrix))
    scaled = calls.product(
        torch.ldexp(x.float(), of_rows[:, None]).to(BF16), calls.pack(torch.ldexp(matrix.float(), of_columns))
    )
    assert torch.equal(scaled.double(), torch.ldexp(plain.double(), of_rows[:, None] + of_columns))


@in_each
def test_sums_do_not_overflow(calls):
    """All numbers of one sign and as large as they get: the largest sums that there are."""
    x, matrix = torch.full((3, 768), 255 * 2.0**40).to(BF16), torch.full((768, 64), 255 * 2.0**-30).to(BF16)
    assert error(calls.product(x, calls.pack(matrix)), x.double() @ matrix.double()) < 0.01


@in_each
@pytest.mark.parametrize("depth", [32, 384, 1536])
def test_the_error_of_adding_up_is_less_than_that_of_rounding_to_bf16(calls, depth):
    """In bf16 there is next to none."""
    torch.manual_seed(0)
    x, matrix = normal(500, depth), normal(depth, 64)
    exact = x.double() @ matrix.double()
    found, rounded = error(calls.product(x, calls.pack(matrix)), exact), error(exact.to(BF16), exact)
    most = 0.75 if calls is IN_FP16 else 0.02
    assert abs(found**2 - rounded**2) ** 0.5 < most * rounded


@in_fp16
def test_a_few_large_numbers_do_not_spoil_the_others():
    """As some of a BERT's dimensions are: the error stays that of numbers which are rounded to bf16 themselves."""
    torch.manual_seed(0)
    exact_x, matrix = torch.randn(500, 384), normal(384, 384)
    exact_x[:, [5, 100, 300]] *= 40
    x = exact_x.to(BF16)
    found = error(IN_FP16.product(x, IN_FP16.pack(matrix)), x.double() @ matrix.double())
    assert found < error(x.double() @ matrix.double(), exact_x.double() @ matrix.double()) * 1.5


@in_each
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_so_in_its_row_alone(calls, value):
    torch.manual_seed(0)
    x, matrix = normal(30, 64), normal(64, 32)
    plain = calls.product(x, calls.pack(matrix))
    x[7, 3] = value
    found = calls.product(x, calls.pack(matrix))
    assert not found[7].isfinite().any()
    others = torch.arange(30) != 7
    assert torch.equal(found[others], plain[others])


@in_each
def test_zeros(calls):
    x, matrix = normal(13, 64), normal(64, 64)
    x[3], matrix[:, 5] = 0, 0
    found = calls.product(x, calls.pack(matrix))
    assert not found[3].any() and not found[:, 5].any()
    assert found[2, :5].all()


@in_each
@settings(max_examples=40)
@given(
    depth=st.integers(1, 70), width=st.integers(1, 200), turned=st.booleans(), factor=st.sampled_from([1.0, 0.3]),
    dtype=st.sampled_from([torch.float32, BF16]),
)  # fmt: skip
def test_panels_of_any_lengths_are_filled_up_with_zeros(calls, depth, width, turned, factor, dtype):
    torch.manual_seed(0)
    matrix = (torch.randn(width, depth).t() if turned else torch.randn(depth, width)).to(dtype)
    whole = torch.zeros(-(-depth // calls.length) * calls.length, -(-width // calls.length) * calls.length)
    whole[:depth, :width] = matrix.float() * factor
    panels = calls.pack(matrix, factor)
    assert (panels.depth, panels.width) == whole.shape
    if calls is IN_BF16:
        pairs = [panel.view(len(whole) // 2, -1, 2) for panel in panels.numbers.split(32 * len(whole))]
        unpacked = torch.cat([panel.transpose(1, 2).reshape(len(whole), -1) for panel in pairs], 1)
        assert torch.equal(unpacked, whole.to(BF16)) and panels.factors is None
        return
    columns = [panel.view(len(whole), -1) for panel in panels.numbers.split(64 * len(whole))]
    assert all(panel.size(1) == 64 for panel in columns[:-1])
    unpacked = torch.cat(columns, 1)
    assert unpacked.abs().max() <= 1
    most = unpacked[:, :width].abs().amax(0)
    assert (most >= 0.5).all()
    torch.testing.assert_close(
        unpacked.float() * panels.factors, whole, rtol=2**-11, atol=2**-25 * panels.factors.max().item()
    )


@in_fp16
def test_what_is_too_small_beside_a_row_s_largest_number_is_lost_and_nothing_else():
    """Not misread, as the bits of what would be a subnormal number."""
    for power, lost in ((-19, False), (-20, False), (-21, True), (-30, True)):
        x, matrix = torch.full((1, 32), 1.5 * 2.0**power), torch.ones(32, 32)
        x[0, 0], matrix[0] = 1, 0  # so that the result shows the others alone
        found = IN_FP16.product(x.to(BF16), IN_FP16.pack(matrix))
        assert torch.equal(found, torch.full((1, 32), 0.0 if lost else 31 * 1.5 * 2.0**power).to(BF16)), power
