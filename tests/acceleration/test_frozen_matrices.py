"""Products with packed matrices against plain ones; outdated packed weights are never used."""

from __future__ import annotations

import copy
import gc
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftlib.acceleration import frozen_matrices, tile_calls
from peftlib.acceleration.frozen_matrices import (
    Bf16Matrix,
    Fp16Matrix,
    FrozenMatrix,
    OneDnnMatrix,
    PackedMatrix,
    TiledMatrix,
    frozen_matrix,
)
from peftlib.acceleration.panel_calls import IN_BF16, IN_FP16

BF16 = torch.bfloat16
needs_onednn = pytest.mark.skipif(not frozen_matrices._has_onednn(), reason="this torch has no oneDNN")
needs_tiles = pytest.mark.skipif(not tile_calls.are_there(), reason="this processor has no AMX, or there is no g++")
needs_fp16 = pytest.mark.skipif(not IN_FP16.are_there(), reason="this processor has no AVX512-FP16, or no g++")
needs_bf16 = pytest.mark.skipif(not IN_BF16.are_there(), reason="this processor has no AVX512-BF16, or no g++")
KINDS = [
    pytest.param(FrozenMatrix, id="plain"),
    pytest.param(OneDnnMatrix, id="oneDNN", marks=needs_onednn),
    pytest.param(TiledMatrix, id="tiles", marks=needs_tiles),
    pytest.param(Fp16Matrix, id="fp16", marks=needs_fp16),
    pytest.param(Bf16Matrix, id="bf16", marks=needs_bf16),
]


def linear(out=64, width=32, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(width, out).to(BF16).requires_grad_(False)


def close(left, right):
    torch.testing.assert_close(left.float(), right, rtol=2**-7, atol=2**-7 * right.abs().max().item())


def assert_multiplies(matrix, plain, rows=40):
    """Check forward and backward products, with and without an addend."""
    x, gradient = torch.randn(rows, plain.size(1)).to(BF16), torch.randn(rows, plain.size(0)).to(BF16)
    bias, onto = torch.randn(plain.size(0)).to(BF16), torch.randn(rows, plain.size(1)).to(BF16)
    forward, backward = x.float() @ plain.float().t(), gradient.float() @ plain.float()
    close(matrix.times(x), forward)
    close(matrix.times(x, bias), forward + bias.float())
    close(matrix.back(gradient), backward)
    expected = onto.float() + backward
    assert matrix.back(gradient, onto=onto) is onto
    close(onto, expected)


def assert_is_of(*modules):
    """Check that the matrix holds the modules' current weights."""
    assert_multiplies(frozen_matrix(BF16, *modules), torch.cat([module.weight.detach() for module in modules]))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(rows=st.integers(1, 200), out=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 9))
