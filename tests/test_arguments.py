"""The command line: every flag in every spelling, files below it, and one-line answers to mistakes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlib.arguments import (
    DataArguments,
    ModelArguments,
    OutputArguments,
    TrainArguments,
    TrainingArguments,
    parse_sweep_arguments,
    parse_train_arguments,
    train_parser,
)
from peftlib.data.tasks import TASKS
from peftlib.errors import UserError
from peftlib.strategies import STRATEGIES
from tests.launching import run_python

GROUPS = (ModelArguments, DataArguments, TrainingArguments, OutputArguments)

# For every flag a value that is not its default, as it is written and as it is understood.
SAMPLES = {
    "frozen_dtype": ("fp32", "fp32"),
    "cuda_graphs": ("false", False),
    "auto_find_batch_size": ("false", False),
    "checkpointing_steps": ("epoch", "epoch"),
    "checkpoints_total_limit": ("3", 3),
    "resume_from_checkpoint": ("runs/a", "runs/a"),
    "extend_training": ("true", True),
    "model_name_or_path": ("some/model", "some/model"),
    "model_revision": ("v1.2", "v1.2"),
    "trust_remote_code": ("true", True),
    "task_name": ("mrpc", "mrpc"),
    "data_dir": ("/data/glue", "/data/glue"),
    "max_length": ("64", 64),
    "pad_to_max_length": ("True", True),
    "group_by_length": ("false", False),
    "max_train_samples": ("5", 5),
    "max_eval_samples": ("6", 6),
    "dataloader_num_workers": ("2", 2),
    "method": ("lora", "lora"),
    "learning_rate": ("1e-3", 1e-3),
    "per_device_train_batch_size": ("4", 4),
    "per_device_eval_batch_size": ("8", 8),
    "gradient_accumulation_steps": ("3", 3),
    "num_train_epochs": ("2", 2),
    "max_train_steps": ("100", 100),
    "lr_scheduler_type": ("cosine", "cosine"),
    "num_warmup_steps": ("0", 0),
    "warmup_ratio": ("0.5", 0.5),
    "weight_decay": ("0.01", 0.01),
    "dropout": ("0.3", 0.3),
    "max_grad_norm": ("0", 0.0),
    "mixed_precision": ("no", "no"),
    "eval_steps": ("50", 50),
    "early_stopping_patience": ("3", 3),
    "seed": ("0", 0),
    "num_cpu_threads": ("1", 1),
    "output_dir": ("results/a", "results/a"),
    "overwrite_output_dir": ("1", True),
    "report_to": ("wandb,tensorboard", "wandb,tensorboard"),
    "project_name": ("project", "project"),
    "run_name": ("010", "010"),
    "logging_steps": ("1", 1),
    "train_head": ("no", False),
    "bias_terms": ("query,intermediate", "query,intermediate"),
    "lora_r": ("4", 4),
    "lora_alpha": ("8", 8.0),
    "lora_dropout": ("0", 0.0),
    "target_modules": ("query,value", "query,value"),
    "use_dora": ("true", True),
    "use_rslora": ("t", True),
}

OWNERS = {field.name: name for name, strategy in STRATEGIES.items() for field in dataclasses.fields(strategy)}


def parse(*words: str) -> TrainArguments:
    return parse_train_arguments(list(words))


def complaint(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*words)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def config(tmp_path):
    """Writes a YAML file and returns the flag that names it."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return f"--config={path}"

    return write


def test_the_samples_cover_every_flag_and_differ_from_its_default():
    fields = [field for group in (*GROUPS, *STRATEGIES.values()) for field in dataclasses.fields(group)]
    assert sorted(SAMPLES) == sorted(field.name for field in fields)
    for field in fields:
        assert SAMPLES[field.name][1] != field.default


@pytest.mark.parametrize("name", SAMPLES)
def test_a_flag_is_the_same_in_both_spellings_and_in_a_file(name, config):
    text, value = SAMPLES[name]
    method = () if name == "method" else (f"--method={OWNERS.get(name, 'bitfit')}",)
    hyphenated = f"--{name.replace('_', '-')}"
    for words in ((f"--{name}={text}",), (f"--{name}", text), (f"{hyphenated}={text}",), (hyphenated, text)):
        assert parse(*method, *words).flat()[name] == value, words
    for key in (name, name.replace("_", "-")):
        assert parse(*method, config(f"{key}: {text}\n")).flat()[name] == value, key


@pytest.mark.parametrize("text", ["", "=True", "=true", "=1", "=yes"])
def test_a_switch_is_turned_on(text):
    assert parse(f"--overwrite_output_dir{text}").output.overwrite_output_dir is True


