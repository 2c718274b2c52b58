"""Products with packed matrices, of each kind that this processor has, against double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlib.acceleration import cpu_calls, tile_calls
from peftlib.acceleration.cpu_calls import Beside, Dropout
from peftlib.acceleration.panel_calls import IN_BF16, IN_FP16

BF16 = torch.bfloat16
counts = st.integers(1, 7)  # of the lengths that matrices are multiples of
each_kind = pytest.mark.parametrize("calls", [
    pytest.param(calls, id=name, marks=pytest.mark.skipif(
        not calls.are_there(), reason=f"this processor has no {name}, or there is no g++"
    ))
    for calls, name in ((tile_calls, "AMX"), (IN_FP16, "AVX512-FP16"), (IN_BF16, "AVX512-BF16"))
])  # fmt: skip


def close(left, right):
    """Compare up to bf16's rounding, of sums that may cancel."""
    scale = right.abs().max().item() if len(right) else 0.0
    torch.testing.assert_close(left.double(), right, rtol=2**-7, atol=2**-7 * scale)


def unit_of(calls):
    return 32 if calls is tile_calls else calls.length


def normal(*shape):
    return torch.randn(*shape).to(BF16)


@each_kind
@settings(max_examples=60)
@given(
    rows=st.integers(0, 150), deep=st.one_of(counts, st.sampled_from([12, 13, 25, 97, 193])), wide=counts,
    rank=st.integers(1, 70), p=st.sampled_from([0.0, 0.1, 0.7]), biased=st.booleans(), added=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_product_and_what_is_beside_it(calls, rows, deep, wide, rank, p, biased, added, seed):
    torch.manual_seed(seed)
    depth, width = deep * unit_of(calls), wide * unit_of(calls)
    x, matrix, bias, onto = normal(rows, depth), normal(depth, width), torch.randn(width), normal(rows, width)
    by, beside, drop = normal(depth, rank), normal(rank, width), Dropout.of(p)
    low = calls.product(x, calls.pack(by))
    close(low[:, :rank], x.double() @ by.double())
    assert not low[:, rank:].any()
    more = low[:, :rank].double() @ beside.double()
    more = more * cpu_calls.dropout(torch.ones(rows, width), drop)
    expected = x.double() @ matrix.double() + more + (bias if biased else 0) + (onto.double() if added else 0)
    given_onto = onto.clone() if added else None
    out = calls.product(
        x, calls.pack(matrix), bias if biased else None, beside=Beside(low, calls.pack(beside), drop), onto=given_onto
    )
    assert out is given_onto or not added
    close(out, expected)


@each_kind
@settings(max_examples=40)
@given(
    rows=st.integers(0, 150), wide=counts, others=counts, count=st.integers(1, 160), seed=st.integers(0, 99)
)  # fmt: skip
def test_an_inner_product(calls, rows, wide, others, count, seed):
    torch.manual_seed(seed)
    width, other = wide * unit_of(calls), others * unit_of(calls)
    left, right, count = normal(rows, width), normal(rows, other), min(count, width)
    found = calls.inner_product(left, right, count)
    assert found.dtype == torch.float32
    expected = left[:, :count].double().t() @ right.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@each_kind
def test_bits_do_not_depend_on_the_number_of_threads(calls):
    torch.manual_seed(0)
    x, matrix, low, beside = normal(300, 512), calls.pack(normal(512, 96)), normal(300, 32), calls.pack(normal(32, 96))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            product = calls.product(x, matrix, beside=Beside(low, beside, Dropout(6554, 1.1, 5)))
            found.append((product, calls.inner_product(low, x, 20)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, first) for other in found[1:] for one, first in zip(other, found[0], strict=True))


@each_kind
def test_what_the_kernels_would_read_all_the_same_is_refused(calls):
    with pytest.raises(ValueError, match="not contiguous"):
        calls.product(normal(32, 40).t(), calls.pack(normal(32, 32)))
