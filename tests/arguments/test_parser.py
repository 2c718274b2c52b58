"""A mistyped word gets the nearest right one, in one line."""

from __future__ import annotations

import pytest

from peftlib.arguments import parse_predict_arguments, parse_train_arguments
from peftlib.errors import UserError
from tests.arguments.parsing import complaint, parse


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--mehod", "lora"), "--mehod: no such flag; did you mean --method?"),
        (("--learning-rte=1",), "--learning-rte: no such flag; did you mean --learning_rate?"),
        (("--learn", "1"), "--learn: no such flag"),  # no abbreviations: a later flag would change their meaning
        (("--method", "lorra"), "--method lorra: unknown; did you mean lora?"),
        (("--method", "prompt-tuning"), "prompt-tuning: unknown; use --method peft --peft_type prompt_tuning (known: "),
        (("--method", "VeRA"), "--method VeRA: unknown; use --method peft --peft_type vera (known: "),
        (("--task_name", "rotten_tomatos"), "--task_name rotten_tomatos: unknown; did you mean rotten_tomatoes?"),
        (("--acceleration=False",), '--acceleration False: unknown; YAML reads "off" as False without the quotes'),
        (("--mixed_precision=False",), 'unknown; YAML reads "no" as False without the quotes (known: '),
        (("--mixed_precision=fp61",), "--mixed_precision fp61: unknown; did you mean fp16?"),
        (("--lr-scheduler-type", "liner"), "--lr_scheduler_type liner: unknown; did you mean linear?"),
        (("--lr_scheduler_type", "cosine_with_restarts"), "unknown; did you mean cosine?"),
        (("--task_name", "MRPC"), "--task_name MRPC: unknown; did you mean mrpc?"),
        (("--local_rank", "0"), "--local_rank: no such flag; not needed, the launcher tells each process its rank"),
        (("--deepspeed", "x.json"), "--deepspeed: no such flag; what is trained is small, and each GPU holds"),
        (("--bias_terms", "querry"), "--bias_terms querry: no such group of biases; did you mean query?"),
        (("lora",), "'lora': unexpected"),
        (("--", "--seed", "1"), "--: unexpected; leave it out"),
        (("--seed",), "--seed: expected one argument"),
        (("--config",), "--config: expected one argument"),
        (("--use_dora=maybe",), "--use_dora: "),
        (
            ("--hub_token", "hf_abc"),
            "--hub_token: would end up in shell histories, process lists and records; run `hf auth login`",
        ),
        (("--hub-token=hf_abc",), "--hub-token: would end up in"),
    ],
)
def test_a_mistyped_word_gets_the_nearest_right_one(words, expected):
    assert expected in complaint(*words)


def test_all_wrong_flags_are_answered_at_once():
    words = "--do_train --lr=1e-3 --fp16 true --seed 1 --evaluation_strategy epoch --fp16 -1"
    with pytest.raises(UserError) as caught:
        parse(*words.split())
    assert list(caught.value.args) == [
        "--do_train: no such flag; not needed, train.py always trains",
        "--lr: no such flag; use --learning_rate",
        "--fp16: no such flag; use --mixed_precision fp16, or no to turn it off",
        "--evaluation_strategy: no such flag; use --eval_steps N; without it every epoch ends with an evaluation",
    ]


def test_a_word_before_a_wrong_flag_is_answered_too():
    with pytest.raises(UserError) as caught:
        parse("extra", "--foo", "1", "--dry_run")
    assert [mistake.partition(":")[0] for mistake in caught.value.args] == ["'extra'", "--foo"]


def test_a_token_is_not_said_again(config):
    for words in (("--hub_token", "hf_abc"), ("--hub_token=hf_abc",), (config("hub_token: hf_abc\n"),)):
        said = complaint(*words)
        assert "hf auth login" in said and "hf_abc" not in said


@pytest.mark.parametrize("script", [parse_train_arguments, parse_predict_arguments])
def test_a_word_that_is_not_utf_8_is_refused_before_it_is_in_any_record(script):
    with pytest.raises(UserError, match=r"^'caf\\udce9\.csv': is not UTF-8; rename it, or set PYTHONUTF8=1 if it is$"):
        script(["--train_file", "caf\udce9.csv"])


def test_ignoring_labels_takes_a_file():
    with pytest.raises(UserError, match=r"^--ignore_labels requires --test_file$"):
        parse_predict_arguments(["outputs/run", "--ignore_labels"])
    _, options = parse_predict_arguments(["outputs/run", "--test_file", "new.csv", "--ignore_labels"])
    assert options.columns == (None, None, None, True)