@pytest.mark.parametrize("text", ["=False", "=false", "=0", "=no"])
def test_a_switch_that_is_on_by_default_is_turned_off(text):
    assert parse(f"--train_head{text}").strategy.train_head is False
    assert parse("--no_train_head").strategy.train_head is False


def test_flat_has_every_flag_of_the_chosen_method_and_of_no_other():
    for method, strategy in STRATEGIES.items():
        expected = {field.name for group in (*GROUPS, strategy) for field in dataclasses.fields(group)}
        assert set(parse("--method", method).flat()) == expected


def test_the_parser_names_every_flag():
    assert {f"--{name}" for name in SAMPLES} <= set(train_parser().flags())


def test_flags_of_other_methods_are_reported_when_they_differ_from_their_default():
    args = parse("--method", "bitfit", "--lora_r", "4", "--use_dora", "--lora_alpha", "32", "--bias_terms", "query")
    assert args.ignored == ("--lora_r", "--use_dora")
    assert parse("--method", "lora", "--lora_r", "4").ignored == ()


def test_a_wandb_agent_that_starts_a_preempted_run_again_may_pass_on_all_that_its_configuration_holds():
    first = parse("--strategy={'method': 'lora', 'lora_r': 4}", "--use_dora=True", "--max_train_samples", "9")
    recorded = {**first.flat(), "strategy": {"method": "lora", "lora_r": 4}, "params/total": 9, "sweep/id": "s1"}
    again = [f"--{name}={value}" for name, value in recorded.items()]
    assert parse("--_wandb={'a': 1}", "--max_train_samples", "9", *again).flat() == first.flat()


@pytest.mark.parametrize("method", STRATEGIES)
def test_the_rate_is_the_flags_or_else_the_methods_own(method):
    default = STRATEGIES[method].default_learning_rate
    args = parse("--method", method)
    assert (args.learning_rate, args.flat()["learning_rate"]) == (default, default)
    assert parse("--method", method, "--learning_rate", "0.5").learning_rate == 0.5


@pytest.mark.parametrize("method", STRATEGIES)
def test_the_dropout_is_the_flags_or_else_the_methods_own(method):
    args = parse("--method", method)
    assert args.dropout == args.flat()["dropout"] == (0.0 if method == "bitfit" else None)
    for asked in (0.0, 0.3):
        assert parse("--method", method, f"--dropout={asked}").flat()["dropout"] == asked


@pytest.mark.parametrize("task", TASKS)
def test_the_epochs_are_the_flags_or_else_the_tasks_own(task):
    args = parse("--task_name", task)
    assert args.num_train_epochs == args.flat()["num_train_epochs"] == (2 if task == "rotten_tomatoes" else 3)
    assert parse("--task_name", task, "--num_train_epochs", "7").flat()["num_train_epochs"] == 7


def test_only_such_an_agent_may_pass_on_what_is_no_flag():
    with pytest.raises(UserError, match="--params/total: no such flag"):
        parse("--params/total=9")


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
@settings(max_examples=25)
def test_any_positive_rate_arrives_exactly(rate):
    assert parse(f"--learning_rate={rate!r}").training.learning_rate == rate


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
        ("learnin_rate: 0.1", "learnin_rate is no flag of train.py; did you mean learning_rate?"),
        ("config: other.yaml", "config is no flag"),
        ("help: 1", "help is no flag"),
        ("no_train_head: true", "did you mean train_head?"),
        ("- seed", "must hold lines such as"),
        ("", "must hold lines such as"),
        ("seed", "must hold lines such as"),
        ("seed: 1: 2", "no valid YAML"),
        ("seed: [1", "no valid YAML"),
        ("seed: {a: 1}", "seed is a mapping"),
        ("seed: x", "--seed: invalid int value"),
        ("method: loraa", "did you mean lora?"),
        ("max_length: 1", "--max_length 1: must be at least 2"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_what(config, text, expected):
    assert expected in complaint(config(text))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"run_name: caf\xe9\n")
    assert "latin.yaml: no valid YAML" in complaint(f"--config={tmp_path / 'latin.yaml'}")
    assert "nothing.yaml: cannot be read" in complaint(f"--config={tmp_path / 'nothing.yaml'}")
    assert f"{tmp_path}: cannot be read" in complaint("--config", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--mehod", "lora"), "--mehod: no such flag; did you mean --method?"),
        (("--learning-rte=1",), "--learning-rte: no such flag; did you mean --learning_rate?"),
        (("--learn", "1"), "--learn: no such flag"),  # no abbreviations: a later flag would change their meaning
        (("--method", "lorra"), "--method lorra: unknown; did you mean lora?"),
        (("--task_name", "rotten_tomatos"), "--task_name rotten_tomatos: unknown; did you mean rotten_tomatoes?"),
        (("--mixed_precision=fp61",), "--mixed_precision fp61: unknown; did you mean fp16?"),
        (("--lr-scheduler-type", "liner"), "--lr_scheduler_type liner: unknown; did you mean linear?"),
        (("--bias_terms", "querry"), "--bias_terms querry: no such group of biases; did you mean query?"),
        (("lora",), "'lora': a value without a flag"),
        (("--seed",), "--seed: expected one argument"),
        (("--config",), "--config: expected one argument"),
        (("--use_dora=maybe",), "--use_dora: "),
    ],
)
def test_a_mistyped_word_gets_the_nearest_right_one(words, expected):
    assert expected in complaint(*words)


