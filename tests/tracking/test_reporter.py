"""The reporter tells record, console and trackers the same, and only from the main process."""

from __future__ import annotations

import json
import os

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration

from peftlib.errors import RunError, UserError
from peftlib.tracking.machine import Neighbours
from peftlib.tracking.reporter import Reporter
from tests.tracking.facts import made_arguments, made_facts

RESULTS = {
    "eval_accuracy": 0.79,
    "best_eval_accuracy": 0.8125,
    "best_eval_loss": 0.5,
    "best_eval_step": 10,
    "global_step": 20,
    "trainable_params": 1234,
    "trainable_ratio": 0.001234,
    "train_runtime": 12.3,
    "train_samples_per_second": 45.6,
}
VALUES = {"train/loss": 0.5, "train/learning_rate": 1e-3, "train/epoch": 0.5, "train/samples_per_second": 10.0}


@pytest.fixture(autouse=True)
def _pipe(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def reporter_in(folder, *words, trackers=()):
    accelerator = Accelerator(
        cpu=True,
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
    )
    return Reporter(accelerator, folder, made_arguments(*words), list(trackers))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_nothing_is_created_before_the_run_is_watched(tmp_path):
    reporter = reporter_in(tmp_path / "run")
    assert reporter.facts == {}
    assert list(tmp_path.iterdir()) == []


def test_a_whole_run_is_recorded_and_told(tmp_path, capsys):
    folder = tmp_path / "run"
    reporter = reporter_in(folder, "--seed", "7")
    with reporter.watching(20, made_facts()):
        reporter.advance(10)
        reporter.log(VALUES, 10)
        reporter.log({"eval/accuracy": 0.8125}, 20)
        reporter.finish(RESULTS)
    run = read(folder / "run.json")
    assert run["status"] == "finished"
    assert run["arguments"] == made_arguments("--seed", "7")
    assert (run["steps"], run["processes"], run["output_dir"]) == (20, 1, str(folder))
    assert run["results"] == RESULTS == read(folder / "all_results.json")
    assert run["peak_memory_bytes"] > 0
    assert run["setup_seconds"] >= 0
    assert run.items() >= made_facts().items()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert lines[0].items() >= VALUES.items()
    assert all(line["perf/peak_memory_bytes"] > 0 for line in lines)
    out = capsys.readouterr().out
    for part in (
        "mrpc, 3,668 training and 408 validation examples (made here)",
        "BitFit, learning rate 0.003",
        "20 of 16 examples, 1 process\n",
        "bf16 (auto: this CPU has bf16 instructions)",
        "trainable: 1,234",
        "ratio: 0.1234%",
        "step 10/20",
        "evaluation at step 20  accuracy 0.8125",
        "best step: 10 of 20",
        f"result: {folder}",
    ):
        assert part in out


@pytest.mark.parametrize(
    ("others", "threads", "said"), [(1.2, 2, "--num_cpu_threads 1"), (0.4, 2, None), (2.0, 1, None), (3.0, 8, "5")]
)
def test_neighbours_that_keep_threads_waiting_are_said(tmp_path, capsys, monkeypatch, others, threads, said):
    monkeypatch.setattr(Neighbours, "busy_cores", lambda self: others)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    with reporter_in(tmp_path).watching(20, made_facts()):
        pass
    out = capsys.readouterr().out
    assert ("cores busy" in out) is (said is not None) and (said or "") in out


@pytest.mark.parametrize(("step", "said"), [(7, "resumed: after step 7\n"), (20, "the last: nothing is left to train")])
def test_a_run_that_goes_on_says_from_where(tmp_path, capsys, step, said):
    with reporter_in(tmp_path).watching(20, made_facts(), {"step": step, "own": True, "trackers": {}}):
        pass
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "weights", "said"),
    [
        ((), {}, None),
        (
            ("--class_weights", "balanced"),
            {"not_equivalent": 1.5361, "equivalent": 0.74131},
            "class weights not_equivalent 1.536, equivalent 0.7413 (balanced)",
        ),
        (("--label_smoothing_factor", "0.1"), {}, "label smoothing 0.1"),
        (
            ("--class_weights", '{"b": 9}', "--label_smoothing_factor", "0.2"),
            {letter: 9.0 if letter == "b" else 1.0 for letter in "abcdefghij"},
            "class weights a 1, b 9, c 1, d 1, e 1, f 1, g 1, h 1, …; label smoothing 0.2",
        ),
    ],
)
def test_a_changed_training_loss_is_said_and_recorded(tmp_path, capsys, words, weights, said):
    facts = made_facts()
    if weights:
        facts["data"]["train"]["class_weights"] = weights
    with reporter_in(tmp_path, *words).watching(20, facts):
        pass
    out = capsys.readouterr().out
    assert (f"  training loss: {said}\n" in out) if said else ("training loss" not in out)
    assert read(tmp_path / "run.json")["data"]["train"].get("class_weights", {}) == weights


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--num_warmup_steps", "21"), True),
        (("--num_warmup_steps", "20"), False),
        (("--num_warmup_steps", "21", "--lr_scheduler_type", "constant"), False),
        ((), False),
    ],
)
def test_a_warm_up_longer_than_the_run_is_said(tmp_path, capsys, words, said):
    facts = made_facts() | {"effective_batch_size": 4000}
    with reporter_in(tmp_path, *words).watching(20, facts):
        pass
    out = capsys.readouterr().out
    note = "note: --num_warmup_steps 21: the run is shorter, so the learning rate rises over all 20 updates\n"
    assert (note in out) is said
    assert "20 of 3668 examples" in out  # there are no more


