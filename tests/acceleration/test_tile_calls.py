"""Products on AMX tiles against double precision; skipped if the processor has no AMX."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlib.acceleration import cpu_calls, tile_calls
from peftlib.acceleration.cpu_calls import Dropout
from peftlib.acceleration.tile_calls import Beside, Tiled

pytestmark = pytest.mark.skipif(not tile_calls.are_there(), reason="this processor has no AMX, or there is no g++")

BF16 = torch.bfloat16
lengths = st.integers(1, 5).map(lambda count: 32 * count)


def close(left, right):
    """Compare up to bf16's rounding, of sums that may cancel."""
    scale = right.abs().max().item()
    torch.testing.assert_close(left.double(), right, rtol=2**-7, atol=2**-7 * scale)


def normal(*shape):
    return torch.randn(*shape).to(BF16)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 150), depth=lengths, width=lengths, rank=st.integers(1, 70), p=st.sampled_from([0.0, 0.1, 0.7]),
    biased=st.booleans(), added=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_product_and_what_is_beside_it(rows, depth, width, rank, p, biased, added, seed):
    torch.manual_seed(seed)
    x, matrix, bias, onto = normal(rows, depth), normal(depth, width), torch.randn(width), normal(rows, width)
    by, beside, drop = torch.randn(depth, rank), torch.randn(rank, width), Dropout.of(p)
    low = tile_calls.product(x, Tiled.of(by))
    close(low[:, :rank], x.double() @ by.to(BF16).double())
    assert not low[:, rank:].any()
    more = low[:, :rank].double() @ beside.to(BF16).double()
    more = more * cpu_calls.dropout(torch.ones(rows, width), drop)
    expected = x.double() @ matrix.double() + more + (bias if biased else 0) + (onto.double() if added else 0)
    given_onto = onto.clone() if added else None
    out = tile_calls.product(
        x, Tiled.of(matrix), bias if biased else None, beside=Beside(low, Tiled.of(beside), drop), onto=given_onto
    )
    assert out is given_onto or not added
    close(out, expected)


@settings(max_examples=40)
@given(rows=st.integers(1, 150), width=lengths, other=lengths, seed=st.integers(0, 99))
def test_an_inner_product(rows, width, other, seed):
    torch.manual_seed(seed)
    left, right = normal(rows, width), normal(rows, other)
    found = tile_calls.inner_product(left, right)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), left.double().t() @ right.double(), rtol=1e-5, atol=1e-4)


@settings(max_examples=40)
@given(
    depth=st.integers(1, 70), width=st.integers(1, 70), turned=st.booleans(), factor=st.sampled_from([1.0, 0.3]),
    dtype=st.sampled_from([torch.float32, BF16]),
)  # fmt: skip
def test_tiles_of_any_lengths_are_filled_up_with_zeros(depth, width, turned, factor, dtype):
    matrix = (torch.randn(width, depth).t() if turned else torch.randn(depth, width)).to(dtype)
    whole = torch.zeros(-(-depth // 32) * 32, -(-width // 32) * 32)
    whole[:depth, :width] = matrix.float() * factor
    pairs = whole.to(BF16).reshape(len(whole) // 32, 16, 2, whole.size(1) // 32, 2, 16)
    assert torch.equal(Tiled.of(matrix, factor).tiles, pairs.permute(3, 0, 4, 1, 5, 2))


def test_bits_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    x, matrix, low, beside = normal(300, 512), Tiled.of(normal(512, 96)), normal(300, 32), Tiled.of(normal(32, 96))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            drop = Dropout(6554, 1.1, 5)
            product = tile_calls.product(x, matrix, beside=Beside(low, beside, drop))
            found.append((product, tile_calls.inner_product(low, x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, first) for other in found[1:] for one, first in zip(other, found[0], strict=True))


def test_the_processor_s_tiles_are_afterwards_as_another_library_left_them(tmp_path):
    """oneDNN also configures the tiles, in its own way."""
    source, library = tmp_path / "shapes.c", tmp_path / "shapes.so"
    source.write_text('void shapes(char *to) { asm volatile("sttilecfg %0" : "=m"(*(char(*)[64])to)); }')
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", "-o", library, source], check=True)
    shapes = ctypes.CDLL(str(library)).shapes
    x, plain, other = normal(40, 48), normal(48, 80), Tiled.of(normal(32, 64))
    for _ in range(2):
        alone = x @ plain
        before, after = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
        shapes(before)
        tile_calls.product(normal(33, 32), other)
        shapes(after)
        assert after.raw == before.raw
        assert torch.equal(x @ plain, alone)


def test_what_the_kernels_would_read_all_the_same_is_refused():
    with pytest.raises(ValueError, match="not contiguous"):
        tile_calls.product(normal(32, 40).t(), Tiled.of(normal(32, 32)))
