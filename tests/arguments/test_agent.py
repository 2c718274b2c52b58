"""What a W&B agent passes on beside plain flags, and what only an agent may."""

from __future__ import annotations

import pytest

from peftlib.errors import UserError
from tests.arguments.parsing import parse


def test_a_wandb_agent_that_starts_a_preempted_run_again_may_pass_on_all_that_its_configuration_holds():
    first = parse("--strategy={'method': 'lora', 'lora_r': 4}", "--use_dora=True", "--max_train_samples", "9")
    recorded = {**first.flat(), "strategy": {"method": "lora", "lora_r": 4}, "params/total": 9, "sweep/id": "s1"}
    again = [f"--{name}={value}" for name, value in recorded.items()]
    assert parse("--_wandb={'a': 1}", "--max_train_samples", "9", *again).flat() == first.flat()


def test_class_weights_of_a_wandb_agent_are_a_python_literal_and_at_a_restart_json():
    first = parse("--class_weights={'spam': 9, \"ham's\": 0.5}")
    assert first.training.class_weights == '{"ham\'s": 0.5, "spam": 9.0}'
    again = [f"--{name}={value}" for name, value in first.flat().items()]
    assert parse("--_wandb={'a': 1}", *again).flat() == first.flat()


def test_only_such_an_agent_may_pass_on_what_is_no_flag():
    with pytest.raises(UserError, match="--params/total: no such flag"):
        parse("--params/total=9")


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
        ("--strategy={'a'", "--strategy {'a': not a mapping of flags"),
    ],
)
def test_a_wrong_nested_parameter_is_named(word, message):
    with pytest.raises(UserError, match=message):
        parse(word)
