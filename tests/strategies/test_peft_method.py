"""PEFT's other methods: each trains, is saved, loaded and merged; and what is wrong with a configuration is a line."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from peftlib.acceleration import keep_frozen_linears_in
from peftlib.errors import UserError
from peftlib.strategies import Strategy
from peftlib.strategies.adapter import head_modules, merged
from peftlib.strategies.ia3 import IA3
from peftlib.strategies.ln_tuning import LNTuning
from peftlib.strategies.parameters import freeze_unread, load_trained_state, trained_state
from peftlib.strategies.peft_method import LAYER_TYPES, PEFT_TYPES, PeftMethod, is_installed
from peftlib.training.optimization import build_optimizer
from tests.conftest import ROOT
from tests.strategies.classifiers import classifier, logits, sentences, update

#: What fits layers that are 32 and 64 wide; the others' defaults do.
SMALL = {
    "fourierft": {"n_frequency": 50},
    "miss": {"r": 8},
    "peanut": {"r": 4},
    "pvera": {"r": 16},
    "road": {"group_size": 16},
    "shira": {"r": 4},
    "supertuning": {"sparsity": 0.9},
    "vblora": {"num_vectors": 16},
    "vera": {"r": 16},
    "waveft": {"n_frequency": 50},
}
#: The newest types are in none of the oldest PEFT's.
INSTALLED = [peft_type for peft_type in LAYER_TYPES if is_installed(peft_type)]


@pytest.fixture(autouse=True)
def no_model_is_left() -> Iterator[None]:
    """PEFT's super-tuning remembers every layer that it has computed; other tests look at what a process holds."""
    yield
    if is_installed("supertuning"):
        from peft.tuners.supertuning import layer

        layer._warn_once_about_module_hooks.cache_clear()


def method_of(peft_type: str) -> PeftMethod:
    return PeftMethod(peft_type, json.dumps(SMALL.get(peft_type, {})))


def changed(model: nn.Module) -> set[str]:
    """The modules with layers of PEFT's, by their name in the base model."""
    prefix = "base_model.model."
    return {name.removeprefix(prefix) for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)}


@pytest.mark.parametrize(("widths", "size"), [((768, 3072), 256), ((384, 1536), 192), ((32, 64), 32)])
def test_blocks_fit_the_layers_unless_their_size_is_given(widths: tuple[int, int], size: int) -> None:
    sizes = {"hidden_size": widths[0], "intermediate_size": widths[1], "num_attention_heads": 2, "num_hidden_layers": 1}
    head = frozenset({"classifier.weight", "classifier.bias"})
    for peft_type, name in (("c3a", "block_size"), ("vblora", "vector_length")):
        for given, expected in (({}, size), ({name: 16}, 16)):
            model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))
            wrapped: Any = PeftMethod(peft_type, json.dumps(given)).apply(model, head)
            assert getattr(wrapped.peft_config["default"], name) == expected


def test_options_may_be_a_dictionary_from_python() -> None:
    options: Any = {"r": 4, "alpha": 2}
    assert PeftMethod("loha", options) == PeftMethod("loha", '{"alpha": 2, "r": 4}')
    with pytest.raises(UserError, match=r"^peft_kwargs .*: Object of type set is not JSON serializable$"):
        PeftMethod("loha", {"r": {1}})  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("peft_type", INSTALLED)
