"""Frozen Linear layers multiply with packed matrices wherever they are; trained, wrapped and odd ones as before."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from peftlib.acceleration import accelerate_model, frozen_matrices
from peftlib.acceleration.frozen_linear import FrozenProduct, pack_frozen_linears
from peftlib.acceleration.frozen_matrices import FrozenMatrix, PackedMatrix
from peftlib.acceleration.low_rank import _QuickLinear
from peftlib.modeling import find_model, load_classifier
from peftlib.strategies import STRATEGIES

CPU = torch.device("cpu")
METHODS = {
    "bitfit": {}, "full": {}, "head": {}, "lora": {}, "dora": {"use_dora": True}, "ia3": {}, "adalora": {},
    "ln_tuning": {}, "peft": {"peft_type": "prompt_tuning", "peft_kwargs": '{"num_virtual_tokens": 2}'},
    "loha": {"peft_type": "loha"},
}  # fmt: skip


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


def linear(bias=True):
    torch.manual_seed(0)
    module = nn.Linear(32, 64, bias=bias)
    module.weight.requires_grad_(False)
    module.weight.data = module.weight.data.bfloat16()
    return module


@pytest.mark.usefixtures("_packed")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 32), (2, 2, 3, 32), (32,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_the_plain_layer_s(products, bias, shape, dtype):
    plain, packed = linear(bias), linear(bias)
    pack_frozen_linears(nn.Sequential(packed))
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
    pack_frozen_linears(nn.Sequential(module))
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


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_whether_its_products_are_packed(tiny_folder, name):
    """So that `--mixed_precision auto` may rely on it."""
    kind = {"dora": "lora", "loha": "peft"}.get(name, name)
    strategy = STRATEGIES[kind](**METHODS[name])
    base, head, _ = load_classifier(
        find_model(str(tiny_folder("distilbert"))), ("a", "b"), virtual_tokens=strategy.virtual_tokens
    )
    model = strategy.apply(base, head)
    accelerate_model(model, CPU, "bf16", reads_frozen=strategy.reads_frozen_weights)
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    quick = {f"{path}.base_layer" for path, module in model.named_modules() if isinstance(module, _QuickLinear)}
    frozen = {path for path in layers if ".layer." in path and ".lora_" not in path}
    packed = {path for path in frozen if type(layers[path]) is not nn.Linear or path in quick}
    assert len(frozen) >= 6
    assert all(layers[path].weight.dtype == torch.bfloat16 for path in packed - quick)
    kept = {path for path in packed if layers[path].weight.dtype == torch.bfloat16}
    assert (kept == frozen) == strategy.multiplies_frozen


def test_fp32_stays_torch_s(tiny_folder):
    base, head, _ = load_classifier(find_model(str(tiny_folder("distilbert"))), ("a", "b"))
    model = STRATEGIES["bitfit"]().apply(base, head)
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.Linear)]
    accelerate_model(model, CPU, "no")
    assert [type(module) for module in model.modules() if isinstance(module, nn.Linear)] == kinds
    assert type(frozen_matrices.frozen_matrix(torch.float32, linear().float())) is FrozenMatrix
