"""Linear layers multiply with packed matrices wherever they are."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftlib.acceleration import accelerate_model, frozen_matrices, tile_calls
from peftlib.acceleration.frozen_matrices import FrozenMatrix, PackedMatrix
from peftlib.acceleration.packed_linear import FrozenProduct, _PackedLinear, _WrappedLinear, pack_linears
from peftlib.acceleration.panel_calls import IN_BF16, IN_FP16
from peftlib.modeling import find_model, load_classifier
from peftlib.strategies import STRATEGIES

CPU = torch.device("cpu")
needs_fp16 = pytest.mark.skipif(not IN_FP16.are_there(), reason="this processor has no AVX512-FP16, or no g++")


def _product(x, matrix, bias=None, *, beside=None, onto=None):
    low = 0 if beside is None else beside.low @ beside.matrix
    return (x @ matrix + low + (0 if bias is None else bias)).bfloat16()


class InTorch(PackedMatrix):
    """As if this processor had kernels of its own for every matrix."""

    calls = SimpleNamespace(  # type: ignore[assignment]
        pack=lambda matrix, factor=1.0: (matrix * factor).bfloat16(), product=_product,
        inner_product=lambda left, right, count: (left[:, :count].t() @ right).float(),
    )  # fmt: skip


@pytest.fixture
def _packed(monkeypatch):
    monkeypatch.setattr(tile_calls, "are_there", lambda: True)
    monkeypatch.setattr(IN_FP16, "pay", lambda: False)
    plain = frozen_matrices._kind
    monkeypatch.setattr(
        frozen_matrices, "_kind", lambda weights, dtype: InTorch if dtype == torch.bfloat16 else plain(weights, dtype)
    )


@pytest.fixture
def products(monkeypatch):
    """The weights that packed products were computed with."""
    used, apply = [], FrozenProduct.apply
    monkeypatch.setattr(
        FrozenProduct, "apply", lambda x, matrix, *biases: used.append(matrix.plain.shape) or apply(x, matrix, *biases)
    )
    return used


@contextmanager
def fp16_is_fastest():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IN_FP16, "pay", lambda: True)
        yield


def linear(bias=True):
    torch.manual_seed(0)
    module = nn.Linear(32, 64, bias=bias)
    module.weight.requires_grad_(False)
    module.weight.data = module.weight.data.bfloat16()
    return module


@pytest.mark.usefixtures("_packed")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 32), (2, 2, 3, 32), (32,), (0, 32), (2, 0, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_the_plain_layer_s(products, bias, shape, dtype):
    plain, packed = linear(bias), linear(bias)
    pack_linears(nn.Sequential(packed))
    x, gradient = torch.randn(shape).to(dtype), torch.randn(*shape[:-1], 64).bfloat16()
    found = []
    for module in (plain, packed):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = module(given)
        output.backward(gradient)
        found.append((output, given.grad, *([] if module.bias is None else [module.bias.grad])))
    assert products == [(64, 32)]
    for left, right in zip(*found, strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        torch.testing.assert_close(left, right, rtol=2**-6, atol=2**-6)


@pytest.mark.usefixtures("_packed")
def test_other_calls_are_torch_s(products):
    module = linear()
    pack_linears(nn.Sequential(module))
    module.float()(torch.randn(3, 32))  # without autocast, in fp32
    module.weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(3, 32))
    assert not products


@pytest.mark.usefixtures("_packed")
@pytest.mark.parametrize("architecture", ["distilbert", "deberta", "albert"])
@pytest.mark.parametrize("method", ["bitfit", "head", "ln_tuning"])
def test_a_model_that_is_not_bert_computes_the_same(tiny_folder, products, architecture, method):
    base, head, _ = load_classifier(find_model(str(tiny_folder(architecture))), ("a", "b"))
    plain = STRATEGIES[method]().apply(base, head).eval()
    packed = copy.deepcopy(plain)
    accelerate_model(plain, CPU, "bf16", enabled=False)
    accelerate_model(packed, CPU, "bf16")
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3], [2, 3, 0, 0]]), "attention_mask": mask}
    found = []
    for model in (plain, packed):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch, labels=torch.tensor([0, 1])).loss
        loss.backward()
        found.append([loss, *(one.grad.flatten() for one in model.parameters() if one.requires_grad)])
    assert products
    for left, right in zip(*found, strict=True):
        assert (left.float() - right.float()).norm() <= 0.05 * right.float().norm() + 1e-3


@pytest.mark.parametrize("method", ["bitfit", "lora", "ia3", "full"])
def test_what_peft_has_wrapped_is_not_packed_once_and_for_all(tiny_folder, method):
    """PEFT merges into `weight.data`, which does not show."""
    base, head, _ = load_classifier(find_model(str(tiny_folder("distilbert"))), ("a", "b"))
    model = STRATEGIES[method]().apply(base, head)
    with fp16_is_fastest():
        accelerate_model(model, CPU, "bf16")
    wrapped = {id(module.base_layer) for module in model.modules() if hasattr(module, "base_layer")}
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear) and id(module) in wrapped}
    assert kinds == ({_WrappedLinear} if method in ("lora", "ia3") else set())
    assert any(type(module) is _PackedLinear for module in model.modules())


@needs_fp16
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@settings(max_examples=40)
@given(rows=st.integers(0, 130), width=st.sampled_from([32, 96, 416]), out=st.sampled_from([32, 160]))
def test_trained_weights_are_packed_for_every_product(trained, bias, rows, width, out):
    """Against torch's in double precision; what is changed in place counts at once."""
    torch.manual_seed(0)
    module = nn.Linear(width, out, bias=bias)
    module.weight.requires_grad_(trained)
    exact = copy.deepcopy(module).double()
    module.__class__ = _WrappedLinear
    x, gradient = torch.randn(rows, width).bfloat16(), torch.randn(rows, out).bfloat16()
    for _ in range(2):
        found = []
        for layer, given_x in ((exact, x.double()), (module, x.clone())):
            layer.zero_grad()
            given_x.requires_grad_()
            with fp16_is_fastest(), torch.autocast("cpu", torch.bfloat16, enabled=layer is module):
                output = layer(given_x)
            output.backward(gradient.to(output.dtype))
            found.append([output, given_x.grad, *(one.grad for one in layer.parameters() if one.requires_grad)])
            layer.weight.data.mul_(-2)
        assert output.grad_fn.next_functions[0][0].name() == "_Fp16ProductBackward"
        for right, left in zip(*found, strict=True):
            assert (left.double() - right).norm() <= 2**-7 * right.norm()
    assert all(one.grad.dtype == torch.float32 for one in module.parameters() if one.requires_grad)


