"""What fp16 cannot hold: tiny and huge rows and columns, infinities. Skipped if the processor cannot multiply it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlib.acceleration import fp16_calls
from peftlib.acceleration.fp16_calls import pack, product

pytestmark = pytest.mark.skipif(
    not fp16_calls.are_there(), reason="this processor has no AVX512-FP16, or there is no g++"
)
BF16 = torch.bfloat16


def normal(*shape):
    return torch.randn(*shape).to(BF16)


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@settings(max_examples=60)
@given(data=st.data(), rows=st.integers(1, 40), columns=st.sampled_from([32, 96, 160]))
def test_rows_and_columns_may_be_of_any_size(data, rows, columns):
    """Each has the same relative error as if all were of size 1: what it is scaled by is a power of two."""
    torch.manual_seed(0)
    powers = st.integers(-50, 60)  # smaller rows are not scaled up to the same size
    of_rows = torch.tensor(data.draw(st.lists(powers, min_size=rows, max_size=rows)))
    of_columns = torch.tensor(data.draw(st.lists(powers, min_size=columns, max_size=columns)))
    x, matrix = normal(rows, 416), normal(416, columns)
    plain = product(x, pack(matrix))
    scaled = product(torch.ldexp(x.float(), of_rows[:, None]).to(BF16), pack(torch.ldexp(matrix.float(), of_columns)))
    assert torch.equal(scaled.double(), torch.ldexp(plain.double(), of_rows[:, None] + of_columns))


def test_sums_do_not_overflow():
    """All numbers of one sign and as large as they get: the largest sums that there are."""
    x, matrix = torch.full((3, 768), 255 * 2.0**40).to(BF16), torch.full((768, 64), 255 * 2.0**-30).to(BF16)
    assert error(product(x, pack(matrix)), x.double() @ matrix.double()) < 0.01


@pytest.mark.parametrize("depth", [32, 384, 1536])
def test_the_error_of_adding_up_is_less_than_that_of_rounding_to_bf16(depth):
    torch.manual_seed(0)
    x, matrix = normal(500, depth), normal(depth, 64)
    exact = x.double() @ matrix.double()
    found, rounded = error(product(x, pack(matrix)), exact), error(exact.to(BF16), exact)
    assert (found**2 - rounded**2) ** 0.5 < 0.75 * rounded


def test_a_few_large_numbers_do_not_spoil_the_others():
    """As some of a BERT's dimensions are: the error stays that of numbers which are rounded to bf16 themselves."""
    torch.manual_seed(0)
    exact_x, matrix = torch.randn(500, 384), normal(384, 384)
    exact_x[:, [5, 100, 300]] *= 40
    x = exact_x.to(BF16)
    found = error(product(x, pack(matrix)), x.double() @ matrix.double())
    assert found < error(x.double() @ matrix.double(), exact_x.double() @ matrix.double()) * 1.5


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_so_in_its_row_alone(value):
    torch.manual_seed(0)
    x, matrix = normal(30, 64), normal(64, 32)
    plain = product(x, pack(matrix))
    x[7, 3] = value
    found = product(x, pack(matrix))
    assert not found[7].isfinite().any()
    others = torch.arange(30) != 7
    assert torch.equal(found[others], plain[others])


def test_zeros():
    x, matrix = normal(13, 64), normal(64, 64)
    x[3], matrix[:, 5] = 0, 0
    found = product(x, pack(matrix))
    assert not found[3].any() and not found[:, 5].any()
    assert found[2, :5].all()


@settings(max_examples=40)
@given(
    depth=st.integers(1, 70), width=st.integers(1, 200), turned=st.booleans(), factor=st.sampled_from([1.0, 0.3]),
    dtype=st.sampled_from([torch.float32, BF16]),
)  # fmt: skip
def test_panels_of_any_lengths_are_filled_up_with_zeros(depth, width, turned, factor, dtype):
    torch.manual_seed(0)
    matrix = (torch.randn(width, depth).t() if turned else torch.randn(depth, width)).to(dtype)
    whole = torch.zeros(-(-depth // 32) * 32, -(-width // 32) * 32)
    whole[:depth, :width] = matrix.float() * factor
    panels = pack(matrix, factor)
    assert (panels.depth, panels.width) == whole.shape
    columns = [panel.view(len(whole), -1) for panel in panels.numbers.split(64 * len(whole))]
    assert all(panel.size(1) == 64 for panel in columns[:-1])
    unpacked = torch.cat(columns, 1)
    assert unpacked.abs().max() <= 1
    most = unpacked[:, :width].abs().amax(0)
    assert (most >= 0.5).all()
    torch.testing.assert_close(
        unpacked.float() * panels.factors, whole, rtol=2**-11, atol=2**-25 * panels.factors.max().item()
    )


def test_what_is_too_small_beside_a_row_s_largest_number_is_lost_and_nothing_else():
    """Not misread, as the bits of what would be a subnormal number."""
    for power, lost in ((-19, False), (-20, False), (-21, True), (-30, True)):
        x, matrix = torch.full((1, 32), 1.5 * 2.0**power), torch.ones(32, 32)
        x[0, 0], matrix[0] = 1, 0  # so that the result shows the others alone
        found = product(x.to(BF16), pack(matrix))
        assert torch.equal(found, torch.full((1, 32), 0.0 if lost else 31 * 1.5 * 2.0**power).to(BF16)), power
