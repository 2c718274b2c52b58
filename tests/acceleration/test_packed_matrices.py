"""Products with packed matrices against plain ones, and that no weights are used that are not there any more."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

from peftlib.acceleration import packed_matrices
from peftlib.acceleration.packed_matrices import packed, product

pytestmark = pytest.mark.skipif(not packed_matrices._has_onednn(), reason="this torch has no oneDNN")


def linear(out=48, width=32, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(width, out).to(torch.bfloat16).requires_grad_(False)


def assert_multiplies(*modules, rows=40):
    """The packed matrix gives what the modules give."""
    x = torch.randn(rows, modules[0].in_features).bfloat16()
    expected = torch.cat([x @ module.weight.t() for module in modules], 1)
    torch.testing.assert_close(product(x, packed(*modules)), expected, rtol=2**-7, atol=2**-7)
    bias = torch.randn(expected.size(1)).bfloat16()
    torch.testing.assert_close(product(x, packed(*modules), bias), expected + bias, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("rows", [1, 16, 40, 500])
def test_products_are_those_of_the_plain_matrices(rows):
    assert_multiplies(linear(), rows=rows)
    assert_multiplies(linear(16, seed=1), linear(16, seed=2), linear(24, seed=3), rows=rows)


def test_packed_once():
    module = linear()
    assert packed(module) is packed(module)
    three = linear(seed=1), linear(seed=2), linear(seed=3)
    assert packed(*three) is packed(*three)


@pytest.mark.parametrize("change", [
    lambda module: module.load_state_dict(linear(seed=9).state_dict()),
    lambda module: module.weight.mul_(2),
    lambda module: setattr(module.weight, "data", linear(seed=9).weight.data),
    lambda module: setattr(module, "weight", linear(seed=9).weight),
], ids=["loaded", "in place", "other data", "other parameter"])  # fmt: skip
@pytest.mark.parametrize("which", [0, 2])
def test_new_weights_are_packed_anew(change, which):
    three = linear(seed=1), linear(seed=2), linear(seed=3)
    assert_multiplies(*three)
    assert_multiplies(three[which]) if which else None
    change(three[which])
    assert_multiplies(*three)


def test_a_copy_has_its_own():
    module = linear()
    assert_multiplies(module)
    other = copy.deepcopy(module)
    other.weight.mul_(3)
    assert_multiplies(other)
    assert_multiplies(module)


def test_other_precisions_are_not_packed():
    module = linear()
    assert packed(module) is not None
    assert packed(module.float()) is None


def test_they_go_with_their_module():
    before = len(packed_matrices._known)
    module = linear()
    packed(module)
    assert len(packed_matrices._known) == before + 1
    del module
    gc.collect()
    assert len(packed_matrices._known) == before
