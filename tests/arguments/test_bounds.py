"""The range of every number, and what is said of one that is out of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.arguments.parsing import complaint, parse

COUNTS = [
    "max_train_samples", "max_eval_samples", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "max_train_steps", "eval_steps", "logging_steps", "lora_r",
]  # fmt: skip
NOT_NEGATIVE = [
    "dataloader_num_workers", "num_warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm",
    "early_stopping_patience", "seed", "num_cpu_threads", "lora_dropout", "dropout", "label_smoothing_factor",
]  # fmt: skip
RATES = [
    "learning_rate", "num_train_epochs", "warmup_ratio", "weight_decay", "max_grad_norm", "lora_alpha", "lora_dropout",
    "dropout", "label_smoothing_factor",
]  # fmt: skip


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
@settings(max_examples=25)
def test_any_positive_rate_arrives_exactly(rate):
    assert parse(f"--learning_rate={rate!r}").training.learning_rate == rate


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[(name, text) for name in COUNTS for text in ("0", "-1", "1.5", "many", "")],
        *[(name, "-1") for name in NOT_NEGATIVE],
        *[(name, text) for name in RATES for text in ("nan", "inf", "-inf", "fast")],
        *[(name, text) for name in ("learning_rate", "num_train_epochs") for text in ("0", "-1e-3", "1e400")],
        *[("max_length", text) for text in ("1", "0")],
        *[("lora_alpha", text) for text in ("0", "-2")],
        *[(name, text) for name in ("lora_dropout", "dropout", "label_smoothing_factor") for text in ("1", "1.5")],
        ("num_train_epochs", "1e300"),
        ("max_train_steps", "9" * 20),
        ("warmup_ratio", "1.01"),
        ("seed", str(2**31)),
        ("bias_terms", ","),
        ("target_modules", " , "),
    ],
)
def test_a_value_out_of_range_is_refused_under_its_flag(name, text):
    assert complaint(f"--{name}={text}").startswith(f"--{name}")


@pytest.mark.parametrize(("name", "text"), [(name, "1") for name in COUNTS] + [(name, "0") for name in NOT_NEGATIVE])
def test_the_smallest_allowed_value_is_allowed(name, text):
    parse(f"--{name}={text}")
    parse("--warmup_ratio=1", f"--seed={2**31 - 1}", "--max_length=2")