def test_no_secret_of_the_environment_reaches_a_file(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "s3cr3t")
    reporter = reporter_in(tmp_path / "run")
    with reporter.watching(20, made_facts()):
        reporter.finish(RESULTS)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) == 4  # run.json, metrics.jsonl, all_results.json, .lock
    assert not any(b"s3cr3t" in path.read_bytes() for path in files)


def test_a_run_that_fails_is_recorded_as_failed(tmp_path):
    reporter = reporter_in(tmp_path / "run")
    with pytest.raises(RunError), reporter.watching(20, made_facts()):
        raise RunError("the loss is nan")
    run = read(tmp_path / "run" / "run.json")
    assert (run["status"], run["error"]) == ("failed", "the loss is nan")


def test_a_tracker_that_cannot_start_does_not_stop_the_run(tmp_path, capsys):
    (tmp_path / "peft-text-classification").write_text("in TensorBoard's way")
    reporter = reporter_in(tmp_path, trackers=["tensorboard"])
    with reporter.watching(20, made_facts()):
        reporter.log(VALUES, 1)
    assert "warning: starting the trackers failed" in capsys.readouterr().out
    assert reporter._trackers == reporter._accelerator.trackers == []  # half started, it would fail at every log
    assert read(tmp_path / "run.json")["status"] == "finished"


def test_a_tracker_that_fails_later_does_not_stop_the_run(tmp_path, capsys):
    reporter = reporter_in(tmp_path, trackers=["tensorboard"])
    with reporter.watching(20, made_facts()):

        def gone(*_, **__):
            raise ConnectionError("1 error\n  the server is gone")

        for tracker in reporter._accelerator.trackers:
            tracker.log = gone
        for step in range(1, 5):
            reporter.log(VALUES, step)
    out = capsys.readouterr().out
    assert out.count("warning: a tracker failed, the run continues without it") == 1
    assert "continues without it: ConnectionError: 1 error the server is gone\n" in out
    assert read(tmp_path / "run.json")["status"] == "finished"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_the_id_of_a_tracker_that_does_not_start_today_is_kept_for_the_next_life(tmp_path):
    reporter = reporter_in(tmp_path)
    with reporter.watching(20, made_facts(), {"step": 3, "own": True, "trackers": {"wandb": "abc"}}):
        assert reporter.tracker_ids == {"wandb": "abc"}


