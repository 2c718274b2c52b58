"""Prompts and prefixes: each trains beside a frozen model, is saved as stock PEFT loads it, and ignores padding."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertModel

from peftlib.acceleration import accelerate_model
from peftlib.acceleration.bert import has_virtual_tokens
from peftlib.errors import UserError
from peftlib.strategies.bitfit import BitFit
from peftlib.strategies.lora import LoRA
from peftlib.strategies.parameters import trained_state
from peftlib.strategies.peft_method import PeftMethod
from peftlib.strategies.prompts import PROMPT_TYPES
from tests.strategies.classifiers import assert_computes_the_same, classifier, logits, trained_names, update

#: Since transformers 5.24 keys and values have a name that PEFT 0.21 does not know.
PREFIXES = pytest.mark.skipif(
    "past_key_values" not in inspect.signature(BertModel.forward).parameters,
    reason=f"peft {peft.__version__} gives the models of transformers {transformers.__version__} no keys and values",
)


def _marked(peft_type: str, *more: Any) -> Any:
    return pytest.param(peft_type, *more, marks=PREFIXES if peft_type == "prefix_tuning" else ())


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((peft_type, {"num_virtual_tokens": 3}) for peft_type in PROMPT_TYPES),
    ("p_tuning", {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 8}),
    ("prefix_tuning", {"prefix_projection": True, "encoder_hidden_size": 8}),
    ("prompt_tuning", {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "is this a good film"}),
]


def method_of(peft_type: str, **options: object) -> PeftMethod:
    return PeftMethod(peft_type, json.dumps(options))


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize(("peft_type", "options"), [_marked(*variant) for variant in VARIANTS], ids=str)
def test_what_is_saved_is_what_was_trained(
    tiny_folder: Callable[..., Path], tmp_path: Path, peft_type: str, options: dict[str, Any], architecture: str
) -> None:
    method, base = method_of(peft_type, **options), tiny_folder(architecture)
    model, head = classifier(base)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name not in head}
    adapted = method.apply(model, head)
    prompts = {name for name in trained_names(adapted) if name.startswith("prompt_encoder.")}
    assert len(trained_names(adapted)) == len(prompts) + len(head)
    assert method.virtual_tokens == options.get("num_virtual_tokens", 20)
    before = trained_state(adapted)
    update(adapted)
    after = trained_state(adapted)
    assert not [name for name, value in before.items() if torch.equal(value, after[name])]
    now = adapted.get_base_model().state_dict()
    assert all(torch.equal(now[name], value) for name, value in frozen.items())

    expected = logits(adapted)
    method.save(adapted, tmp_path, head)
    assert torch.equal(logits(adapted), expected), "saving has changed the model"
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 1 + len(head), "the prompts themselves, not the network that computed them"
    assert len(saved["prompt_embeddings"]) == method.virtual_tokens
    torch.manual_seed(99)
    loaded = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), tmp_path)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-6)
    auto = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert torch.equal(logits(auto), logits(loaded))
    assert torch.equal(logits(method.load(classifier(base)[0], tmp_path)), logits(loaded))


def test_no_path_of_the_tokenizer_is_saved(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """It may be a folder of this machine, and loading does not need it."""
    method = method_of("prompt_tuning", prompt_tuning_init="TEXT", prompt_tuning_init_text="a film")
    model, head = classifier(tiny_folder("bert"))
    adapted = method.apply(model, head)
    tokens = model.get_input_embeddings().weight
    start = adapted.prompt_encoder["default"].embedding.weight
    assert all((tokens == vector).all(dim=1).any() for vector in start), "they start from embeddings of the text"
    method.save(adapted, tmp_path, head)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_name_or_path"] is None
    assert config["prompt_tuning_init_text"] is None


@pytest.mark.parametrize("architecture", ["distilbert", "albert", "deberta", "modernbert"])
@pytest.mark.parametrize("peft_type", ["p_tuning", "prompt_tuning"])
def test_prompts_fit_other_architectures(
    tiny_folder: Callable[..., Path], tmp_path: Path, peft_type: str, architecture: str
) -> None:
    method, base = method_of(peft_type), tiny_folder(architecture)
    model, head = classifier(base)
    adapted = method.apply(model, head)
    update(adapted)
    expected = logits(adapted)
    method.save(adapted, tmp_path, head)
    torch.testing.assert_close(logits(method.load(classifier(base)[0], tmp_path)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("peft_type", [_marked(peft_type) for peft_type in PROMPT_TYPES])
def test_an_accelerated_model_computes_the_same(
    tiny_folder: Callable[..., Path], peft_type: str, architecture: str
) -> None:
    plain = method_of(peft_type).apply(*classifier(tiny_folder(architecture))).eval()
    quick = copy.deepcopy(plain)
    accelerate_model(quick, torch.device("cpu"), "no")
    assert_computes_the_same(quick, plain)


def test_keys_and_values_of_a_name_that_peft_does_not_know_are_a_line(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("bert"))
    compute = model.bert.forward

    def forward(input_ids: Any = None, attention_mask: Any = None, cache: Any = None, **more: Any) -> Any:
        return compute(input_ids, attention_mask, past_key_values=cache, **more)

    model.bert.forward = forward
    with pytest.raises(UserError, match=r"^--peft_type prefix_tuning: does not .* Install transformers<5.24 or "):
        method_of("prefix_tuning").apply(model, head)


def test_prompts_start_from_tokens_and_draw_the_same_ones_for_a_seed(tiny_folder: Callable[..., Path]) -> None:
    starts = []
    for _ in range(2):
        model, head = classifier(tiny_folder("bert"))
        starts.append(method_of("prompt_tuning").apply(model, head).prompt_encoder["default"].embedding.weight)
    tokens = model.get_input_embeddings().weight
    assert torch.equal(*starts)
    assert all((tokens == vector).all(dim=1).any() for vector in starts[0])


def test_which_wrappers_put_tokens_before_an_example(tiny_folder: Callable[..., Path]) -> None:
    """Batches that a GPU computes in rows have no place for them."""
    for method, adds in ((method_of("prompt_tuning"), True), (LoRA(), False), (BitFit(), False)):
        adapted: nn.Module = method.apply(*classifier(tiny_folder("bert")))
        assert has_virtual_tokens(adapted) == adds == (method.virtual_tokens > 0) == (not method.mergeable)


@pytest.mark.parametrize(
    ("peft_type", "options", "message"),
    [
        ("prompt_tuning", {"num_virtual_tokens": 0}, "num_virtual_tokens is 0; must be an integer of at least 1"),
        ("prefix_tuning", {"num_virtual_tokens": "9"}, "num_virtual_tokens is 9; must be an integer of at least 1"),
        ("p_tuning", {"token_dim": 8}, "token_dim is set automatically; leave it out"),
        ("prompt_tuning", {"tokenizer_kwargs": {"trust_remote_code": True}}, "tokenizer_kwargs is set automatically"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_loaded(
    peft_type: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^--peft_kwargs: {message}"):
        method_of(peft_type, **options)


@pytest.mark.parametrize(
    ("architecture", "peft_type", "options", "message"),
    [
        (
            "bert",
            "prompt_tuning",
            {"prompt_tuning_init": "WORDS"},
            'prompt_tuning_init is "WORDS", and not one of TEXT, ',
        ),
        ("bert", "prompt_tuning", {"prompt_tuning_init": "TEXT"}, "When prompt_tuning_init='TEXT'"),
        ("bert", "p_tuning", {"target_modules": "all-linear"}, "p_tuning has no option target_modules"),
        ("bert", "prefix_tuning", {"init_weights": "ones"}, 'init_weights is "ones", and must be of type'),
        ("distilbert", "prefix_tuning", {}, "transformers' distilbert takes no keys and values; use p_tuning or "),
        ("xlm", "prefix_tuning", {}, "transformers' xlm takes no keys and values; use p_tuning or "),
        (
            "gpt2",
            "prompt_tuning",
            {},
            "transformers' gpt2 would read padding as text; use a method that ",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_a_line(
    tiny_folder: Callable[..., Path], architecture: str, peft_type: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^--peft_(type|kwargs).*: {message}") as caught:
        method_of(peft_type, **options).apply(*classifier(tiny_folder(architecture)))
    assert "\n" not in str(caught.value)
