"""An encoder without padding against transformers' own."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from peftlib.acceleration import accelerate_model, cpu_calls, packed_encoder, torch_layer
from peftlib.acceleration.cpu_layer import FrozenLayer
from peftlib.acceleration.dropout import use_cheap_dropout
from peftlib.acceleration.first_tokens import attend_first
from peftlib.acceleration.frozen_matrices import FrozenMatrix
from peftlib.acceleration.layer_parts import KernelParts, TorchParts, parts_for
from peftlib.acceleration.packed_encoder import pack_encoder
from peftlib.acceleration.packed_linear import FrozenProduct
from peftlib.acceleration.packing import Packing, packed_rows
from peftlib.acceleration.torch_layer import Attend, DropoutAddNorm
from peftlib.training.precision import _cpu_has_bf16
from tests.acceleration.classifiers import tiny_classifier

needs_bf16 = pytest.mark.skipif(not _cpu_has_bf16(), reason="this CPU has no bf16 instructions")
LIKE_BERT = ["bert", "electra", "roberta", "xlm-roberta"]


def classifier(kind="bert", layers=2, p=0.0, width=12, heads=3, inner=20, **config):
    """Build a tiny classifier in fp64, in training mode, with trained biases and normalisation."""
    torch.manual_seed(0)
    return tiny_classifier(
        kind, width=width, heads=heads, inner=inner, layers=layers, p=p, spread=10, place=torch.float64, **config
    )


def batch(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(5, 50, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": ids, "attention_mask": mask}


def gradients(model, given):
    """Return the logits, and the gradients of all trained parameters by name."""
    model.zero_grad()
    logits = model(**given).logits
    nn.functional.cross_entropy(logits, torch.arange(len(logits)) % 2).backward()
    return logits.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def assert_same(model, given, tolerance=1e-10):
    packed = copy.deepcopy(model)
    assert pack_encoder(packed)
    (theirs, of_theirs), (ours, of_ours) = gradients(model, given), gradients(packed, given)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert of_ours.keys() == of_theirs.keys()
    for name, gradient in of_theirs.items():
        most = tolerance * max(1.0, float(gradient.abs().max()))  # sums round in proportion to their size
        torch.testing.assert_close(of_ours[name], gradient, rtol=0, atol=most, msg=lambda why, at=name: f"{at}: {why}")
    return packed


def used(monkeypatch, run):
    """Count the layers in which `run` computes attention without padding."""
    made = []
    apply = Attend.apply
    with monkeypatch.context() as patched:
        patched.setattr(torch_layer.Attend, "apply", lambda *given: made.append(given) or apply(*given))
        run()
    return len(made)


@pytest.mark.parametrize("kind", LIKE_BERT)
def test_logits_and_gradients_are_transformers_own(kind, monkeypatch):
    model = classifier(kind)
    packed = assert_same(model, batch(7, 3, 5))
    assert used(monkeypatch, lambda: packed(**batch(7, 3, 5))) == 2


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), layers=st.integers(1, 3))
def test_any_lengths_and_numbers_of_layers(lengths, layers):
    assert_same(classifier(layers=layers), batch(*lengths))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("kind", LIKE_BERT)
@pytest.mark.parametrize("changed", [{}, {"hidden_act": "relu"}, {"trained": "everything"}, {"trained": "head"}])
def test_in_fp32_on_the_cpu_kernels_and_without_them(kernels, kind, changed, monkeypatch):
    if kernels and not cpu_calls.are_there():
        pytest.skip("this machine has no g++ for the CPU kernels")
    changed = dict(changed)
    trained = changed.pop("trained", None)
    model = classifier(kind, width=32, heads=2, inner=48, **changed).float()
    for name, parameter in model.named_parameters():
        if trained:
            parameter.requires_grad_(trained == "everything" or name.startswith("classifier"))
    monkeypatch.setattr(cpu_calls, "are_there", lambda: kernels)
    calls = []
    call = cpu_calls.call
    monkeypatch.setattr(cpu_calls, "call", lambda name, *given: calls.append(name) or call(name, *given))
    assert_same(model, batch(17, 3, 9), tolerance=2e-4)
    assert ("attention_forward" in calls) == ("norm_forward" in calls) == kernels
    assert ("attention_backward" in calls) == (kernels and trained != "head")
    assert ("gelu_forward" in calls) == (kernels and "hidden_act" not in changed)


@pytest.mark.skipif(not cpu_calls.are_there(), reason="this machine has no g++ for the CPU kernels")
@pytest.mark.parametrize(("trained", "layers"), [("bias", 2), ("dense.weight", 0), ("layer.1.output.dense.weight", 1)])
def test_frozen_layers_but_the_last_are_one_function(trained, layers, monkeypatch):
    model = classifier(width=32, heads=2, inner=48, layers=3).float()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name or name.startswith("classifier"))
    made, apply = [], FrozenLayer.apply
    monkeypatch.setattr(FrozenLayer, "apply", lambda *given: made.append(given) or apply(*given))
    assert_same(model, batch(17, 3, 9), tolerance=2e-4)
    assert len(made) == layers


@pytest.mark.skipif(not cpu_calls.are_there(), reason="this machine has no g++ for the CPU kernels")
@pytest.mark.parametrize(("trained", "absorbed"), [
    ("bias", True), ("layer.1.attention.self.query.weight", True), ("layer.1.attention.self.key.weight", False),
    ("layer.1.attention.self.value.weight", False), ("everything", False), ("head", True),
])  # fmt: skip
def test_the_last_layer_s_frozen_keys_and_values_are_not_computed(trained, absorbed, monkeypatch):
    model = classifier(width=32, heads=2, inner=48).float()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in ("everything", name) or trained in name or name.startswith("classifier"))
    made = []
    monkeypatch.setattr(packed_encoder, "attend_first", lambda *given: made.append(given) or attend_first(*given))
    packed = assert_same(model, batch(17, 3, 9), tolerance=2e-4)
    assert len(made) == absorbed
    packed.base_model.encoder.layer[1].attention.self.key.register_forward_hook(lambda *given: made.clear())
    packed(**batch(17, 3, 9))
    assert not made  # somebody watches the keys


@pytest.mark.parametrize(("dtype", "sizes", "fit"), [
    (torch.bfloat16, {}, True),
    (torch.float64, {}, False),
    (torch.float32, {"inner": 40}, False),
    (torch.float32, {"heads": 4}, False),  # 8 wide
])  # fmt: skip
def test_layers_that_the_kernels_do_not_fit_are_left_to_torch(dtype, sizes, fit, monkeypatch):
    monkeypatch.setattr(cpu_calls, "are_there", lambda: True)
    layer = classifier(**{"width": 32, "heads": 2, "inner": 48, **sizes}).base_model.encoder.layer[0]
    assert isinstance(parts_for(layer, dtype), KernelParts if fit else TorchParts)


@pytest.mark.skipif(not cpu_calls.are_there(), reason="this machine has no g++ for the CPU kernels")
def test_the_kernels_with_parameters_in_bf16(monkeypatch):
    """The kernels read vectors as fp32, so bf16 ones must be cast."""
    model = classifier(width=32, heads=2, inner=48).to(torch.bfloat16)
    packed = copy.deepcopy(model)
    pack_encoder(packed)
    (theirs, of_theirs), (ours, of_ours) = gradients(model, batch(17, 3, 9)), gradients(packed, batch(17, 3, 9))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.2 * theirs.abs().max().item())
    for name, gradient in of_theirs.items():
        if gradient.abs().max() > 1e-2:
            assert (of_ours[name] - gradient).norm() < 0.25 * gradient.norm(), name


@pytest.mark.skipif(not cpu_calls.are_there(), reason="this machine has no g++ for the CPU kernels")
def test_a_hook_on_the_activation_is_called_on_the_kernels_too():
    model = classifier(width=32, heads=2, inner=48).float()
    pack_encoder(model)
    seen = []
    model.base_model.encoder.layer[0].intermediate.intermediate_act_fn.register_forward_hook(
        lambda *given: seen.append(given)
    )
    model(**batch(4, 2))
    assert len(seen) == 1


def test_as_many_tokens_as_rows():
    """Sixteen tokens without padding still get fillers."""
    assert_same(classifier(), batch(8, 8))


@pytest.mark.parametrize("trained", ["everything", "head", "query.bias"])
def test_whatever_is_trained(trained):
    model = classifier()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained == "everything" or name.startswith("classifier") or trained in name)
    assert_same(model, batch(6, 2))


@pytest.mark.parametrize("dora", [False, True])
def test_lora_s_layers_are_called(dora):
    config = LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS", lora_dropout=0.0, use_dora=dora)
    model = get_peft_model(classifier(), config).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert_same(model, batch(6, 2))


MATRICES = [
    f"bert.encoder.layer.{layer}.{name}"
    for layer in (0, 1)
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                 "intermediate.dense", "output.dense")
]  # fmt: skip


@pytest.mark.skipif(not cpu_calls.are_there(), reason="this machine has no g++ for the CPU kernels")
@settings(max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(["frozen", "trained", "adapted", "watched"]), min_size=12, max_size=12),
    biases=st.booleans(),
)
@example(kinds=["adapted", *["frozen"] * 5] * 2, biases=True)
@example(kinds=["frozen", "adapted", *["frozen"] * 4] * 2, biases=True)
def test_any_mixture_of_frozen_trained_adapted_and_watched_matrices(kinds, biases):
    """Each bias is added once, by the module or by the kernels."""
    model = classifier(width=32, heads=2, inner=48).float()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(biases and name.endswith("bias"))
    for name, kind in zip(MATRICES, kinds, strict=True):
        model.get_submodule(name).weight.requires_grad_(kind == "trained")
        if kind == "watched":
            model.get_submodule(name).register_forward_hook(lambda *given: None)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapted = [name for name, kind in zip(MATRICES, kinds, strict=True) if kind == "adapted"]
    if adapted:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=adapted, task_type="SEQ_CLS", lora_dropout=0.0))
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        parameter.requires_grad_("lora_" in name or plain in trained or "classifier" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert_same(model, batch(17, 3, 9), tolerance=2e-4)


@pytest.mark.skipif(not cpu_calls.are_there(), reason="this machine has no g++ for the CPU kernels")
@pytest.mark.parametrize("trained, precision", [
    ("bias", "no"), ("lora", "no"), ("", "no"),
    *(pytest.param(one, "bf16", marks=needs_bf16) for one in ("bias", "lora")),
])  # fmt: skip
def test_gradients_have_the_same_bits_on_any_number_of_threads(trained, precision):
    model = classifier(width=64, heads=2, inner=128, p=0.1).float()
    if trained == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name or "classifier" in name)
    accelerate_model(model, torch.device("cpu"), precision)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found.append(gradients(model, batch(*range(5, 45))))
    finally:
        torch.set_num_threads(before)
    for logits, of_parameters in found[1:]:
        assert torch.equal(logits, found[0][0])
        for name, gradient in of_parameters.items():
            assert torch.equal(gradient, found[0][1][name]), name


def test_padding_is_not_computed(monkeypatch):
    model = classifier()
    pack_encoder(model)
    rows = []
    monkeypatch.setattr(
        packed_encoder.FrozenProduct, "apply", lambda x, *more: rows.append(len(x)) or x.new_zeros(len(x), 12)
    )
    monkeypatch.setattr(torch_layer.Attend, "apply", lambda rows, query, *_: rows if query is None else query)
    model(**batch(64, 2, 2, 2))
    assert set(rows) == {packed_rows(70, gradients=True), 4}  # all tokens; of the last layer each example's first
    assert packed_rows(70, gradients=True) == 96


@pytest.mark.parametrize(("gradients", "share", "numbers"), [(True, 16, 85), (False, 64, 230)])
def test_fillers_are_few(gradients, share, numbers):
    for tokens in range(1, 5000):
        assert 0 < packed_rows(tokens, gradients) - tokens <= max(32, tokens / share + 1)
    assert len({packed_rows(tokens, gradients) for tokens in range(1, 8192)}) < numbers


def test_evaluation_has_fewer_fillers():
    seen = torch.ones(64, 50, dtype=torch.bool)
    with torch.inference_mode():
        evaluated = Packing(seen, 3, 4, torch.float32)
    assert len(evaluated.tokens) == 3232 < len(Packing(seen, 3, 4, torch.float32).tokens) == 3328


@pytest.mark.parametrize("given", [
    {"attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])},  # padded on the left: the head reads padding
    {"attention_mask": (torch.eye(3) + torch.tensor([[1.0], [0], [0]])).clamp(max=1).expand(2, 1, 3, 3).double().log()},
    {"attention_mask": (torch.eye(3) + torch.tensor([[1.0], [0], [0]])).bool().expand(2, 1, 3, 3)},  # of single queries
    {"attention_mask": torch.tensor([0.0, -1.5, 0.0]).double().expand(2, 1, 3, 3)},  # hides nothing
    {"output_hidden_states": True},
])  # fmt: skip
def test_what_it_cannot_compute_is_left_to_transformers(monkeypatch, given):
    model, packed = classifier(), classifier()
    pack_encoder(packed)
    given = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]), **given}
    if given.get("output_hidden_states"):
        assert len(packed(**given).hidden_states) == len(model(**given).hidden_states) == 3
    torch.testing.assert_close(packed(**given).logits, model(**given).logits, rtol=0, atol=1e-12)
    assert used(monkeypatch, lambda: packed(**given)) == 0


def test_second_derivatives_are_refused():
    """Autograd functions do not know those of their kernels, and would take them for zero."""
    model = classifier()
    pack_encoder(model)
    loss = model(**batch(4, 2)).logits.square().sum()
    trained = [parameter for name, parameter in model.named_parameters() if "layer" in name and "bias" in name]
    gradients = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(gradient.square().sum() for gradient in gradients if gradient is not None).backward()


def test_somebody_who_watches_a_module_sees_it(monkeypatch):
    model = classifier()
    pack_encoder(model)
    seen = []
    model.base_model.encoder.layer[1].output.register_forward_hook(lambda *given: seen.append(given))
    assert used(monkeypatch, lambda: model(**batch(4, 2))) == 0
    assert len(seen) == 1


def test_a_hook_on_a_frozen_linear_is_called(monkeypatch):
    model = classifier()
    pack_encoder(model)
    seen = []
    model.base_model.encoder.layer[0].intermediate.dense.register_forward_hook(lambda *given: seen.append(given))
    assert used(monkeypatch, lambda: model(**batch(4, 2))) == 2
    assert len(seen) == 1


def test_other_models_are_not_changed():
    assert not pack_encoder(nn.Linear(2, 2))
    distilbert = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("distilbert", vocab_size=50, dim=12, n_heads=3, hidden_dim=20, n_layers=1)
    )
    assert not pack_encoder(distilbert)
    assert not pack_encoder(classifier(is_decoder=True))


class MeanForSequenceClassification(BertForSequenceClassification):
    """Custom code as shipped with a model: BERT by its configuration, but with a head that reads every token."""

    def forward(self, **given):
        return SequenceClassifierOutput(logits=self.classifier(self.bert(**given).last_hidden_state.mean(1)))


def test_a_head_of_somebody_else_s_is_not_taken_for_bert_s():
    config = AutoConfig.for_model("bert", vocab_size=50, hidden_size=12, num_attention_heads=3, num_hidden_layers=2)
    model = MeanForSequenceClassification(config).eval()
    expected = model(**batch(4, 2)).logits
    accelerate_model(model, torch.device("cpu"), "no")
    torch.testing.assert_close(model(**batch(4, 2)).logits, expected, rtol=1e-5, atol=1e-6)


def test_what_the_encoder_is_told_and_does_not_know_goes_to_transformers(monkeypatch):
    model = classifier()
    pack_encoder(model)
    assert used(monkeypatch, lambda: model(**batch(4, 2), of_no_meaning=torch.ones(1))) == 0
    assert used(monkeypatch, lambda: model(**batch(4, 2), of_no_meaning=None)) == 2


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradients_of_the_parts(p):
    """Against finite differences, under the same dropout masks."""
    packing = Packing(torch.tensor([[True, True, True], [True, False, False]]), 2, 3, torch.float64)
    tokens = packing.real

    def filled(rows):  # fillers: copies, without gradients
        return torch.cat([rows, rows[:1].detach().expand(len(packing.tokens) - tokens, -1)])

    def number(*shape):
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def check(function, *given):
        def seeded(*given):
            torch.manual_seed(1)
            return function(*given)

        assert torch.autograd.gradcheck(seeded, given)

    torch.manual_seed(0)
    check(lambda rows: Attend.apply(filled(rows), None, packing, p)[:tokens], number(tokens, 18))
    check(lambda rows, query: Attend.apply(filled(rows), query, packing, p), number(tokens, 12), number(2, 6))
    check(
        lambda product, residual, *vectors: DropoutAddNorm.apply(product, residual, p, *vectors, 1e-5),
        *(number(tokens, 6), number(tokens, 6), number(6), number(6)),
    )
    weight = torch.randn(5, 6, dtype=torch.float64)
    check(
        lambda x, *biases: FrozenProduct.apply(x, FrozenMatrix(weight), *biases),
        number(4, 6),
        number(2),
        number(3),
    )


def test_dropout_s_masks_are_used_where_transformers_drops(monkeypatch):
    """With everything dropped, a layer only normalises its residuals; evaluation drops nothing."""
    model = classifier(p=1.0)
    use_cheap_dropout(model)
    packed = copy.deepcopy(model)
    pack_encoder(packed)
    for one in (model, packed):  # its own dropouts, before and after the encoder
        one.base_model.embeddings.dropout.p = one.dropout.p = 0.0
    torch.testing.assert_close(packed(**batch(4, 2)).logits, model(**batch(4, 2)).logits, rtol=0, atol=1e-10)
    model.eval(), packed.eval()
    torch.testing.assert_close(packed(**batch(4, 2)).logits, model(**batch(4, 2)).logits, rtol=0, atol=1e-10)


def test_half_precision_is_as_exact_as_autocast():
    """Compares errors against fp64, without dropout."""
    exact = classifier(layers=3)
    theirs, ours = copy.deepcopy(exact).float(), copy.deepcopy(exact).float()
    accelerate_model(ours, torch.device("cpu"), "bf16")
    given = batch(20, 11, 7)
    errors = []
    reference = gradients(exact, given)
    for model in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            logits, grads = gradients(model, given)
        of_logits = (logits.double() - reference[0]).norm() / reference[0].norm()
        both = [(grads[name].double(), reference[1][name]) for name in grads]
        of_grads = sum((a - b).square().sum() for a, b in both) / sum(b.square().sum() for _, b in both)
        errors.append((of_logits.item(), of_grads.sqrt().item()))
    assert errors[1][0] < 2 * errors[0][0] + 1e-3
    assert errors[1][1] < 2 * errors[0][1]


def test_a_copy_and_its_original_have_weights_of_their_own():
    model = classifier()
    pack_encoder(model)
    before = model(**batch(4, 2)).logits
    copied = copy.deepcopy(model)
    copied.base_model.encoder.layer[0].attention.self.key.weight.data.zero_()
    assert not torch.allclose(copied(**batch(4, 2)).logits, before)
    torch.testing.assert_close(model(**batch(4, 2)).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 300, 8192])
def test_gradients_of_a_normalisation_are_summed_in_fp32_over_however_many_rows(rows):
    """torch's own sums of bf16 rows stand still when they are large: over 8,192 rows half of them was lost."""
    generator = torch.Generator().manual_seed(rows)
    product, residual = (torch.randn(rows, 48, generator=generator).bfloat16() for _ in range(2))
    above = (torch.randn(rows, 48, generator=generator) + 0.3).bfloat16()
    found, expected = ([torch.full((48,), 1.5), torch.zeros(48)] for _ in range(2))
    expected = [vector.double() for vector in expected]
    for vector in (*found, *expected):
        vector.requires_grad_()
    DropoutAddNorm.apply(product, residual, 0.0, *found, 1e-5).backward(above)
    nn.functional.layer_norm((product + residual).double(), (48,), *expected).backward(above.double())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4 * float(other.grad.abs().max()))
