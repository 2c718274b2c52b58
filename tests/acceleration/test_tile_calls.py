"""How AMX tiles are filled and left; skipped if the processor has no AMX."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlib.acceleration import tile_calls

pytestmark = pytest.mark.skipif(not tile_calls.are_there(), reason="this processor has no AMX, or there is no g++")

BF16 = torch.bfloat16


def normal(*shape):
    return torch.randn(*shape).to(BF16)


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
    assert torch.equal(tile_calls.pack(matrix, factor).tiles, pairs.permute(3, 0, 4, 1, 5, 2))


def test_the_processor_s_tiles_are_afterwards_as_another_library_left_them(tmp_path):
    """oneDNN also configures the tiles, in its own way."""
    source, library = tmp_path / "shapes.c", tmp_path / "shapes.so"
    source.write_text('void shapes(char *to) { asm volatile("sttilecfg %0" : "=m"(*(char(*)[64])to)); }')
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", "-o", library, source], check=True)
    shapes = ctypes.CDLL(str(library)).shapes
    x, plain, other = normal(40, 48), normal(48, 80), tile_calls.pack(normal(32, 64))
    for _ in range(2):
        alone = x @ plain
        before, after = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
        shapes(before)
        tile_calls.product(normal(33, 32), other)
        shapes(after)
        assert after.raw == before.raw
        assert torch.equal(x @ plain, alone)
