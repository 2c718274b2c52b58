"""The model card: metadata that the Hub reads, numbers that are the run's, code that runs."""

from __future__ import annotations

import ast
import re

import pytest
import yaml

from peftlib.tracking.card import model_card
from tests.tracking.facts import made_arguments, made_facts

SCORES = {"accuracy": 0.8125, "f1": 0.87654, "loss": 0.5}


def card(is_adapter=True, scores=SCORES):
    run = {"arguments": made_arguments("--seed", "7"), **made_facts(), "steps": 1150}
    return model_card(run, scores, folder="outputs/a", is_adapter=is_adapter)


@pytest.mark.parametrize(("is_adapter", "library"), [(True, "peft"), (False, "transformers")])
def test_the_metadata_is_yaml_that_names_base_library_and_metrics(is_adapter, library):
    _, front, _ = card(is_adapter).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "some/model",
        "library_name": library,
        "pipeline_tag": "text-classification",
        "tags": ["bitfit", "mrpc"],
        "metrics": ["accuracy", "f1"],
        "datasets": ["nyu-mll/glue"],
    }


def test_the_metadata_names_a_dataset_of_the_hub_and_no_folder():
    arguments = {**made_arguments(), "task_name": "mails", "dataset_name": "me/mails"}
    for folder, expected in (({}, ["me/mails"]), ({"dataset_folder": "/data/me/mails"}, None)):
        run = {"arguments": arguments, **made_facts(), **folder, "steps": 1}
        front = model_card(run, SCORES, folder="a", is_adapter=True).split("---\n", 2)[1]
        assert yaml.safe_load(front).get("datasets") == expected


def test_the_numbers_are_the_runs():
    text = card()
    for part in (
        "1,234 of 1,000,000 parameters trained (0.1234%)",
        "(validation, 408 examples)",
        "| accuracy | 0.8125 |",
        "| f1 | 0.8765 |",
        "| loss | 0.5000 |",
        "0 = not_equivalent, 1 = equivalent",
        "Seed 7, learning rate 0.003, 1,150 updates of 16 examples, precision bf16",
    ):
        assert part in text


@pytest.mark.parametrize("is_adapter", [True, False])
def test_the_code_to_load_it_is_python_and_names_the_folder(is_adapter):
    (code,) = re.findall(r"```python\n(.*?)```", card(is_adapter), re.DOTALL)
    tree = ast.parse(code)
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    classes = ["not_equivalent", "equivalent"] if is_adapter else []
    assert sorted(words) == sorted(["outputs/a", "outputs/a", *classes])
    assert ("AutoPeftModelForSequenceClassification" in code) == is_adapter
    assert ('id2label={0: "not_equivalent", 1: "equivalent"}' in code) == is_adapter
    assert "peftlib" not in code


def test_a_model_of_scores_is_loaded_with_one_output():
    run = {"arguments": made_arguments(), **made_facts(), "labels": [], "score_range": [0.0, 5.0], "steps": 1}
    text = model_card(run, {"pearson": 0.9, "spearmanr": 0.89, "loss": 0.4}, folder="outputs/a", is_adapter=True)
    assert 'from_pretrained("outputs/a", num_labels=1, problem_type="regression")' in text
    assert "\nScores from 0 to 5. Seed 42," in text and "Labels" not in text and "logits[0, 0]" in text
    # The Hub's names of the metrics, and evaluate's.
    assert yaml.safe_load(text.split("---\n", 2)[1])["metrics"] == ["pearsonr", "spearmanr"]
    assert "| pearson | 0.9000 |" in text
    assert not re.search(r"\{[a-z_]*\}", text)
    assert "logits" not in card()


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"\{[a-z_]*\}", card())


def test_an_adapter_s_card_says_where_its_base_model_is_elsewhere():
    assert "says where the base model was: `/models/some`. On another machine, put there where it is now.\n" in card()
    assert "adapter_config.json" not in card(is_adapter=False)
    run = {"arguments": made_arguments(), **made_facts(), "steps": 1}
    run["model"] |= {"name": "all-MiniLM-L6-v2"}
    text = model_card(run, SCORES, folder="a", is_adapter=True)
    assert "it is now, or its name on the Hub, `sentence-transformers/all-MiniLM-L6-v2`." in text
    assert yaml.safe_load(text.split("---\n", 2)[1])["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
