"""Runs are found wherever the user points, each once, and read without changing them."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from peftlib.errors import UserError
from peftlib.evaluation.predictions import PREDICTIONS, save_predictions
from peftlib.reporting.report import work_out
from peftlib.reporting.runs import find_runs, read_run
from tests.reporting.made_up import EXAMPLES, make_run


@pytest.fixture
def place(tmp_path):
    """Make two runs, one of them with a checkpoint, and a sweep of a run and one that never started."""
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    checkpoint = tmp_path / "b" / "checkpoints" / "step_5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "run.json").write_text("{}")
    sweep = tmp_path / "sweep"
    make_run(sweep / "runs" / "0000", changes={"sweep": {"id": "s-1", "trial": "0"}})
    (sweep / "sweep.json").write_text("{}")
    (sweep / "runs" / "0000.log").write_text("fine\n")
    (sweep / "runs" / "0001.log").write_text("loading\nerror: --data_dir nowhere: no such folder\nof a launcher\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["a"], ["a"]),
        (["b", "a"], ["b", "a"]),
        (["a", "a/", "[ab]"], ["a", "b"]),
        (["[ab]"], ["a", "b"]),
        (["**/0000"], ["s-1/0"]),
        (["sweep"], ["s-1/0", "sweep/0001"]),
        ([""], ["a", "b", "s-1/0", "sweep/0001"]),
    ],
)
def test_folders_sweeps_and_globs(place, words, names):
    assert [run.name for run in find_runs([str(place / word) for word in words])] == names


@pytest.mark.parametrize("word", [".", "runs"])
def test_a_sweep_has_its_name_from_within_too(place, monkeypatch, word):
    monkeypatch.chdir(place / "sweep")
    assert [run.name for run in find_runs([word])] == ["s-1/0", "sweep/0001"]


def test_runs_behind_links_are_found_once(place):
    (place / "links").mkdir()
    for name in ("a", "b"):
        (place / "links" / name).symlink_to(place / name)
    (place / "links" / "up").symlink_to(place / "links")
    assert [run.name for run in find_runs([str(place / "links")])] == ["a", "b"]


def test_a_sweeps_run_that_never_began_has_failed_with_its_own_words(place):
    (failed,) = [run for run in find_runs([str(place / "sweep")]) if run.problem]
    assert failed.problem == "failed at start-up: error: --data_dir nowhere: no such folder"
    assert (failed.task, failed.method) == ("unknown task", "unknown method")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nothing", "nothing: no such folder"),
        ("swep", "swep: no such folder; did you mean sweep?"),
        ("a/run.json", "a/run.json: is a file; name the run's folder"),
        ("b/checkpoints/step_?/x*", "no such folder"),
        ("empty", "empty: contains no run (no run.json in it or below it)"),
    ],
)
def test_what_holds_no_run_is_said(place, word, message):
    (place / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_runs([str(place / word)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ("finished", None),
        ("running", "unfinished: still running, or killed"),
        ("failed", "failed: the loss is nan at step 3"),
        ("interrupted", "interrupted: no reason recorded"),
    ],
)
def test_only_a_finished_run_has_a_result(tmp_path, status, problem):
    assert read_run(make_run(tmp_path / "run", status=status)).problem == problem


def test_a_score_that_is_no_number_is_no_result(tmp_path):
    folder = make_run(tmp_path / "run", changes={"results": {"best_eval_accuracy": None}})
    assert read_run(folder).problem == "finished without a finite accuracy"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (("results", "train_runtime"), "finished without a finite train_runtime"),
        (("results", "train_samples_per_second"), "finished without a finite train_samples_per_second"),
        (("results", "best_eval_accuracy"), "finished without a finite accuracy"),
        (("results",), "finished without a finite accuracy"),
        (("peak_memory_bytes",), "finished without a finite peak_memory_bytes"),
        (("parameters", "trainable"), "run.json is not a training run's record: it lacks parameters.trainable"),
        (("data", "validation"), "run.json is not a training run's record: it lacks data.validation.fingerprint"),
        (("arguments", "seed"), "run.json is not a training run's record: it lacks arguments.seed"),
        (("model",), "run.json is not a training run's record: it lacks model.name"),
    ],
)
def test_a_record_that_lacks_something_has_no_result_and_stops_nobody(tmp_path, path, problem):
    folder = make_run(tmp_path / "run", "--task_name", "mrpc")
    record = json.loads((folder / "run.json").read_text())
    *parents, last = path
    del functools.reduce(dict.__getitem__, parents, record)[last]
    (folder / "run.json").write_text(json.dumps(record))
    assert read_run(folder).problem == problem
    report = work_out([read_run(make_run(tmp_path / "other", "--task_name", "mrpc")), read_run(folder)])
    assert [why for _, _, why in report.failed] == [problem]


def test_a_run_of_a_version_with_fewer_metrics_is_compared_by_those(tmp_path):
    folder = make_run(tmp_path / "earlier", "--task_name", "mrpc")
    record = json.loads((folder / "run.json").read_text())
    del record["results"]["best_eval_f1"]
    (folder / "run.json").write_text(json.dumps(record))
    report = work_out([read_run(make_run(tmp_path / "run", "--task_name", "mrpc", seed=1)), read_run(folder)])
    (section,) = report.sections
    assert not report.failed and section.comparison.metrics == ("accuracy",)


@pytest.mark.parametrize("value", ["word", None, float("nan"), [1]])
def test_a_time_that_is_no_number_is_no_result(tmp_path, value):
    folder = make_run(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record["results"]["train_runtime"] = value
    (folder / "run.json").write_text(json.dumps(record))
    assert read_run(folder).problem == "finished without a finite train_runtime"


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"status": "finished"}', "\x00"])
def test_a_damaged_record_is_a_problem_and_no_exception(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    run = read_run(tmp_path)
    assert run.problem is not None and "run.json" in run.problem and "\n" not in run.problem
    assert run.record == {}


def test_what_a_run_holds(tmp_path):
    run = read_run(make_run(tmp_path / "run", "--method", "lora", "--task_name", "mrpc", seed=5, error=0.25))
    assert (run.task, run.method, run.seed) == ("mrpc", "lora", 5)
    answers, labels = run.answers
    assert len(answers) == len(labels) == EXAMPLES
    assert (answers == labels).mean() == run.score("accuracy")
    assert [point["step"] for point in run.curve] == [10, 20, 30, 40, 50, 60]


def test_damaged_answers_are_their_own_run_s_problem(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    (tmp_path / "a" / PREDICTIONS).write_bytes(b"garbage")
    a, b = find_runs([str(tmp_path)])
    assert b.problem is None and a.problem is not None
    assert PREDICTIONS in a.problem and "\n" not in a.problem


@pytest.mark.parametrize(
    ("logits", "labels"),
    [((20, 2), [0] * 30), ((0, 2), []), ((30, 3), [0] * 30), ((30, 2), [*[0] * 29, 2])],
    ids=["other examples", "none", "more outputs", "another class"],
)
def test_answers_of_another_run_are_this_run_s_problem(tmp_path, logits, labels):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "--method", "lora")
    save_predictions(tmp_path / "b", np.zeros(logits, dtype=np.float32), np.array(labels, dtype=np.int64))
    a, b = find_runs([str(tmp_path)])
    assert a.problem is None
    assert b.problem == f"{b.folder / PREDICTIONS}: does not fit run.json; train it again, or remove the file"
    assert [run.name for section in work_out([a, b]).sections for run in section.comparison.runs] == ["a"]


def test_a_line_that_was_cut_off_is_passed_over(tmp_path):
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 61, "eval/loss\xe9')  # in the middle of a character
    assert read_run(folder).curve[-1]["step"] == 60


def test_a_run_without_curves_or_predictions(tmp_path):
    folder = make_run(tmp_path / "run", predictions=False)
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert run.answers is None and run.curve == []


def test_reading_changes_nothing(place):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    for run in find_runs([str(place)]):
        if run.problem is None:
            assert run.curve and run.answers is not None
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert json.loads((place / "a" / "run.json").read_text())["status"] == "finished"