def test_products_are_those_of_the_plain_matrix(kind, rows, out, width, seed):
    plain = linear(32 * out, 32 * width, seed).weight.detach()
    assert_multiplies(kind(plain), plain, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_do_not_lie_one_behind_the_other(kind):
    plain = linear().weight.detach()
    x, gradient = torch.randn(32, 20).to(BF16).t(), torch.randn(64).to(BF16).expand(20, 64)
    close(kind(plain).times(x), x.float() @ plain.float().t())
    close(kind(plain).back(gradient), gradient.float() @ plain.float())


@pytest.mark.skipif(
    not (tile_calls.are_there() or IN_FP16.pay() or IN_BF16.pay()), reason="oneDNN is the fastest here, or alone"
)
def test_what_is_not_of_whole_tiles_is_left_to_onednn():
    kind = TiledMatrix if tile_calls.are_there() else Fp16Matrix if IN_FP16.pay() else Bf16Matrix
    assert type(frozen_matrix(BF16, linear())) is kind
    assert type(frozen_matrix(BF16, linear(40))) is OneDnnMatrix
    assert type(frozen_matrix(BF16, linear(64, 40))) is OneDnnMatrix
    assert_is_of(linear(40))


@needs_onednn
def test_where_there_is_amx_what_is_not_of_whole_tiles_is_left_to_it(monkeypatch):
    """By oneDNN: AVX-512's own bf16 is slow on those processors."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "Intel Xeon", "amx_bf16": True})
    monkeypatch.setattr(tile_calls, "are_there", lambda: True)
    assert type(frozen_matrix(BF16, linear(48))) is OneDnnMatrix
    assert not IN_BF16.pay() and not IN_FP16.pay()


@needs_onednn
def test_packed_once():
    module = linear()
    assert frozen_matrix(BF16, module) is frozen_matrix(BF16, module)
    three = linear(seed=1), linear(seed=2), linear(seed=3)
    assert frozen_matrix(BF16, *three) is frozen_matrix(BF16, *three)


@pytest.mark.parametrize("change", [
    lambda module: module.load_state_dict(linear(seed=9).state_dict()),
    lambda module: module.weight.mul_(2),
    lambda module: setattr(module.weight, "data", linear(seed=9).weight.data),
    lambda module: setattr(module, "weight", linear(seed=9).weight),
], ids=["loaded", "in place", "other data", "other parameter"])  # fmt: skip
@pytest.mark.parametrize("which", [0, 2])
def test_new_weights_are_packed_anew(change, which):
    three = linear(seed=1), linear(seed=2), linear(seed=3)
    assert_is_of(*three)
    assert_is_of(three[which]) if which else None
    change(three[which])
    assert_is_of(*three)


def test_packed_matrices_hold_only_what_products_need():
    """In prediction the backward one is not packed, and after it is, the plain one is not kept."""
    plain, packed = linear().weight.detach(), []

    class Counted(PackedMatrix):
        calls = SimpleNamespace(  # type: ignore[assignment]
            pack=lambda matrix: packed.append(matrix.shape) or matrix, product=lambda x, matrix, *_, **__: x @ matrix
        )

    matrix = Counted(plain)
    for _ in range(2):
        matrix.times(torch.zeros(3, 32, dtype=BF16))
    assert packed == [(32, 64)] and matrix.plain is plain
    for _ in range(2):
        matrix.back(torch.zeros(3, 64, dtype=BF16))
    assert packed == [(32, 64), (64, 32)] and not hasattr(matrix, "plain")


def test_a_copy_has_its_own():
    module = linear()
    assert_is_of(module)
    other = copy.deepcopy(module)
    other.weight.mul_(3)
    assert_is_of(other)
    assert_is_of(module)


def test_weights_in_fp32_are_packed_for_bf16_rows_by_fp16_instructions_alone():
    module = linear().float()
    assert type(frozen_matrix(torch.float32, module)) is FrozenMatrix
    matrix = frozen_matrix(BF16, module)
    assert matrix.plain.dtype == BF16
    assert type(matrix) is (Fp16Matrix if IN_FP16.pay() else FrozenMatrix)
    assert_multiplies(matrix, module.weight.detach().to(BF16))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86's instructions")
def test_where_onednn_refuses_bf16_the_plain_matrix_multiplies():
    """As on a CPU without AVX-512, if the user asks for bf16."""
    code = (
        "import torch\n"
        "from peftlib.acceleration.frozen_matrices import frozen_matrix\n"
        "linear = torch.nn.Linear(40, 16).to(torch.bfloat16).requires_grad_(False)\n"
        "matrix = frozen_matrix(torch.bfloat16, linear)\n"
        "print(type(matrix).__name__, *matrix.times(torch.zeros(3, 40, dtype=torch.bfloat16)).shape)\n"
    )
    limited = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=limited, capture_output=True, text=True, check=False)
    assert done.stdout == "FrozenMatrix 3 16\n", done.stderr


@needs_onednn
def test_they_go_with_their_module():
    before = len(frozen_matrices._known)
    module = linear()
    frozen_matrix(BF16, module)
    assert len(frozen_matrices._known) == before + 1
    del module
    gc.collect()
    assert len(frozen_matrices._known) == before
