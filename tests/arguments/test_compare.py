"""The flags of compare.py beside its runs, and its mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlib.arguments import CompareArguments, parse_compare_arguments
from peftlib.errors import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no runs: name their folders"),
        (["run", "--exmples"], "--exmples: no such flag; did you mean --examples?"),
        (["run", "--max_examples", "0"], "--max_examples 0: must be at least 1"),
        (["run", "--max_examples", "few"], "--max_examples: invalid int value: 'few'"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_compare_arguments(words)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_run_may_be_called_as_a_switch_s_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").mkdir()
    assert parse_compare_arguments(["--examples", "1", "no"]) == (["1", "no"], CompareArguments(examples=True))


def test_flags_stand_before_and_behind_the_runs() -> None:
    runs, options = parse_compare_arguments(["--examples", "a", "b", "--max-examples", "3"])
    assert runs == ["a", "b"] and options == CompareArguments(examples=True, max_examples=3)
    assert parse_compare_arguments(["--examples", "false", "a", "b"]) == (["a", "b"], CompareArguments())