def test_every_type_trains_and_what_is_saved_is_what_was_trained(
    tiny_folder: Callable[..., Path], tmp_path: Path, peft_type: str, architecture: str
) -> None:
    method, base = method_of(peft_type), tiny_folder(architecture)
    model, head = classifier(base)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    adapted = method.apply(model, head)
    assert changed(adapted) == {name for name in linears if f"{name}.weight" not in head}
    before = logits(adapted)
    names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert sum("modules_to_save" in name for name in names) == len(head)
    update(adapted)
    expected = logits(adapted)
    assert not torch.equal(before, expected)

    method.save(adapted, tmp_path, head)
    torch.manual_seed(99)
    loaded = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), tmp_path)
    assert (logits(loaded) - expected).abs().max() == 0.0
    torch.testing.assert_close(logits(merged(loaded)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "method", [*map(method_of, INSTALLED), PeftMethod("miss", '{"r": 8, "init_weights": "bat"}')], ids=repr
)
def test_only_those_that_add_to_frozen_weights_see_them_rounded(
    tiny_folder: Callable[..., Path], method: PeftMethod
) -> None:
    plain = method.apply(*classifier(tiny_folder("bert")))
    update(plain)
    kept, losses = copy.deepcopy(plain), []
    keep_frozen_linears_in(kept, torch.bfloat16)
    for model in (plain, kept):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**sentences(), labels=torch.tensor([0, 1, 0, 1])).loss
        loss.backward()
        losses.append(loss)
    pairs = list(zip(plain.named_parameters(), kept.named_parameters(), strict=True))
    same = torch.equal(*losses) and all(a.grad is None or torch.equal(a.grad, b.grad) for (_, a), (_, b) in pairs)
    assert any(b.dtype == torch.bfloat16 for _, (_, b) in pairs)
    assert same != method.reads_frozen_weights


@pytest.mark.parametrize("peft_type", INSTALLED)
def test_what_is_frozen_is_the_same_in_a_resumed_run(tiny_folder: Callable[..., Path], peft_type: str) -> None:
    """A checkpoint holds the trained parameters alone."""
    method, base = method_of(peft_type), tiny_folder("bert")
    first, resumed = (method.apply(*classifier(base)) for _ in range(2))
    update(first)
    load_trained_state(resumed, trained_state(first))
    left, right = first.state_dict(), resumed.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert torch.equal(logits(first), logits(resumed))