COUNTS = [
    "max_train_samples", "max_eval_samples", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_train_steps", "eval_steps", "logging_steps", "lora_r",
]  # fmt: skip
NOT_NEGATIVE = [
    "dataloader_num_workers", "num_warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm",
    "early_stopping_patience", "seed", "num_cpu_threads", "lora_dropout", "dropout",
]  # fmt: skip
RATES = ["learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm", "lora_alpha", "lora_dropout", "dropout"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[(name, text) for name in COUNTS for text in ("0", "-1", "1.5", "many", "")],
        *[(name, "-1") for name in NOT_NEGATIVE],
        *[(name, text) for name in RATES for text in ("nan", "inf", "-inf", "fast")],
        *[("learning_rate", text) for text in ("0", "-1e-3", "1e400")],
        *[("max_length", text) for text in ("1", "0")],
        *[("lora_alpha", text) for text in ("0", "-2")],
        *[(name, text) for name in ("lora_dropout", "dropout") for text in ("1", "1.5")],
        ("warmup_ratio", "1.01"),
        ("seed", str(2**32)),
        ("bias_terms", ","),
        ("target_modules", " , "),
    ],
)
def test_a_value_out_of_range_is_refused_under_its_flag(name, text):
    assert complaint(f"--{name}={text}").startswith(f"--{name}")


@pytest.mark.parametrize(("name", "text"), [(name, "1") for name in COUNTS] + [(name, "0") for name in NOT_NEGATIVE])
def test_the_smallest_allowed_value_is_allowed(name, text):
    parse(f"--{name}={text}")
    parse("--warmup_ratio=1", f"--seed={2**32 - 1}", "--max_length=2")


@pytest.mark.parametrize("method", STRATEGIES)
def test_every_method_has_a_usable_default_rate(method):
    args = parse("--method", method)
    assert type(args.strategy) is STRATEGIES[method]
    assert 0 < args.strategy.default_learning_rate < math.inf


def test_help_lists_the_flags_and_hides_the_agents(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "--_wandb" not in text
    for name in SAMPLES:
        assert f"--{name}" in text


def test_parsing_does_not_import_torch(tmp_path):
    code = (
        "import sys; from peftlib.arguments import parse_train_arguments as parse; parse(['--method', 'lora']); "
        "assert 'torch' not in sys.modules and 'peft' not in sys.modules"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("word", "flags"),
    [
        ("--strategy={'method': 'lora', 'lora_r': 8, 'use_dora': True}", ["--method=lora", "--lora_r=8", "--use_dora"]),
        ("--a={'b': {'seed': 3}, 'warmup_ratio': 0.5}", ["--seed=3", "--warmup_ratio=0.5"]),
        ("--run_name={not a group}", ["--run_name", "{not a group}"]),
    ],
)
def test_a_nested_parameter_of_a_wandb_agent_is_several_flags(word, flags):
    assert parse(word) == parse(*flags)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--strategy={'lora_x': 8}", "--lora_x: no such flag"),
        ("--strategy={'a'", "--strategy {'a': no mapping of flags"),
    ],
)
def test_a_wrong_nested_parameter_is_named(word, message):
    with pytest.raises(UserError, match=message):
        parse(word)


def test_the_flags_of_sweep_py():
    file, options = parse_sweep_arguments(["a.yaml", "--workers=2", "--sweep-dir", "x", "--dry_run"])
    assert str(file) == "a.yaml"
    assert (options.workers, options.sweep_dir, options.dry_run, options.count) == (2, "x", True, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.yaml", "--worker", "2"], "--worker: no such flag; did you mean --workers?"),
        (["a.yaml", "--workers", "0"], "--workers 0: must be at least 1"),
        (["a.yaml", "--workers", "x"], "--workers: invalid int value: 'x'"),
        ([], "the following arguments are required: FILE"),
    ],
)
def test_a_wrong_flag_of_sweep_py_is_one_line(words, message):
    with pytest.raises(UserError) as error:
        parse_sweep_arguments(words)
    assert str(error.value) == message
