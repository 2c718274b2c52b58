"""Every flag of train.py in every spelling, and the defaults that depend on other flags."""

from __future__ import annotations

import dataclasses
import math
import os

import pytest

from peftlib.arguments import (
    DataArguments,
    HubArguments,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    train_parser,
)
from peftlib.data.places import OwnData
from peftlib.data.tasks import MULTI_LABEL, TASKS
from peftlib.errors import UserError
from peftlib.strategies import STRATEGIES
from tests.arguments.parsing import complaint, parse
from tests.launching import run_python

GROUPS = (ModelArguments, DataArguments, TrainingArguments, OutputArguments, HubArguments)

# For every flag a value that is not its default, as it is written and as it is understood.
SAMPLES = {
    "acceleration": ("off", "off"),
    "frozen_dtype": ("fp32", "fp32"),
    "cuda_graphs": ("false", False),
    "gradient_checkpointing": ("true", True),
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
    "dataset_name": ("me/mails", "me/mails"),
    "dataset_config_name": ("en", "en"),
    "train_split_name": ("train[:90%]", "train[:90%]"),
    "validation_split_name": ("dev", "dev"),
    "test_split_name": ("all", "all"),
    "train_file": ("mails.csv", "mails.csv"),
    "validation_file": ("dev.csv", "dev.csv"),
    "validation_split_percentage": ("20", 20),
    "text_column_names": ("subject,body", "subject,body"),
    "label_column_name": ("folder", "folder"),
    "label_delimiter": ("|", "|"),
    "do_regression": ("True", True),
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
    "class_weights": ('{"spam": 9, "ham": 1}', '{"ham": 1.0, "spam": 9.0}'),
    "label_smoothing_factor": ("0.1", 0.1),
    "max_grad_norm": ("0", 0.0),
    "mixed_precision": ("no", "no"),
    "eval_steps": ("50", 50),
    "early_stopping_patience": ("3", 3),
    "metric_for_best_model": ("f1", "f1"),
    "seed": ("0", 0),
    "num_cpu_threads": ("1", 1),
    "dry_run": ("true", True),
    "output_dir": ("results/a", "results/a"),
    "overwrite_output_dir": ("1", True),
    "report_to": ("wandb,tensorboard", "wandb,tensorboard"),
    "project_name": ("project", "project"),
    "run_name": ("010", "010"),
    "logging_steps": ("1", 1),
    "push_to_hub": ("true", True),
    "hub_model_id": ("me/reviews", "me/reviews"),
    "hub_private_repo": ("yes", True),
    "train_head": ("no", False),
    "bias_terms": ("query,intermediate", "query,intermediate"),
    "lora_r": ("4", 4),
    "lora_alpha": ("8", 8.0),
    "lora_dropout": ("0", 0.0),
    "target_modules": ("query,value", "query,value"),
    "use_dora": ("true", True),
    "use_rslora": ("t", True),
    "adalora_init_r": ("16", 16),
    "adalora_target_r": ("4", 4),
    "adalora_alpha": ("8", 8.0),
    "adalora_dropout": ("0", 0.0),
    "adalora_target_modules": ("query,value", "query,value"),
    "adalora_tinit": ("200", 200.0),
    "adalora_tfinal": ("0.3", 0.3),
    "adalora_deltaT": ("10", 10.0),
    "adalora_orth_reg_weight": ("0.1", 0.1),
    "ia3_target_modules": ("key", "key"),
    "ia3_feedforward_modules": ("output.dense", "output.dense"),
    "peft_type": ("vera", "vera"),
    "peft_kwargs": ('{"r": 4}', '{"r": 4}'),
}

#: Flags that say nothing without others.
COMPANIONS = {
    name: [f"--{other}=a.csv" for other in ("train_file", "validation_file") if other != name]
    for name in (
        "train_file",
        "validation_file",
        "text_column_names",
        "label_column_name",
        "label_delimiter",
        "do_regression",
    )
} | {
    name: ["--dataset_name=me/mails"]
    for name in (
        "dataset_config_name",
        "train_split_name",
        "validation_split_name",
        "test_split_name",
        "validation_split_percentage",
    )
}
OWNERS = {field.name: name for name, strategy in STRATEGIES.items() for field in dataclasses.fields(strategy)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], True),
        (["--cuda_graphs=false"], False),
        (["--acceleration=off"], False),
        (["--gradient_checkpointing"], False),
        (["--method=peft", '--peft_kwargs={"r": 4}'], True),
        (["--method=peft", '--peft_kwargs={"module_dropout": 0.1}'], False),
        (["--method=peft", '--peft_kwargs={"rank_dropout": 0.1}', "--peft_type=lokr"], False),
        (["--method=peft", '--peft_kwargs={"module_dropout": 0.0}'], True),
    ],
)
def test_cuda_graphs_are_part_of_the_acceleration_and_repeat_what_the_host_decides(words, expected):
    assert parse(*words).records_graphs == expected


