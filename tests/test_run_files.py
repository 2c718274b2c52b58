"""What a run has left is read whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlib.run_files import best_scores, last_words, logged_in, read_record, record_in


def test_a_record_is_an_object_or_an_error(tmp_path: Path) -> None:
    assert record_in(tmp_path) == {}
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path)
    path = tmp_path / "run.json"
    path.write_text('{"status": "finished"}')
    assert read_record(tmp_path) == record_in(tmp_path) == {"status": "finished"}
    for damaged in ('{"status": "fin', "", "[1]", "null"):
        path.write_text(damaged)
        with pytest.raises(ValueError):
            read_record(tmp_path)
        assert record_in(tmp_path) == {}


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    assert list(logged_in(tmp_path)) == []
    lines = [
        '{"step": 1, "train/loss": 0.5}',
        '{"step": 1, "eval/loss": 0.6}',
        "[1]",
        '{"no": "step"}',
        '{"step": 2, "ev',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [line["step"] for line in logged_in(tmp_path)] == [1, 1]
    assert list(logged_in(tmp_path, containing='"eval/')) == [{"step": 1, "eval/loss": 0.6}]


def test_the_last_words_are_a_command_s_own() -> None:
    printed = [
        "loading",
        "error: first",
        "failed: the loss is nan  ",
        "Traceback of a launcher",
        "CalledProcessError: no",
    ]
    assert last_words(printed) == "failed: the loss is nan"
    assert last_words(["loading", " error: quoted"]) is None


def test_the_best_scores_are_those_of_the_saved_state():
    results = {
        "eval_accuracy": 0.75,
        "last_eval_accuracy": 0.5,
        "best_eval_accuracy": 0.75,
        "best_eval_loss": 0.25,
        "best_eval_step": 6,
        "epoch": 1,
    }
    assert best_scores(results) == {"accuracy": 0.75, "loss": 0.25}
