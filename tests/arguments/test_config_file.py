"""A file of flags: below the command line, read word for word, and its mistakes in one line."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.arguments.parsing import complaint, parse


@given(st.text().filter(lambda text: text not in ("", "~", "null")))
@settings(max_examples=25)
def test_any_text_is_the_same_from_a_file_as_from_the_command_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any-text.yaml"
    path.write_text(yaml.safe_dump({"run_name": text}), encoding="utf-8")
    assert parse(f"--config={path}").output.run_name == text == parse(f"--run_name={text}").output.run_name


def test_the_command_line_wins_over_the_file_wherever_it_stands(config):
    file = config("seed: 1\nlearning_rate: 0.5\n")
    for words in ((file, "--seed=2"), ("--seed=2", file)):
        args = parse(*words)
        assert (args.training.seed, args.training.learning_rate) == (2, 0.5)


def test_a_file_may_hold_lists_and_nothing(config):
    args = parse(config("bias_terms: [query, value]\nmax_train_steps:\nmax_train_samples: null\ndata_dir: ~\n"))
    assert args.strategy.bias_terms == "query,value"
    assert (args.training.max_train_steps, args.data.max_train_samples, args.data.data_dir) == (None, None, None)


def test_no_in_a_file_is_a_word_where_a_word_is_wanted(config):
    # To YAML 1.1 a bare `no` is a boolean.
    assert parse(config("mixed_precision: no\ntrain_head: no\n")).training.mixed_precision == "no"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learnin_rate: 0.1", "learnin_rate is not a flag of train.py; did you mean learning_rate?"),
        ("config: other.yaml", "config is not a flag of train.py"),
        ("help: 1", "help is not a flag of train.py"),
        ("no_train_head: true", "did you mean train_head?"),
        ("- seed", "must contain lines such as"),
        ("", "must contain lines such as"),
        ("seed", "must contain lines such as"),
        ("seed: 1: 2", "not valid YAML"),
        ("seed: [1", "not valid YAML"),
        ("seed: {a: 1}", "seed is a mapping"),
        ("peft_kwargs: {r: [}", "not valid YAML"),
        ("seed: x", "--seed: invalid int value"),
        ("method: loraa", "did you mean lora?"),
        ("seed: 1\nseed: 2", "not valid YAML (a second seed"),
        ("lora_r: 1\nlora-r: 2", "lora_r and lora-r are the same flag; keep one"),
        ("max_length: 1", "--max_length 1: must be at least 2"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_what(config, text, expected):
    assert expected in complaint(config(text))


def test_a_wrong_value_names_the_file_if_it_stands_there(config):
    file = config("max_length: 1\n")
    assert complaint(file).startswith(f"{file.replace('=', ' ')}: --max_length 1: must be")
    assert complaint(file, "--max-length=0").startswith("--max_length 0: must be")  # overridden
    assert complaint(file, "--max_length", "128", "--seed=x").startswith("--seed: invalid int value")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"run_name: caf\xe9\n")
    assert "latin.yaml: not valid YAML" in complaint(f"--config={tmp_path / 'latin.yaml'}")
    assert "nothing.yaml: cannot be read" in complaint(f"--config={tmp_path / 'nothing.yaml'}")
    assert f"{tmp_path}: cannot be read" in complaint("--config", str(tmp_path))


def test_a_mapping_for_a_flag_of_json_is_json(config):
    strategy = parse("--method=peft", config("peft-kwargs: {r: 4, alpha: 5e-1, use_scalar: yes}\n")).strategy
    assert strategy.peft_kwargs == '{"alpha": 0.5, "r": 4, "use_scalar": true}'


@pytest.mark.parametrize("text", ["{spam: 9, ham: 5e-1}", "\n  ham: 0.5\n  spam: 9", """'{"ham": 0.5, "spam": 9}'"""])
def test_class_weights_may_be_a_mapping(config, text):
    assert parse(config(f"class_weights: {text}\n")).training.class_weights == '{"ham": 0.5, "spam": 9.0}'


@pytest.mark.parametrize(("text", "read"), [("{yes: 9}", "True"), ("{no: 9, maybe: 2}", "False"), ("{~: 9}", "None")])
def test_a_class_whose_name_yaml_reads_as_something_else_needs_quotes(config, text, read):
    expected = f"class_weights cannot be read as JSON (YAML reads a name in it as {read}); put it in quotes"
    assert expected in complaint(config(f"class_weights: {text}\n"))
    weights = parse(config("class_weights: {'yes': 9, 0: 2}\n")).training.class_weights
    assert weights == '{"0": 2.0, "yes": 9.0}'


@pytest.mark.parametrize("rest", ["{r: 2026-01-01}", "{r: .nan}", "{r: 4}\noutput_dir: 2026-99-99", "{1: !!set {a}}"])
def test_what_is_no_json_is_a_line(config, rest):
    assert ": peft_kwargs cannot be read as JSON (" in complaint("--method=peft", config(f"peft_kwargs: {rest}\n"))


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--task_name=mrpc", "--method=lora", "--lora_r=4", "--learning_rate=0.1", "--class_weights=balanced"),
        ("--train_file=é.csv", "--validation_split_percentage=10", "--dropout=0.3", "--num_train_epochs=7"),
        ("--dataset_name=me/mails", "--label_column_name=a,b", "--max_train_steps=5", "--group_by_length=false"),
        ("--train_file=a.csv", "--validation_file=b.csv", "--label_delimiter=~", "--text_column_names=null"),
        ("--method=peft", "--peft_type=vera", '--peft_kwargs={"r": 4, "bias": "none"}', "--report_to=none"),
    ],
)  # fmt: skip
def test_a_run_is_trained_again_from_its_record(tmp_path, words):
    first = parse(*words, "--output_dir=once", "--overwrite_output_dir", "--resume_from_checkpoint=auto")
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"status": "finished", "arguments": first.flat(), "labels": ["a"]}))
    again = parse(f"--config={record}").flat()
    places = {"output_dir": None, "overwrite_output_dir": False, "resume_from_checkpoint": None}
    assert again == first.flat() | places
    assert parse(f"--config={record}", "--seed=8").training.seed == 8


def test_from_a_record_another_method_has_its_own_defaults(tmp_path):
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"arguments": parse("--method=lora").flat()}))
    assert parse(f"--config={record}", "--method=bitfit").flat() == parse("--method=bitfit").flat()


@pytest.mark.parametrize(
    "content",
    [
        {"arguments": None},
        {"arguments": {"method": "lora"}},
        {"arguments": {"method": ["lora"], "task_name": "mrpc"}},
        {"arguments": {"method": "lora", "task_name": ["mrpc"]}},
        {"arguments": {}},
    ],
)
def test_what_is_no_record_is_a_line(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content))
    assert f"--config {path}: is not the record of a run (" in complaint(f"--config={path}")


def test_a_record_of_a_method_that_is_not_there_is_a_line(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"arguments": {"method": "magic", "task_name": "mrpc"}}))
    assert complaint(f"--config={path}") == f"--config {path}: this version has no method magic"