def test_gradient_checkpointing_is_refused_where_layers_read_more_than_their_input():
    words = ["--gradient_checkpointing", "--method", "peft", "--peft_type"]
    with pytest.raises(UserError, match=r"^--gradient_checkpointing: loses the keys and values of PEFT prefix_tuning;"):
        parse(*words, "prefix_tuning").checked()
    assert parse(*words, "prompt_tuning").checked().training.gradient_checkpointing


def test_threads_beyond_what_the_cores_can_take_are_refused(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert parse("--num_cpu_threads", "8").training.num_cpu_threads == 8
    with pytest.raises(UserError, match="--num_cpu_threads 9: this machine has 2 cores; 0 uses them all"):
        parse("--num_cpu_threads", "9")


def test_cuda_graphs_are_not_recorded_of_layers_that_are_computed_twice():
    line = "--cuda_graphs has no effect with --gradient_checkpointing"
    assert list(parse("--cuda_graphs=false", "--gradient_checkpointing").ignored) == [line]


def test_the_samples_cover_every_flag_and_differ_from_its_default():
    fields = [field for group in (*GROUPS, *STRATEGIES.values()) for field in dataclasses.fields(group)]
    assert sorted(SAMPLES) == sorted(field.name for field in fields)
    for field in fields:
        assert SAMPLES[field.name][1] != field.default


@pytest.mark.parametrize("name", SAMPLES)
def test_a_flag_is_the_same_in_both_spellings_and_in_a_file(name, config):
    text, value = SAMPLES[name]
    method = [] if name == "method" else [f"--method={OWNERS.get(name, 'bitfit')}"]
    method += COMPANIONS.get(name, [])
    hyphenated = f"--{name.replace('_', '-')}"
    for words in ((f"--{name}={text}",), (f"--{name}", text), (f"{hyphenated}={text}",), (hyphenated, text)):
        assert parse(*method, *words).flat()[name] == value, words
    written = f"'{text}'" if text[0] in "{|" else text
    for key in (name, name.replace("_", "-")):
        assert parse(*method, config(f"{key}: {written}\n")).flat()[name] == value, key


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
    assert args.ignored == ("--method bitfit does not use --lora_r, --use_dora",)
    assert parse("--method", "lora", "--lora_r", "4").ignored == ()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--warmup_ratio 0.1 --num_warmup_steps 5", ["--warmup_ratio"]),
        ("--warmup_ratio 0.1", []),
        ("--num_train_epochs 2 --max_train_steps 10", ["--num_train_epochs"]),
        ("--extend_training", ["--extend_training"]),
        ("--extend_training --resume_from_checkpoint auto --output_dir out", []),
        ("--checkpoints_total_limit 2", []),  # signals make checkpoints, too
        ("--lr_scheduler_type constant --num_warmup_steps 5", ["--num_warmup_steps"]),
        ("--lr_scheduler_type constant_with_warmup --num_warmup_steps 5", []),
        ("--model_revision v2", ["--model_revision"]),
        ("--model_revision v2 --model_name_or_path .", ["--model_revision"]),
        ("--model_revision v2 --model_name_or_path bert-base-uncased", []),
        ("--lora_r 4 --extend_training", ["--method", "--extend_training"]),
    ],
)
def test_flags_without_effect_have_a_line_each(flags, named):
    assert [line.split()[0] for line in parse(*flags.split()).ignored] == named


@pytest.mark.parametrize("method", STRATEGIES)
def test_the_rate_is_the_flags_or_else_the_methods_own(method):
    default = STRATEGIES[method].default_learning_rate
    args = parse("--method", method)
    assert (args.learning_rate, args.flat()["learning_rate"]) == (default, default)
    assert parse("--method", method, "--learning_rate", "0.5").learning_rate == 0.5


@pytest.mark.parametrize("method", STRATEGIES)
def test_the_dropout_is_the_flags_or_else_the_methods_own(method):
    args = parse("--method", method)
    assert args.dropout == args.flat()["dropout"] == STRATEGIES[method].default_dropout
    for asked in (0.0, 0.3):
        assert parse("--method", method, f"--dropout={asked}").flat()["dropout"] == asked


@pytest.mark.parametrize("task", TASKS)
def test_the_epochs_are_the_flags_or_else_the_tasks_own(task):
    args = parse("--task_name", task)
    assert args.num_train_epochs == args.flat()["num_train_epochs"] == (2 if task == "rotten_tomatoes" else 3)
    assert parse("--task_name", task, "--num_train_epochs", "7").flat()["num_train_epochs"] == 7


@pytest.mark.parametrize(("text", "written"), [("2", "2"), ("2.0", "2"), ("2.5", "2.5"), ("0.5", "0.5"), ("1e1", "10")])
def test_epochs_are_recorded_as_a_whole_number_where_they_are_one(text, written):
    """By the same words a run of before is known, by its record and by its checkpoints."""
    args = parse(f"--num_train_epochs={text}")
    assert str(args.num_train_epochs) == str(args.flat()["num_train_epochs"]) == written


OWN = ("--train_file", "mails/train.csv", "--validation_file", "mails/dev.csv")


