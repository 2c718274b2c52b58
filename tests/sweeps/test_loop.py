"""The sweep loop, with a small program in place of training that writes the same files and handles signals."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from typing import Any, NamedTuple, TextIO

import pytest
import yaml
from optuna.trial import FrozenTrial
from rich.console import Console as RichConsole

from peftlib.errors import Interrupted, RunError
from peftlib.files import try_lock
from peftlib.sweeps.config import load_sweep
from peftlib.sweeps.console import SweepConsole
from peftlib.sweeps.loop import run_sweep
from peftlib.sweeps.search import Search

# The run with --seed 0 is the best, each further one is worse; a run logs --max_train_steps evaluations.
_PROGRAM = """
import json, pathlib, signal, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
out = pathlib.Path(flags["output_dir"])
out.mkdir(exist_ok=True)
def say(status, **facts):
    (out / "run.json").write_text(json.dumps({"status": status, **facts}))
def stop(*_):
    if seed == 5.5:  # it finishes, but the launcher dies of the signal
        say("finished")
        sys.exit(143)
    (out / "checkpoints").mkdir(exist_ok=True)
    say("interrupted")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
if pathlib.Path("changed").exists():
    print("error: the train data have changed")
    sys.exit(1)  # as the launcher does
say("running")
seed = float(flags["seed"]) if flags["seed"] in ("nan", "5.5") else int(flags["seed"])
if seed == 13:
    print("error: unlucky")
    sys.exit(2)
with (out / "metrics.jsonl").open("w") as log:
    for step in range(int(flags["max_train_steps"])):
        # A training writes null where a number is not finite; this one's loss is finite at first.
        loss = seed if seed == seed else [1, None][step > 0]
        print(json.dumps({"step": step, "eval/accuracy": 1 - seed / 10, "eval/loss": loss}), file=log, flush=True)
        time.sleep(float(flags.get("learning_rate", 0)))
