"""What other trainers' flags are called here: each entry names flags that there are, and the commonest lead there."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from peftlib.arguments import ExportArguments, PredictArguments, SubmitArguments, train_parser
from peftlib.arguments.other_names import _CALLED, flags_in, instead_of
from tests.arguments.parsing import complaint

PARSER = train_parser()
TRAIN = {*PARSER.flags()}
OTHERS = [
    {f"--{field.name}" for field in dataclasses.fields(group)}
    for group in (PredictArguments, ExportArguments, SubmitArguments)
]
OFFERED = sorted(flag for flag in TRAIN - {"--help", "--_wandb"} if not flag.startswith("--no_"))


@pytest.mark.parametrize(("line", "names"), _CALLED)
def test_an_entry_names_flags_that_one_command_has_and_is_about_names_that_train_py_has_not(line, names):
    assert any(flags_in(line) <= flags for flags in (TRAIN, *OTHERS))
    assert not {f"--{name}" for name in names.split()} & TRAIN


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--fp16", "use --mixed_precision fp16, or no to turn it off"),
        ("--bf16", "use --mixed_precision bf16"),
        ("--lr", "use --learning_rate"),
        ("--batch_size", "use --per_device_train_batch_size"),
        ("--per-gpu-train-batch-size", "use --per_device_train_batch_size"),
        ("--epochs", "use --num_train_epochs"),
        ("--max_steps", "use --max_train_steps"),
        ("--warmup_steps", "use --num_warmup_steps"),
        ("--max_seq_length", "use --max_length"),
        ("--model", "use --model_name_or_path"),
        ("--dataset", "use --dataset_name"),
        ("--task", "use --task_name"),
        ("--lora_target_modules", "use --target_modules"),
        ("--lora_rank", "use --lora_r"),
        ("--r", "use --lora_r"),
        ("--save_steps", "use --checkpointing_steps"),
        ("--save_total_limit", "use --checkpoints_total_limit"),
        ("--eval_strategy", "use --eval_steps"),
        ("--resume", "use --resume_from_checkpoint auto"),
        ("--logging_dir", "trackers write into --output_dir"),
        ("--do_train", "not needed"),
        ("--do_eval", "not needed"),
        ("--do_predict", "scripts/predict.py"),
        ("--load_best_model_at_end", "not needed"),
        ("--activation_checkpointing", "use --gradient_checkpointing"),
        ("--adam_beta1", "always 0.9 and 0.999"),
        ("--num_virtual_tokens", "it goes into --peft_kwargs, with --method peft"),
        ("--pre_seq_len", "it is num_virtual_tokens in --peft_kwargs, with --method peft"),
        ("--label_smoothing", "use --label_smoothing_factor"),
        ("--class_weight", "use --class_weights"),
        ("--use_class_weights", "use --class_weights balanced"),
    ],
)
def test_another_trainer_s_flag_leads_to_what_does_the_same_here(word, expected):
    for words in ((word,), (word, "1"), (f"{word}=1",)):
        said = complaint(*words)
        assert said.startswith(f"{word}: no such flag; ") and expected in said


def test_the_flags_of_a_command_decide_what_is_said():
    assert instead_of("fp16", ["--dtype"]) == "; use --dtype fp16"
    assert instead_of("batch_size", ["--per_device_eval_batch_size"]) == "; use --per_device_eval_batch_size"
    assert instead_of("lr", ["--seed", "--split"]) == ""


def test_a_file_of_flags_is_told_without_dashes(config):
    assert complaint(config("lr: 0.1\n")).endswith("lr is not a flag of train.py; use learning_rate")
    assert complaint(config("no_cuda: true\n")).endswith("it is the launcher's: accelerate launch --cpu")


def test_of_transformers_flags_none_is_led_astray():
    """A flag that means something else is worse than none: what is nearest is offered for slips alone."""
    for field in dataclasses.fields(TrainingArguments):
        if f"--{field.name}" not in TRAIN:
            assert "did you mean" not in PARSER.instead_of(field.name), field.name


@given(st.sampled_from(OFFERED), st.data())
def test_one_lost_letter_is_found_again_and_no_hidden_flag_is_ever_offered(flag, data):
    place = data.draw(st.integers(2, len(flag) - 1))
    slip = flag[:place] + flag[place + 1 :]
    if slip not in TRAIN and len(slip) > 5:
        assert "--" in PARSER.instead_of(slip[2:])
    for name in (slip[2:], "no_" + slip[2:], "help", "hlp", "_wandb", "wndb"):
        said = PARSER.instead_of(name, "--help")
        assert "--no_" not in said and "--help" not in said and "--_" not in said


def test_an_optimizer_is_what_the_table_says():
    import torch

    from peftlib.training.optimization import build_optimizer

    group = build_optimizer(torch.nn.Linear(2, 2), 1e-3, 0.0, torch.device("cpu")).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
