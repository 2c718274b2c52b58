"""What holds for every method: what it trains moves, what it freezes does not, and all of it is fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from peftlib.strategies import STRATEGIES
from peftlib.strategies.bitfit import BIAS_TERMS
from peftlib.strategies.full import Full
from peftlib.strategies.head import HeadOnly
from peftlib.strategies.parameters import ParameterCount, freeze_unread, size, trained
from tests.strategies.classifiers import ARCHITECTURES, METHODS, classifier, sentences, trained_names, update

KEY_BIASES = BIAS_TERMS["key"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_trains_the_head_only(tiny_folder: Callable[..., Path], architecture: str) -> None:
    model, head = classifier(tiny_folder(architecture))
    HeadOnly().apply(model, head)
    assert trained_names(model) == head
    assert not {name for name in head if name.startswith(f"{model.base_model_prefix}.")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_trains_everything(tiny_folder: Callable[..., Path], architecture: str) -> None:
    model, head = classifier(tiny_folder(architecture))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    Full().apply(model, head)
    assert trained_names(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_what_trains_moves_and_what_is_frozen_stays_bit_for_bit(
    tiny_folder: Callable[..., Path], architecture: str, method: str
) -> None:
    model, head = classifier(tiny_folder(architecture))
    adapted = METHODS[method].apply(model, head)
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    update(adapted)
    names = trained_names(adapted)
    moved = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= names, f"frozen, and moved all the same: {sorted(moved - names)}"
    # Softmax ignores a shift of all keys: their biases have no gradient but rounding noise.
    still = {name for name in names - moved if not name.endswith(KEY_BIASES)}
    assert not still, f"trained, and never moved: {sorted(still)}"
    assert moved


@pytest.mark.parametrize("method", METHODS)
def test_what_no_logit_depends_on_is_not_trained(tiny_folder: Callable[..., Path], method: str) -> None:
    """BigBird has a pooler like BERT's, and a head that does not read it."""
    model, head = classifier(tiny_folder("big_bird"))
    adapted = freeze_unread(METHODS[method].apply(model, head), sentences(), pytest.fail)
    adapted(**sentences()).logits.sum().backward()
    assert all(parameter.grad is not None for _, parameter in trained(adapted))
    unread = {name for name in dict(model.named_parameters()) if ".pooler." in name}
    assert unread and not unread & trained_names(adapted)


def test_looking_for_it_changes_nothing_else() -> None:
    """BigBird attends to everything from the first short batch on; none that is padded to 512 tokens is short."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("big_bird", vocab_size=100, block_size=16, num_random_blocks=1, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.zeros(1, 512, dtype=torch.long)
    ids[0, :3] = torch.tensor([5, 6, 7])
    head = frozenset({"classifier.out_proj.weight", "classifier.out_proj.bias"})
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    freeze_unread(METHODS["bitfit"].apply(model, head), inputs, pytest.fail)
    assert model.bert.attention_type == "block_sparse" and not model.bert.pooler.bias.requires_grad


def test_a_model_that_does_not_compute_here_is_left_as_it_is_and_said_to_be(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("big_bird"))
    adapted = METHODS["bitfit"].apply(model, head).train()
    names, said = trained_names(adapted), list[str]()
    freeze_unread(adapted, {"input_ids": torch.tensor([[10**6]])}, said.append)
    assert trained_names(adapted) == names and adapted.training
    assert len(said) == 1 and "cannot compute on the CPU: IndexError: " in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "deberta"])
@pytest.mark.parametrize("method", METHODS)
def test_whatever_a_logit_depends_on_is_trained(
    tiny_folder: Callable[..., Path], architecture: str, method: str
) -> None:
    """Keys' biases too, whose gradient is zero."""
    applied, adapted = (classifier(tiny_folder(architecture)) for _ in range(2))
    names = trained_names(METHODS[method].apply(*applied))
    assert trained_names(freeze_unread(METHODS[method].apply(*adapted), sentences(), pytest.fail)) == names


@pytest.fixture(scope="module")
def half_precision_folder(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    AutoModel.from_pretrained(tiny_folder("bert")).half().save_pretrained(folder)
    assert '"dtype": "float16"' in (folder / "config.json").read_text()
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_trained_parameters_are_fp32_from_a_half_precision_checkpoint(half_precision_folder: Path, method: str) -> None:
    model, head = classifier(half_precision_folder)
    adapted = METHODS[method].apply(model, head)
    assert {parameter.dtype for _, parameter in trained(adapted)} == {torch.float32}
    update(adapted)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_method_is_measured_against_the_same_total(tiny_folder: Callable[..., Path], architecture: str) -> None:
    totals = set()
    for strategy in METHODS.values():
        model, head = classifier(tiny_folder(architecture))
        base_size = size(model)
        count = ParameterCount.of(base_size, strategy.apply(model, head))
        totals.add(count.total)
        assert 0 < count.trainable <= count.total
    assert totals == {sum(parameter.numel() for parameter in classifier(tiny_folder(architecture))[0].parameters())}


def test_full_fine_tuning_trains_the_whole_total(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("bert"))
    assert ParameterCount.of(size(model), Full().apply(model, head)).ratio == 1.0


def test_each_method_has_its_own_learning_rate() -> None:
    rates = {name: strategy.default_learning_rate for name, strategy in STRATEGIES.items()}
    assert all(0 < rate < 0.1 for rate in rates.values())
    assert rates["full"] < min(rate for name, rate in rates.items() if name != "full")