def test_a_rank_alone_is_enough_for_oft_and_has_a_limit_in_hra(tiny_folder: Callable[..., Path]) -> None:
    """PEFT's own default of OFT's block size contradicts any rank; HRA's memory grows with it."""
    assert changed(PeftMethod("oft", '{"r": 2, "target_modules": ["query"]}').apply(*classifier(tiny_folder("bert"))))
    with pytest.raises(UserError, match=r"^--peft_kwargs r 1000: this bert model has no layer of rank above 32$"):
        PeftMethod("hra", '{"r": 1000}').apply(*classifier(tiny_folder("bert")))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["query", "value"], ["query", "value"]),
        (["self.query"], ["query"]),
        (r".*layer\.\d\.attention\.self\.query", ["query"]),
    ],
)
def test_target_modules_are_endings_or_an_expression(
    tiny_folder: Callable[..., Path], targets: object, expected: list[str]
) -> None:
    adapted = PeftMethod("loha", json.dumps({"target_modules": targets})).apply(*classifier(tiny_folder("bert")))
    layers = {f"bert.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in expected}
    assert changed(adapted) == layers


def test_every_layer_is_trained_where_training_leaves_some_out(tiny_folder: Callable[..., Path]) -> None:
    """As scripts/train.py does, which freezes what no logit depends on."""
    adapted = PeftMethod("loha", '{"module_dropout": 0.9}').apply(*classifier(tiny_folder("bert")))
    before = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    freeze_unread(adapted, sentences(), pytest.fail)
    assert {name for name, parameter in adapted.named_parameters() if parameter.requires_grad} == before


@pytest.mark.parametrize("peft_type", INSTALLED)
def test_what_the_host_decides_is_known(
    tiny_folder: Callable[..., Path], peft_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph would repeat it. LoHa and LoKr draw a number even at a rate of 0, which changes nothing."""
    assert not PeftMethod(peft_type).draws_on_host
    config, batch = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(peft_type.upper())], sentences()
    several = {"oft_block_size": 8} if peft_type == "oft" else {}  # it leaves a single block alone
    drawn: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        original = getattr(torch, name)

        def draw(*given: object, **options: Any) -> Any:
            drawn.extend([name] * ("device" not in options))
            return original(*given, **options)

        return draw

    for option in [entry.name for entry in dataclasses.fields(config) if "dropout" in entry.name]:
        if isinstance(getattr(config, option, None), bool):
            continue  # no rate
        method = PeftMethod(peft_type, json.dumps(SMALL.get(peft_type, {}) | several | {option: 0.5}))
        model = method.apply(*classifier(tiny_folder("bert"))).train()
        drawn.clear()
        with monkeypatch.context() as patch:
            for name in ("rand", "randn", "randint", "randperm"):
                patch.setattr(torch, name, watched(name))
            model(**batch)
        assert method.draws_on_host == bool(drawn), f"{option}: {drawn}"


def test_a_type_that_the_installed_peft_lacks_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftlib.strategies.peft_method.PEFT_TYPES", (*PEFT_TYPES, "of_tomorrow"))
    with pytest.raises(UserError, match=rf"^--peft_type of_tomorrow: needs a newer peft; this is {peft.__version__}$"):
        PeftMethod("of_tomorrow")


def test_what_is_installed_is_what_peft_knows() -> None:
    known = {member.value.lower() for member in peft.PeftType}
    assert {name for name in PEFT_TYPES if is_installed(name)} == known & {*PEFT_TYPES}


def test_one_method_has_one_spelling() -> None:
    """Runs are told apart by their flags."""
    assert PeftMethod("LoHa", '{"r":4, "alpha": 8}') == PeftMethod("loha", '{ "alpha": 8, "r": 4 }')
    as_an_agent_writes_it = str({"r": 4, "use_scalar": True})
    assert PeftMethod("loha", as_an_agent_writes_it) == PeftMethod("loha", '{"r": 4, "use_scalar": true}')


@pytest.mark.parametrize(
    ("method", "scales"),
    [
        (method_of("boft"), "boft_s"),
        (IA3(), "ia3_l"),
        *((method_of("beft"), "beft_bias") for peft_type in INSTALLED if peft_type == "beft"),
    ],
    ids=repr,
)
def test_scales_and_biases_do_not_decay(tiny_folder: Callable[..., Path], method: Strategy, scales: str) -> None:
    adapted = method.apply(*classifier(tiny_folder("bert")))
    groups = build_optimizer(adapted, 1e-3, weight_decay=0.1).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    found = {name: id(one) in decayed for name, one in adapted.named_parameters() if one.requires_grad}
    assert not [name for name, decays in found.items() if decays and f".{scales}." in name]
    assert [name for name in found if f".{scales}." in name] and any(found.values())


@pytest.mark.parametrize("method", [LNTuning(), method_of("boft"), method_of("shira")], ids=repr)
def test_what_the_libraries_say_of_themselves_is_left_out(
    tiny_folder: Callable[..., Path], tmp_path: Path, method: Strategy
) -> None:
    model, head = classifier(tiny_folder("bert"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.save(method.apply(model, head), tmp_path, head)
        method.load(classifier(tiny_folder("bert"))[0], tmp_path)


def test_scales_may_be_any_number(tiny_folder: Callable[..., Path]) -> None:
    adapted = PeftMethod("loha", '{"alpha": 0.5, "r": 8}').apply(*classifier(tiny_folder("bert")))
    assert {one.scaling["default"] for one in adapted.modules() if isinstance(one, BaseTunerLayer)} == {0.5 / 8}


def test_the_head_is_never_a_target(tiny_folder: Callable[..., Path]) -> None:
    """VeRA has no `exclude_modules`."""
    model, head = classifier(tiny_folder("roberta"))
    adapted = PeftMethod("vera", '{"r": 16, "target_modules": ["dense"]}').apply(model, head)
    assert changed(adapted)
    assert not [name for name in changed(adapted) for one in head_modules(model, head) if name.startswith(one)]


def test_the_readme_names_every_type() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{name}`" for name in PEFT_TYPES) in " ".join(text.split())


@pytest.mark.parametrize(
    ("peft_type", "options", "message"),
    [
        ("vear", "{}", "--peft_type vear: not one of beft, .*, prompt_tuning; did you mean vera"),
        ("LORA", "{}", "--peft_type lora: not one of .*; use --method lora"),
        ("LN_TUNING", "{}", "--peft_type ln_tuning: not one of .*; use --method ln_tuning"),
        ("adalora", "{}", "--peft_type adalora: not one of .*; use --method adalora"),
        ("vera", "{r: 8}", "--peft_kwargs {r: 8}: not valid JSON: "),
        ("vera", "{1, 2}", "--peft_kwargs {1, 2}: not valid JSON: "),
        ("loha", '{"alpha": 1e999}', "--peft_kwargs .*: numbers must be finite"),
        ("loha", "[" * 100_000, r"--peft_kwargs \[+: not valid JSON: "),
        ("vera", "[8]", r"--peft_kwargs \[8\]: must be a JSON object, such as '{\"r\": 8}'"),
        ("vera", '{"r": 4, "r": 8}', r"--peft_kwargs \{.*\}: r is given twice; leave one out"),
        ("vera", '{"modules_to_save": []}', "--peft_kwargs: modules_to_save is set automatically; leave it out"),
        (
            "vera",
            '{"layers_to_transform": [0]}',
            "--peft_kwargs: layers_to_transform is set automatically; express it in target_modules",
        ),
        ("randlora", "{}", "--peft_type randlora: not one of "),
        ("pvera", '{"generator_seed": 1}', "--peft_kwargs: generator_seed is set automatically; leave it out"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_loaded(peft_type: str, options: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        PeftMethod(peft_type, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("peft_type", "options", "message"),
    [
        ("vera", {"rank": 8}, "--peft_kwargs: vera has no option rank"),
        ("VERA", {"r": 0}, "--peft_type vera --peft_kwargs '{\"r\": 0}': "),
        ("c3a", {"block_size": 7}, "--peft_type c3a --peft_kwargs '{\"block_size\": 7}': "),
        ("loha", {"module_dropout": "0.1"}, '--peft_kwargs: module_dropout is "0.1", and must be of type float'),
        ("loha", {"module_dropout": None}, "--peft_kwargs: module_dropout is null, and must be of type float"),
        ("loha", {"r": True}, "--peft_kwargs: r is true, and must be of type int"),
        ("loha", {"r": 1.5}, "--peft_kwargs: r is 1.5, and must be of type int"),
        ("lokr", {"decompose_both": "false"}, '--peft_kwargs: decompose_both is "false", and must be of type bool'),
        ("shira", {"mask_type": "randm"}, '--peft_kwargs: mask_type is "randm", and must be of type Literal'),
        ("boft", {"boft_dropout": 1.5}, "--peft_kwargs: boft_dropout is 1.5; must be in 0 <= p < 1"),
        ("loha", {"target_modules": ["qery"]}, "--peft_kwargs target_modules qery: .* has no qery at all; its Linear "),
        ("loha", {"target_modules": "qery"}, "--peft_kwargs target_modules qery: matches nothing in "),
        ("loha", {"target_modules": "*"}, r"--peft_kwargs target_modules \*: not a valid regular expression: "),
        ("loha", {"target_modules": []}, r"--peft_kwargs target_modules \[\]: must be all-linear, a list "),
        ("loha", {"target_modules": ["LayerNorm"]}, "--peft_type loha --peft_kwargs .*: "),
    ],
)
def test_a_configuration_that_does_not_fit_the_model_is_a_line(
    tiny_folder: Callable[..., Path], peft_type: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        PeftMethod(peft_type, json.dumps(options)).apply(*classifier(tiny_folder("bert")))
    assert "\n" not in str(caught.value)


def test_p_tuning_saves_the_prompt_that_is_scored(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """PEFT computes it while it saves: with its encoder's dropout, if the model is in training mode."""
    kwargs = '{"num_virtual_tokens": 5, "encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.5}'
    method, base = PeftMethod("p_tuning", kwargs), tiny_folder("bert")
    model, head = classifier(base)
    adapted = method.apply(model, head)
    expected = logits(adapted)
    adapted.train()
    method.save(adapted, tmp_path, head)
    assert adapted.training and all(module.training for module in adapted.modules())
    loaded = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), tmp_path)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-6)