def test_files_of_one_s_own_are_a_task_with_a_name():
    args = parse(*OWN, "--text_column_names", "subject,body")
    assert args.data.own == OwnData("mails/train.csv", "mails/dev.csv", ("subject", "body"), ("label",))
    assert args.task_name == args.flat()["task_name"] == "mails"
    assert args.num_train_epochs == 3
    assert parse().data.own is None
    assert parse().task_name == parse().flat()["task_name"] == "rotten_tomatoes"


def assert_refused_together(words, message):
    args = parse(*words)  # a sweep checks its flags one by one
    with pytest.raises(UserError) as caught:
        args.checked()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            OWN[:2],
            "--train_file mails/train.csv: requires --validation_file, or --validation_split_percentage 10 to hold out "
            "a part of the training data",
        ),
        (
            (*OWN, "--task_name", "mrpc"),
            "--task_name mrpc: cannot be combined with --train_file; leave one of them out",
        ),
        (
            ("--dataset_name", "ag_news", "--task_name", "mrpc"),
            "--task_name mrpc: cannot be combined with --dataset_name; leave one of them out",
        ),
        ((*OWN, "--data_dir", "glue"), "--data_dir glue: cannot be combined with --train_file; leave one of them out"),
    ],
)
def test_files_of_one_s_own_beside_other_data(words, message):
    assert_refused_together(words, message)


def test_a_task_s_metric_is_checked_with_the_flags():
    asked = ("--metric_for_best_model", "f1")
    alone = parse(*asked)  # a sweep checks its flags one by one
    with pytest.raises(UserError, match=r"--metric_for_best_model f1: rotten_tomatoes is scored by accuracy, loss$"):
        alone.checked()
    for words in ((*asked, "--task_name", "mrpc"), (*OWN, *asked), ()):
        args = parse(*words)
        assert args.checked() is args


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--class_weights", '{"spam": 9}'),
            "--class_weights: rotten_tomatoes has no class spam (known: negative, positive)",
        ),
        (
            ("--task_name", "stsb", "--class_weights", "balanced"),
            "--class_weights balanced: stsb is a regression, without classes; leave it out",
        ),
        (
            ("--task_name", "stsb", "--label_smoothing_factor", "0.1"),
            "--label_smoothing_factor 0.1: stsb is a regression, without classes; leave it out",
        ),
    ],
)
def test_a_training_loss_is_checked_with_the_task(words, message):
    assert_refused_together(words, message)


def test_a_training_loss_that_fits_the_task_is_accepted():
    for words in (("--class_weights", "balanced"), ("--class_weights", '{"positive": 9}')):
        for task in ("rotten_tomatoes", "sst2"):
            args = parse("--task_name", task, "--label_smoothing_factor", "0.1", *words)
            assert args.checked() is args
    for words in ((*OWN, "--class_weights", '{"spam": 9}'), ("--task_name", "stsb", "--label_smoothing_factor", "0")):
        parse(*words).checked()  # one's own classes are known from the rows


def test_what_does_not_fit_one_s_own_data_is_refused_once_they_are_read():
    own, several = TASKS["mnli"], dataclasses.replace(TASKS["mnli"], name="mails", problem_type=MULTI_LABEL)
    with pytest.raises(UserError, match=r"^--metric_for_best_model r2: mnli is scored by accuracy, loss$"):
        parse("--metric_for_best_model", "r2").training.refuse_misfits(own)
    with pytest.raises(UserError, match=r"^--class_weights balanced: .* a text of mails may have several; leave it"):
        parse("--class_weights", "balanced").training.refuse_misfits(several)
    parse("--label_smoothing_factor", "0.1").training.refuse_misfits(several)


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
    assert "--no_" not in text  # argparse would give them the help of the flags that they turn off
    for name in SAMPLES:
        assert f"--{name}" in text


def test_parsing_does_not_import_torch(tmp_path):
    code = (
        "import sys; from peftlib.arguments import parse_train_arguments as parse; parse(['--method', 'lora']); "
        "assert 'torch' not in sys.modules and 'peft' not in sys.modules"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flag", ["output_dir", "data_dir", "train_file"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_path_is_not_the_folder_of_now(flag, value):
    """`--output_dir "$OUT"` with no OUT."""
    assert complaint(f"--{flag}={value}") == f"--{flag}: is empty; give a value, or leave the flag out"


def test_a_tilde_that_the_shell_has_left_is_no_folder_s_name():
    expected = "--output_dir ~/runs: the shell has not expanded ~ here; write the full path"
    assert complaint("--output_dir=~/runs") == expected  # as bash leaves it behind a =, and YAML anywhere


def test_the_base_model_s_folder_is_not_the_result_s(tmp_path, monkeypatch):
    """With --overwrite_output_dir the model would be gone before it is read."""
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for base in ("link", "model/model"):  # where export.py puts a run's
        (tmp_path / base).mkdir(exist_ok=True)
        message = complaint(f"--model_name_or_path={base}", "--output_dir=model", "--overwrite_output_dir")
        assert message == "--output_dir model: contains the base model; choose another folder"
