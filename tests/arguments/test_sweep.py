"""The flags of sweep.py, and its mistakes in one line."""

from __future__ import annotations

import pytest

from peftlib.arguments import parse_sweep_arguments
from peftlib.errors import UserError


def test_the_flags_of_sweep_py():
    file, options = parse_sweep_arguments(["a.yaml", "--workers=2", "--sweep-dir", "x", "--dry_run"])
    assert str(file) == "a.yaml"
    assert (options.workers, options.sweep_dir, options.dry_run, options.count) == (2, "x", True, None)


@pytest.mark.parametrize(
    "words",
    ["a.yaml --set seed=3 lora_r=8 --dry_run", "--dry_run --set seed=3 lora_r=8 a.yaml",
     "--set seed=3 --dry_run --set lora_r=8 a.yaml", "--dry_run=true a.yaml --set seed=3 lora_r=8",
     "--set=seed=3 a.yaml --set lora_r=8 --dry_run"],
)  # fmt: skip
def test_the_file_stands_before_or_behind_the_flags(words):
    file, options = parse_sweep_arguments(words.split())
    assert (str(file), options.set, options.dry_run) == ("a.yaml", ["seed=3", "lora_r=8"], True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.yaml", "--worker", "2"], "--worker: no such flag; did you mean --workers?"),
        (["a.yaml", "--workers", "0"], "--workers 0: must be at least 1"),
        (["a.yaml", "--workers", "x"], "--workers: invalid int value: 'x'"),
        ([], "the following arguments are required: FILE"),
        (["a.yaml", "--set", "seed"], "--set seed: must be a parameter and its value, as in --set seed=3"),
    ],
)
def test_a_wrong_flag_of_sweep_py_is_one_line(words, message):
    with pytest.raises(UserError) as error:
        parse_sweep_arguments(words)
    assert str(error.value) == message
