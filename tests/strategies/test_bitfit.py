"""BitFit trains exactly the biases that the paper names, on each architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
)

from peftlib.errors import UserError
from peftlib.strategies.bitfit import BIAS_TERMS, BitFit
from peftlib.strategies.parameters import ParameterCount, size
from peftlib.training.optimization import build_optimizer
from tests.strategies.classifiers import classifier, sentences, trained_names

# Written out by hand: per architecture the names outside the layers, those of each layer, and the head's.
BERT_LAYER = (
    "attention.self.query.bias",
    "attention.self.key.bias",
    "attention.self.value.bias",
    "attention.output.dense.bias",
    "attention.output.LayerNorm.bias",
    "intermediate.dense.bias",
    "output.dense.bias",
    "output.LayerNorm.bias",
)
DISTILBERT_LAYER = (
    "attention.q_lin.bias",
    "attention.k_lin.bias",
    "attention.v_lin.bias",
    "attention.out_lin.bias",
    "sa_layer_norm.bias",
    "ffn.lin1.bias",
    "ffn.lin2.bias",
    "output_layer_norm.bias",
)
GOLDEN = {
    "bert": {
        "encoder": {
            "bert.embeddings.LayerNorm.bias",
            "bert.pooler.dense.bias",
            *(f"bert.encoder.layer.{layer}.{name}" for layer in (0, 1) for name in BERT_LAYER),
        },
        "head": {"classifier.weight", "classifier.bias"},
        "query,intermediate": {
            f"bert.encoder.layer.{layer}.{name}"
            for layer in (0, 1)
            for name in ("attention.self.query.bias", "intermediate.dense.bias")
        },
    },
    "roberta": {
        "encoder": {
            "roberta.embeddings.LayerNorm.bias",
            *(f"roberta.encoder.layer.{layer}.{name}" for layer in (0, 1) for name in BERT_LAYER),
        },
        "head": {
            "classifier.dense.weight",
            "classifier.dense.bias",
            "classifier.out_proj.weight",
            "classifier.out_proj.bias",
        },
        "query,intermediate": {
            f"roberta.encoder.layer.{layer}.{name}"
            for layer in (0, 1)
            for name in ("attention.self.query.bias", "intermediate.dense.bias")
        },
    },
    "distilbert": {
        "encoder": {
            "distilbert.embeddings.LayerNorm.bias",
            *(f"distilbert.transformer.layer.{layer}.{name}" for layer in (0, 1) for name in DISTILBERT_LAYER),
        },
        "head": {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"},
        "query,intermediate": {
            f"distilbert.transformer.layer.{layer}.{name}"
            for layer in (0, 1)
            for name in ("attention.q_lin.bias", "ffn.lin1.bias")
        },
    },
}


@pytest.mark.parametrize("architecture", GOLDEN)
def test_trains_every_bias_and_the_head(tiny_folder: Callable[..., Path], architecture: str) -> None:
    model, head = classifier(tiny_folder(architecture))
    assert head == GOLDEN[architecture]["head"]
    BitFit().apply(model, head)
    assert trained_names(model) == GOLDEN[architecture]["encoder"] | GOLDEN[architecture]["head"]


@pytest.mark.parametrize("architecture", GOLDEN)
def test_without_the_head_trains_what_is_called_bias(tiny_folder: Callable[..., Path], architecture: str) -> None:
    model, head = classifier(tiny_folder(architecture))
    BitFit(train_head=False).apply(model, head)
    biases = {name for name in GOLDEN[architecture]["head"] if name.endswith(".bias")}
    assert trained_names(model) == GOLDEN[architecture]["encoder"] | biases
    assert trained_names(model) == {name for name, _ in model.named_parameters() if "bias" in name}


@pytest.mark.parametrize("architecture", GOLDEN)
def test_the_papers_subset(tiny_folder: Callable[..., Path], architecture: str) -> None:
    model, head = classifier(tiny_folder(architecture))
    BitFit(bias_terms=" query, intermediate ", train_head=False).apply(model, head)
    assert trained_names(model) == GOLDEN[architecture]["query,intermediate"]


@pytest.mark.parametrize("architecture", GOLDEN)
@pytest.mark.parametrize("term", [term for term in BIAS_TERMS if term != "all"])
def test_every_group_names_something_on_each_architecture(
    tiny_folder: Callable[..., Path], architecture: str, term: str
) -> None:
    model, head = classifier(tiny_folder(architecture))
    BitFit(bias_terms=term, train_head=False).apply(model, head)
    names = trained_names(model)
    assert names <= GOLDEN[architecture]["encoder"]
    assert {name for name in names if ".layer.0." in name}
    assert {name for name in names if ".layer.1." in name}


def test_the_groups_together_are_all_the_layers_biases(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("bert"))
    every = ",".join(term for term in BIAS_TERMS if term != "all")
    BitFit(bias_terms=every, train_head=False).apply(model, head)
    assert {n for n in trained_names(model) if ".layer." in n} == {
        name for name in GOLDEN["bert"]["encoder"] if ".layer." in name
    }


def test_a_weight_with_bias_in_its_name_stays_frozen() -> None:
    config = MPNetConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = MPNetForSequenceClassification(config)
    BitFit(train_head=False).apply(model, frozenset())
    parameters = dict(model.named_parameters())
    assert not parameters["mpnet.encoder.relative_attention_bias.weight"].requires_grad
    assert parameters["mpnet.encoder.layer.0.attention.attn.q.bias"].requires_grad


@pytest.mark.parametrize("train_head", [True, False])
def test_a_model_without_biases_is_refused(tiny_folder: Callable[..., Path], train_head: bool) -> None:
    model, head = classifier(tiny_folder("modernbert"))
    with pytest.raises(UserError, match=r"modernbert.* has no bias terms .*--method lora"):
        BitFit(train_head=train_head).apply(model, head)


def test_a_group_that_the_model_lacks_is_refused_even_beside_one_that_it_has(tiny_folder: Callable[..., Path]) -> None:
    model, head = classifier(tiny_folder("deberta-v1"))  # its keys have none
    said = r"deberta.* has no bias terms 'key' under a known name outside its head; try --bias_terms all"
    with pytest.raises(UserError, match=said):
        BitFit(bias_terms="key,intermediate").apply(model, head)


@pytest.mark.parametrize(
    ("architecture", "layer", "groups"),
    [
        (
            "albert",
            "albert.encoder.albert_layer_groups.0.albert_layers.0.",
            {
                "query": ["attention.query"],
                "key": ["attention.key"],
                "value": ["attention.value"],
                "intermediate": ["ffn"],
                "output": ["attention.dense", "ffn_output"],
                "attention_layernorm": ["attention.LayerNorm"],
                "output_layernorm": ["attention.LayerNorm", "full_layer_layer_norm"],
            },
        ),
        (
            "deberta",
            "deberta.encoder.layer.1.",
            {
                "query": ["attention.self.query_proj"],
                "key": ["attention.self.key_proj"],
                "value": ["attention.self.value_proj"],
                "intermediate": ["intermediate.dense"],
                "output": ["attention.output.dense", "output.dense"],
                "attention_layernorm": ["attention.output.LayerNorm"],
                "output_layernorm": ["attention.output.LayerNorm", "output.LayerNorm"],
            },
        ),
        (
            "mpnet",
            "mpnet.encoder.layer.1.",
            {
                "query": ["attention.attn.q"],
                "key": ["attention.attn.k"],
                "value": ["attention.attn.v"],
                "intermediate": ["intermediate.dense"],
                "output": ["attention.attn.o", "output.dense"],
                "attention_layernorm": ["attention.LayerNorm"],
                "output_layernorm": ["attention.LayerNorm", "output.LayerNorm"],
            },
        ),
    ],
)
def test_the_groups_have_other_names_elsewhere(
    tiny_folder: Callable[..., Path], architecture: str, layer: str, groups: dict[str, list[str]]
) -> None:
    every = {name for name, _ in classifier(tiny_folder(architecture))[0].named_parameters()}
    of_layer = {name for name in every if name.startswith(layer) and name.endswith(".bias")}
    assert {f"{layer}{name}.bias" for names in groups.values() for name in names} == of_layer
    for term, names in groups.items():
        model, head = classifier(tiny_folder(architecture))
        BitFit(bias_terms=term, train_head=False).apply(model, head)
        assert {name for name in trained_names(model) if name.startswith(layer)} == {
            f"{layer}{name}.bias" for name in names
        }


@given(st.text(max_size=12))
def test_an_unknown_group_is_refused(term: str) -> None:
    assume({part.strip() for part in term.split(",")}.isdisjoint(BIAS_TERMS))
    with pytest.raises(UserError, match="--bias_terms"):
        BitFit(bias_terms=term)


def test_a_misspelt_group_is_told_the_right_one() -> None:
    with pytest.raises(UserError, match="did you mean intermediate"):
        BitFit(bias_terms="query,intermediat")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (BitFit(), 104_450),  # 102,912 biases of the encoder and a head of 1,538
        (BitFit(train_head=False), 102_912 + 2),  # the head's own bias is called bias too
        (BitFit(bias_terms="query,intermediate", train_head=False), 46_080),
    ],
    ids=["biases-and-head", "biases", "query-intermediate"],
)
def test_the_papers_counts_for_bert_base_uncased(strategy: BitFit, expected: int) -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(vocab_size=30522, num_labels=2))
    strategy.apply(model, frozenset({"classifier.weight", "classifier.bias"}))
    count = ParameterCount.of(size(model), model)
    assert (count.trainable, count.total) == (expected, 109_483_778)
    assert count.ratio == expected / 109_483_778


@pytest.mark.parametrize("architecture", GOLDEN)
def test_key_biases_have_no_gradient(tiny_folder: Callable[..., Path], architecture: str) -> None:
    """Softmax ignores what is added to all keys alike: that they stay where they are is no bug."""
    model, head = classifier(tiny_folder(architecture))
    BitFit().apply(model, head)
    logits = model(**sentences()).logits
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])).backward()
    keys, queries = (
        max(p.grad.abs().max().item() for name, p in model.named_parameters() if name.endswith(BIAS_TERMS[term]))
        for term in ("key", "query")
    )
    assert keys < 1e-4 * queries


def test_debertas_first_version_calls_two_biases_otherwise() -> None:
    """Queries, keys and values are one product there, without a bias of its own."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model("deberta", vocab_size=100, pooler_hidden_size=32, relative_attention=True, **sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert {"q_bias", "v_bias"} <= {name.rpartition(".")[2] for name in biases}
    assert trained_names(BitFit(train_head=False).apply(model, frozenset())) == biases
    query = trained_names(BitFit(train_head=False, bias_terms="query").apply(model, frozenset()))
    assert {name.rpartition(".")[2] for name in query} == {"q_bias"}
    groups = build_optimizer(BitFit(train_head=False).apply(model, frozenset()), 1e-3, weight_decay=0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_the_normalisation_before_attention_is_not_all_of_a_layer_s() -> None:
    """ESM's other LayerNorm is called `layer.0.LayerNorm`: training the first alone would be something else."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model("esm", vocab_size=100, pad_token_id=1, **sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    trained = trained_names(BitFit(train_head=False, bias_terms="attention_layernorm").apply(model, frozenset()))
    assert trained == {"esm.encoder.layer.0.attention.LayerNorm.bias"}
    with pytest.raises(UserError, match=r"esm.* has no bias terms 'output_layernorm' under a known name"):
        BitFit(bias_terms="output_layernorm").apply(model, frozenset())