say("finished")
sys.exit(seed == 14)
"""


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Open the study of a sweep over this program, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peftlib.sweeps.loop._PAUSE", 0.05)

    def make(seeds: list[int], steps: int = 2, pause: float = 0.0, **changes: Any) -> Search:
        (tmp_path / "program.py").write_text(_PROGRAM)
        content = {
            "program": "program.py", "method": "grid", "metric": {"name": "eval/accuracy", "goal": "maximize"},
            "parameters": {"seed": {"values": seeds}, "max_train_steps": {"value": steps},
                           "learning_rate": {"value": pause}},
        }  # fmt: skip
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**content, **changes}))
        known = ["--seed", "--max_train_steps", "--learning_rate"]
        return Search(load_sweep(tmp_path / "sweep.yaml", known, lambda words: None), tmp_path / "study")

    return make


def states(search: Search) -> list[str]:
    return [trial.state.name for trial in search.trials()]


def test_values_are_text_to_a_terminal_not_markup(search, monkeypatch):
    opened, screen, console = search(["[/x]"]), io.StringIO(), SweepConsole()
    monkeypatch.setattr(console, "_rich", RichConsole(force_terminal=True, file=screen, width=100))
    with pytest.raises(RunError):  # the program fails with this seed
        run_sweep(opened, console)
    assert screen.getvalue().count("[/x]") > 1


def test_a_crash_is_recorded_and_the_sweep_goes_on(search, capsys):
    opened = search([2, 13, 1])
    run_sweep(opened, SweepConsole())
    assert states(opened) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert opened.trials()[1].user_attrs["error"] == "unlucky (exit status 2)"
    assert opened.trials()[1].user_attrs["log_tail"] == "error: unlucky"
    lines = capsys.readouterr().out.splitlines()
    assert "run 0 started: seed 2" in lines, "what is the same in all runs is not repeated"
    table = [line.split() for line in lines if line.startswith(("1 ", "2 ", "3 "))]
    assert [" ".join(row) for row in table] == ["1 2 finished 0.9000 1", "2 0 finished 0.8000 2", "3 1 failed 13"]
    assert lines[-4].startswith("run 1 failed: unlucky (exit status 2); ") and lines[-4].endswith("0001.log")
    assert lines[-3] == "once that is mended, the same command with --retry_failed runs what has failed again"
    assert lines[-2] == "the first is the best of 2 on the same examples: on others, expect somewhat worse"
    assert lines[-1] == f"best: eval/accuracy 0.9000, in {opened.run_folder(2)}"


def test_runs_on_other_data_are_not_ranked_without_a_word(search, capsys):
    opened = search([1, 2, 3])
    run_sweep(opened, SweepConsole())
    assert "data have changed" not in capsys.readouterr().out
    for number, content in enumerate(("aa", "bb", "bb")):
        data = {"train": {"fingerprint": content}, "validation": {"fingerprint": "cc"}}
        record = {"status": "finished", "arguments": {"train_file": "a.csv"}, "data": data}
        (opened.run_folder(number) / "run.json").write_text(json.dumps(record))
    run_sweep(search([1, 2, 3]), SweepConsole())
    said = "the train data have changed: runs 1, 2 cannot be ranked with runs 0\n"
    assert said in capsys.readouterr().out
    record["arguments"]["max_train_samples"] = 100  # then they are meant to differ
    record["data"]["train"]["fingerprint"] = "dd"
    (opened.run_folder(0) / "run.json").write_text(json.dumps(record))
    run_sweep(search([1, 2, 3]), SweepConsole())
    assert "data have changed" not in capsys.readouterr().out


def test_a_run_that_ends_badly_after_its_result_has_failed(search):
    """Its push to the Hub has, say."""
    opened = search([1, 14])
    run_sweep(opened, SweepConsole())
    assert states(opened) == ["COMPLETE", "FAIL"]
    assert opened.trials()[1].user_attrs["error"] == "exit status 1"


def test_workers_overlap_and_count_ends_the_call(search):
    opened = search([1, 2, 3], steps=6, pause=0.1)
    run_sweep(opened, SweepConsole(), workers=2, count=2)
    first, second = opened.trials()
    assert first.state.name == second.state.name == "COMPLETE"
    assert second.datetime_start < first.datetime_complete
    run_sweep(opened, SweepConsole())
    assert states(opened) == ["COMPLETE"] * 3


def test_hyperband_stops_a_bad_run_for_good(search):
    early = {"type": "hyperband", "max_iter": 27, "s": 1, "eta": 27}
    opened = search([0, 5], steps=27, pause=0.1, early_terminate=early)
    run_sweep(opened, SweepConsole())
    assert states(opened) == ["COMPLETE", "PRUNED"]
    assert opened.trials()[1].user_attrs["stopped_at"] == 1
    assert not (opened.run_folder(1) / "checkpoints").exists()
    record = json.loads((opened.run_folder(1) / "run.json").read_text())
    assert record == {"status": "interrupted", "error": "stopped early by the sweep, after 1 evaluation"}


def test_a_run_that_finishes_as_it_is_to_be_stopped_early_keeps_its_score(search):
    early = {"type": "hyperband", "max_iter": 27, "s": 1, "eta": 27}
    opened = search([0, 5.5], steps=27, pause=0.1, early_terminate=early)
    run_sweep(opened, SweepConsole())
    assert opened.trials()[1].user_attrs["stopped_at"] == 1, "it was told to stop"
    assert states(opened) == ["COMPLETE", "COMPLETE"]
    assert json.loads((opened.run_folder(1) / "run.json").read_text()) == {"status": "finished"}


def test_a_run_that_refuses_to_go_on_says_why_and_waits_until_that_is_mended(cut, tmp_path):
    cut.lock.close()
    folder = cut.search.run_folder(0)
    (folder / "run.json").write_text('{"status": "interrupted", "error": "SIGTERM"}')
    (tmp_path / "changed").touch()
    for _ in range(5):
        with pytest.raises(RunError, match=r"^run 0 cannot go on: the train data have changed \(exit status 1\); once"):
            run_sweep(cut.search, SweepConsole())
    assert states(cut.search) == ["RUNNING"]
    (tmp_path / "changed").unlink()
    run_sweep(cut.search, SweepConsole())
    assert states(cut.search) == ["COMPLETE", "COMPLETE"]


def test_a_run_that_ended_while_nobody_looked_is_not_repeated(search):
    opened = search([1, 13])
    claims = [opened.claim(), opened.claim()]
    for claim in claims:
        folder = opened.run_folder(claim.number)
        folder.mkdir()
        done = claim.number == 0
        (folder / "run.json").write_text('{"status": "finished"}' if done else '{"status": "failed", "error": "odd"}')
        (folder / "metrics.jsonl").write_text('{"step": 1, "eval/accuracy": 0.25}\n')
        (folder.parent / f"{folder.name}.log").write_text("")
    for claim in claims:
        claim.lock.close()
    again = search([1, 13])
    run_sweep(again, SweepConsole())
    assert again.trials()[0].value == 0.25 and again.trials()[1].user_attrs["error"] == "odd"
    assert (again.run_folder(0) / "metrics.jsonl").read_text().count("\n") == 1


def test_a_run_that_finished_before_it_could_be_stopped_early_keeps_its_score(search):
    opened = search([1])
    claim = opened.claim()
    claim.trial.set_user_attr("stopped_at", 1)
    folder = opened.run_folder(0)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "finished"}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "eval/accuracy": 0.25}\n')
    claim.lock.close()
    run_sweep(opened, SweepConsole())
    assert opened.trials()[0].value == 0.25 and (folder / "checkpoints").exists()


def test_a_run_whose_metric_ends_as_no_number_has_failed(search):
    opened = search(["nan", 1], metric={"name": "eval/loss"})
    run_sweep(opened, SweepConsole())
    assert states(opened) == ["FAIL", "COMPLETE"]
    assert opened.trials()[0].user_attrs["error"] == "eval/loss is not finite at the end of the run"


def test_the_live_table_tells_runs_of_other_shells_from_interrupted_ones(search, monkeypatch):
    opened, screen, console = search([1, 2, 3]), io.StringIO(), SweepConsole()
    held = [opened.claim(), opened.claim()]
    opened.release(held[1], blameless=True)
    monkeypatch.setattr(console, "_rich", RichConsole(force_terminal=True, file=screen, width=100))
    with console:
        console.begin(opened, workers=1)
        console.show(opened, {})
    rows = [line.replace("│", " ").split() for line in screen.getvalue().splitlines()]
    assert ["0", "running", "elsewhere", "1"] in rows and ["1", "interrupted", "2"] in rows
    again = opened.claim()
    assert again is not None and again.number == 1, "looking leaves the locks free"


def test_settings_of_w_and_b_s_search_that_have_no_effect_are_named(search, capsys):
    metric = {"name": "eval/accuracy", "goal": "maximize", "impute_while_running": "best"}
    run_sweep(search([1], metric=metric), SweepConsole())
    assert "metric.impute_while_running: has no effect here" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs_and_the_next_call_goes_on(search, number, capsys):
    opened = search([1, 2], steps=40, pause=0.05)

    def send() -> None:
        log = opened.run_folder(0) / "metrics.jsonl"
        while not (log.exists() and log.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    with pytest.raises(Interrupted, match="the same command continues") as stopped:
        run_sweep(opened, SweepConsole())
    sender.join()
    assert stopped.value.status == 128 + number
    assert "stopping: the runs are writing checkpoints" in capsys.readouterr().out
    assert states(opened) == ["RUNNING"]
    assert "interrupted" in (opened.run_folder(0) / "run.json").read_text()
    run_sweep(search([1, 2], steps=40, pause=0.05), SweepConsole(), workers=2)
    assert states(opened) == ["COMPLETE", "COMPLETE"]


class Cut(NamedTuple):
    """A sweep of two runs, the first interrupted; `lock` is held as by a process of it that is still writing."""

    search: Search
    lock: TextIO


@pytest.fixture
def cut(search) -> Cut:
    opened = search([2, 1])
    opened.claim().lock.close()
    opened.run_folder(0).mkdir()
    lock = try_lock(opened.run_folder(0) / ".lock")
    assert lock is not None
    return Cut(opened, lock)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_while_a_training_that_was_left_behind_ends(cut, number):
    released = threading.Event()
    late = threading.Timer(15, lambda: (released.set(), cut.lock.close()))
    soon = threading.Timer(0.5, lambda: os.kill(os.getpid(), number))
    late.start()
    soon.start()
    with pytest.raises(Interrupted):
        run_sweep(cut.search, SweepConsole())
    late.cancel()
    assert not released.is_set(), "it waited for the training"
    assert states(cut.search) == ["RUNNING"]
    cut.lock.close()
    run_sweep(cut.search, SweepConsole())
    assert states(cut.search) == ["COMPLETE", "COMPLETE"]


def test_other_runs_are_watched_while_a_training_that_was_left_behind_ends(cut):
    ended = []

    class Watcher(SweepConsole):
        def ended(self, trial: FrozenTrial) -> None:
            super().ended(trial)
            ended.append(trial.number)
            cut.lock.close()

    late = threading.Timer(15, cut.lock.close)  # otherwise a sweep that ignores the other run would wait for ever
    late.start()
    run_sweep(cut.search, Watcher(), workers=2)
    late.cancel()
    assert ended == [1, 0] and states(cut.search) == ["COMPLETE", "COMPLETE"]


def test_a_training_that_was_left_behind_and_finished_is_not_repeated(cut):
    (cut.search.run_folder(0) / "run.json").write_text('{"status": "finished"}')
    (cut.search.run_folder(0) / "metrics.jsonl").write_text('{"step": 1, "eval/accuracy": 0.25}\n')
    threading.Timer(0.5, cut.lock.close).start()
    run_sweep(cut.search, SweepConsole(), count=1)
    assert states(cut.search) == ["COMPLETE", "COMPLETE"], "what was over already is no run of this call"
    assert cut.search.trials()[0].value == 0.25


def test_a_command_that_cannot_be_started_any_more_leaves_its_trial_to_the_next_call(search, tmp_path):
    program = ["./launcher", "${program}", "${args}"]
    opened = search([1], command=program)
    with pytest.raises(RunError, match=r"command: \./launcher cannot be started \(No such file or directory\)"):
        run_sweep(opened, SweepConsole())
    assert states(opened) == ["RUNNING"]
    (tmp_path / "launcher").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "launcher").chmod(0o755)
    opened = search([1], command=program)
    run_sweep(opened, SweepConsole())
    assert states(opened) == ["COMPLETE"]


@pytest.mark.parametrize(("eta", "said"), [(1.5, True), (3.0, False)])
def test_a_fraction_of_eta_is_rounded_and_that_is_said(search, capsys, eta, said):
    run_sweep(search([1], early_terminate={"type": "hyperband", "min_iter": 1, "eta": eta}), SweepConsole())
    lines = capsys.readouterr().out.splitlines()
    assert ("early_terminate.eta: 1.5 is rounded to 2; Optuna needs a whole number" in lines) is said
    assert any("eta:" in line for line in lines) is said


def test_after_five_failures_and_nothing_else_no_more_are_tried(search):
    seeds = [f"no number {place}" for place in range(8)]
    for done, said in (
        (5, "gave up after 5 failed runs, since none has succeeded"),
        (8, "no run has succeeded"),
    ):
        opened = search(seeds)  # the same command tries five more
        with pytest.raises(RunError, match=said):
            run_sweep(opened, SweepConsole())
        assert states(opened) == ["FAIL"] * done


def test_one_run_that_ended_well_is_reason_to_go_on(search):
    opened = search([1, *(f"no number {place}" for place in range(6))])
    run_sweep(opened, SweepConsole(), workers=2)
    assert sorted(states(opened)) == ["COMPLETE", *["FAIL"] * 6]


def test_a_metric_that_is_never_logged_is_a_failure_with_the_nearest_name(search):
    opened = search([1], metric={"name": "train/accuracy"})
    with pytest.raises(RunError, match="no run has succeeded"):
        run_sweep(opened, SweepConsole())
    assert "did not log train/accuracy; did you mean eval/accuracy?" in opened.trials()[0].user_attrs["error"]


def test_a_terminal_gets_a_live_table(search, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")  # a dumb one gets no live table
    opened = search([1, 2], steps=5, pause=0.1)
    run_sweep(opened, SweepConsole())
    out = capsys.readouterr().out
    assert "0 of 2 runs ended" in out and "1 of 2 runs ended" in out and "best eval/accuracy 0.9000 (run 0)" in out
    assert "running" in out and "ranking" in out and "min left" in out