@pytest.mark.parametrize(("known", "expected"), [({}, [1, 5, 6]), ({"tensorboard": ""}, [6])])
def test_a_tracker_that_joins_a_resumed_run_hears_what_others_have_heard_already(tmp_path, known, expected):
    """The run was killed after update 5, and resumes from update 0."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = reporter_in(tmp_path)
    with pytest.raises(RunError, match="killed"), first.watching(20, made_facts()):
        first.log(VALUES, 5)
        raise RunError("killed")
    later = reporter_in(tmp_path, "--project_name", "p", trackers=["tensorboard"])
    with later.watching(20, made_facts(), {"step": 0, "own": True, "trackers": known}):
        for step in (1, 5, 6):
            later.log(VALUES, step)
        assert later.tracker_ids == {"tensorboard": ""}
    events = EventAccumulator(str(tmp_path / "p")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == expected


def test_a_folder_that_is_claimed_stays_so_until_the_run_ends(tmp_path):
    first, second = reporter_in(tmp_path), reporter_in(tmp_path)
    first.claim()
    with pytest.raises(UserError, match="another run is writing there"):
        second.claim()
    with first.watching(20, made_facts()), pytest.raises(UserError, match="another run is writing there"):
        second.claim()
    second.claim()


def test_a_dry_run_is_announced_and_leaves_no_trace(tmp_path, capsys):
    reporter = reporter_in(tmp_path / "run", "--dry_run", trackers=["tensorboard"])
    reporter.claim()
    with reporter.watching(20, made_facts()):
        reporter.update(a=1)
    (tmp_path / "run").mkdir()
    with reporter.watching(20, made_facts(), {"step": 7, "own": True, "trackers": {}}):
        pass
    assert reporter.facts == {} and reporter.tracker_ids == {}
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]
    out = capsys.readouterr().out
    assert "dry run: a few updates are measured, nothing is saved" in out
    assert "20 of 16 examples, 1 process\n" in out and "trainable: 1,234\n" in out and "resumed: after step 7\n" in out
    assert "  output: none, since this is a dry run\n" in out


def test_a_dry_run_is_refused_where_the_run_would_be(tmp_path):
    dry, real = reporter_in(tmp_path, "--dry_run"), reporter_in(tmp_path)
    with real.watching(20, made_facts()):
        with pytest.raises(UserError, match="another run is writing there"), dry.watching(20, made_facts()):
            pytest.fail("unreachable")
        with pytest.raises(UserError, match="another run is writing there"):
            dry.claim()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="holds a finished run"), dry.watching(20, made_facts()):
        pytest.fail("unreachable")
    with reporter_in(tmp_path, "--dry_run", "--overwrite_output_dir").watching(20, made_facts()):
        real.claim()  # the folder stays free
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_results_that_find_no_room_are_one_line(tmp_path):
    reporter = reporter_in(tmp_path)
    with pytest.raises(RunError, match=r"cannot write all_results\.json"), reporter.watching(20, made_facts()):
        (tmp_path / "all_results.json").mkdir(exist_ok=True)
        reporter.finish(RESULTS)


def test_a_folder_that_cannot_be_written_is_the_users_to_fix(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), reporter_in(tmp_path / "file").watching(1, made_facts()):
        pytest.fail("unreachable")


def test_other_processes_write_and_say_nothing(tmp_path, capsys):
    reporter_in(tmp_path / "run")
    PartialState._shared_state["process_index"] = 1  # as on the second process of a launch
    quiet = reporter_in(tmp_path / "run")
    with quiet.watching(20, made_facts()):
        quiet.advance(1)
        quiet.log(VALUES, 1)
        quiet.update(a=1)
        quiet.finish(RESULTS)
    assert quiet.facts == {}
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_trackers_hear_what_the_record_hears_and_the_configuration(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    reporter = reporter_in(folder, "--project_name", "p", trackers=["tensorboard"])
    with reporter.watching(20, made_facts()):
        reporter.log(VALUES, 10)
    events = EventAccumulator(str(folder / "p")).Reload()
    (line,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name, value in VALUES.items():
        (event,) = events.Scalars(name)
        assert (event.step, event.value) == (10, pytest.approx(value))
        assert line[name] == value
    (ratio,) = events.Scalars("params/trainable_ratio")
    assert ratio.value == pytest.approx(0.001234)
    text = next((folder / "p").rglob("hparams.yml")).read_text()
    assert "learning_rate: 0.003" in text  # the method's own, not the flag's None
    assert "bias_terms: all" in text


def test_texts_that_were_cut_are_counted(tmp_path, capsys):
    facts = made_facts()
    facts["data"]["train"]["truncated"] = 1234
    with reporter_in(tmp_path / "cut", "--max_length", "64").watching(20, facts):
        pass
    said = "note: 1,234 of 3,668 training examples are longer than --max_length 64 tokens, and were truncated\n"
    out = capsys.readouterr().out
    assert said in out and "validation examples are longer" not in out


@pytest.mark.parametrize(("backend", "noticed"), [("INDUCTOR", True), ("NO", False)])
def test_a_launcher_that_asks_for_compilation_is_answered(tmp_path, capsys, monkeypatch, backend, noticed):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", backend)
    with reporter_in(tmp_path / "run").watching(20, made_facts()):
        pass
    said = "note: torch.compile, which accelerate's dynamo_backend inductor asks for, is not used"
    assert (said in capsys.readouterr().out) == noticed


def test_validation_texts_that_are_trained_on_are_noticed(tmp_path, capsys):
    for leaked in (0, 12):
        facts = made_facts()
        facts["data"]["validation"]["leaked"] = leaked
        with reporter_in(tmp_path / str(leaked)).watching(20, facts):
            pass
        said = f"note: the texts of {leaked} of 408 validation examples are training texts too, which makes scores look"
        assert (said in capsys.readouterr().out) == bool(leaked)


def test_classes_without_examples_are_noticed(tmp_path, capsys):
    facts = made_facts() | {"labels": ["ham", "spam", "news"]}
    facts["data"]["train"]["class_counts"] = [5, 0, 1]
    facts["data"]["validation"]["class_counts"] = [9]
    with reporter_in(tmp_path / "run").watching(20, facts):
        pass
    out = capsys.readouterr().out
    assert "note: no training example of 1 of 3 classes (spam): the model cannot learn them\n" in out
    assert "note: no validation example of 2 of 3 classes (spam, news): no score tells how well they " in out
    facts["data"]["train"]["class_counts"] = facts["data"]["validation"]["class_counts"] = [1, 1, 1]
    with reporter_in(tmp_path / "whole").watching(20, facts):
        pass
    assert "example of" not in capsys.readouterr().out


def test_numbers_that_are_hard_to_learn_are_noticed(tmp_path, capsys):
    for largest, noticed in ((5.0, False), (250_000.0, True)):
        facts = made_facts()
        facts["data"]["train"]["largest"] = largest
        with reporter_in(tmp_path / str(largest)).watching(20, facts):
            pass
        assert ("note: the numbers to predict reach 250000; " in capsys.readouterr().out) == noticed


@pytest.mark.parametrize(("labels", "noticed"), [(["ham", "NaN"], ["NaN"]), (["nan-bread", "ham"], [])])
def test_classes_that_read_like_missing_labels_are_noticed(tmp_path, capsys, labels, noticed):
    with reporter_in(tmp_path / "run").watching(20, made_facts() | {"labels": labels}):
        pass
    notes = [line for line in capsys.readouterr().out.splitlines() if "taken for a class" in line]
    advice = "is taken for a class; if it marks rows without a label, remove them"
    assert notes == [f"note: {label!r} {advice}" for label in noticed]
