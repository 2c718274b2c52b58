"""The flags of submit.py beside its runs, and its mistakes in one line."""

from __future__ import annotations

import pytest

from peftlib.arguments import SubmitArguments, parse_submit_arguments
from peftlib.errors import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no runs: name their folders"),
        (["run", "--output", "x.zip"], "--output: no such flag; use --output_file"),
        (["run", "--output_file", "x"], "--output_file x: must end in .zip"),
        (["run", "--fill", "WNLI,MNLI"], "--fill MNLI: no such file; did you mean MNLI-m? (known: CoLA, SST-2, MRPC, "),
        (["run", "--fill", "all"], "--fill all: no such file (known: CoLA, "),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_submit_arguments(words)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_files_to_fill_are_named_with_their_ending_or_without() -> None:
    runs, options = parse_submit_arguments(["a", "b", "--fill", "WNLI.tsv, MNLI-mm,rest"])
    assert runs == ["a", "b"] and options.filled == ("WNLI", "MNLI-mm", "rest")
    assert options.output_file == "submission.zip"
    assert SubmitArguments().filled == ()