def test_fp32_stays_torch_s(tiny_folder):
    base, head, _ = load_classifier(find_model(str(tiny_folder("distilbert"))), ("a", "b"))
    model = STRATEGIES["bitfit"]().apply(base, head)
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.Linear)]
    accelerate_model(model, CPU, "no")
    assert [type(module) for module in model.modules() if isinstance(module, nn.Linear)] == kinds
    assert type(frozen_matrices.frozen_matrix(torch.float32, linear().float())) is FrozenMatrix


def test_where_no_kernels_are_faster_nothing_changes(tiny_folder, monkeypatch):
    monkeypatch.setattr(tile_calls, "are_there", lambda: False)
    for calls in (IN_FP16, IN_BF16):
        monkeypatch.setattr(calls, "pay", lambda: False)
    base, head, _ = load_classifier(find_model(str(tiny_folder("distilbert"))), ("a", "b"))
    model = STRATEGIES["bitfit"]().apply(base, head)
    accelerate_model(model, CPU, "bf16")
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}


@pytest.mark.usefixtures("_packed")
def test_what_other_kernels_multiply_is_not_packed_twice(monkeypatch, products):
    """oneDNN packs weights of a layout of its own, for nothing if torch multiplies in the end."""
    module, made = linear(), []
    pack_linears(nn.Sequential(module))
    monkeypatch.setattr(frozen_matrices, "_kind", lambda weights, dtype: frozen_matrices.OneDnnMatrix)
    monkeypatch.setattr(frozen_matrices.OneDnnMatrix, "__init__", lambda self, plain: made.append(plain))
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(3, 32))
    assert not made and not products


@pytest.mark.usefixtures("_packed")
def test_a_wrapped_layer_uses_no_packed_weights(products):
    module = linear()
    module.__class__ = _WrappedLinear
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(3, 32))
    assert not products
