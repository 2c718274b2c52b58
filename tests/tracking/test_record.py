"""A run's record on disk: valid at any moment, without secrets, and never in place of the user's files."""

from __future__ import annotations

import contextlib
import json
import math
import shutil

import pytest

from peftlib.errors import Interrupted, RunError, UserError
from peftlib.files import write_json
from peftlib.tracking.folder import RUN_FILES
from peftlib.tracking.record import RunRecord
from tests.tracking.facts import made_facts


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def read_lines(path):
    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


# ── The folder ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["checkpoints", "predictions", "model"])
def test_only_overwriting_removes_what_lies_in_folders_of_a_run_that_starts_afresh(tmp_path, name, overwrite):
    """`auto` starts afresh if no checkpoint is intact; the user may want to rescue the damaged ones."""
    (tmp_path / name / "step_00000010").mkdir(parents=True)
    RunRecord(tmp_path, {}, overwrite=overwrite)
    assert (tmp_path / name).exists() is not overwrite


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_branch_from_another_folder_begins_with_none_of_the_lines_here(tmp_path, overwrite):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "train/loss": 0.5}\n')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"of another run")
    (tmp_path / "checkpoints").mkdir()
    record = RunRecord(tmp_path, {}, resumed_step=10, overwrite=overwrite, branches=True)
    assert record.logged_step == -1 and (tmp_path / "metrics.jsonl").read_text() == ""
    assert not (tmp_path / "adapter_model.safetensors").exists()
    assert (tmp_path / "checkpoints").exists() is not overwrite
    record.update(status="finished")
    record._lock.close()
    if not overwrite:
        with pytest.raises(UserError, match="holds a finished run"):
            RunRecord(tmp_path, {}, resumed_step=10, branches=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_curves_of_a_run_that_is_overwritten_do_not_run_on_in_the_new_one_s(tmp_path, overwrite):
    for name in ("peftlib/events.out.tfevents.1", "peftlib/notes.txt", "wandb/offline-run-1/run-1.wandb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    RunRecord(tmp_path, {}, overwrite=overwrite)
    assert (tmp_path / "peftlib" / "events.out.tfevents.1").exists() is not overwrite
    assert (tmp_path / "peftlib" / "notes.txt").exists() and list(tmp_path.glob("wandb/*/*.wandb"))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_finished_run_is_not_cleared_by_one_that_starts_afresh(tmp_path, damaged, monkeypatch):
    """Its checkpoints are gone, or none is intact; or it has started and finished since the folder was chosen."""
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    (tmp_path / "adapter_model.safetensors").write_text("precious")
    (tmp_path / "checkpoints" / ("step_00000010" if damaged else "")).mkdir(parents=True)
    with pytest.raises(UserError, match="holds a finished run and no whole checkpoint to go on from"):
        RunRecord(tmp_path, {})
    assert (tmp_path / "adapter_model.safetensors").read_text() == "precious"
    RunRecord(tmp_path, {}, resumed_step=10)
    assert (tmp_path / "adapter_model.safetensors").exists()
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    monkeypatch.setenv("PEFTLIB_SWEEP_ID", "q")  # was killed before it learnt that the run had finished
    RunRecord(tmp_path, {})
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_overwriting_clears_a_runs_own_files_and_nothing_else(tmp_path):
    foreign = ["notes.txt", "run.json.bak", "data.csv"]
    for name in (*RUN_FILES, *foreign):
        (tmp_path / name).write_text("old")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "run.json").write_text("old")
    RunRecord(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*foreign, "plots", "run.json", "metrics.jsonl", ".lock"]
    )
    assert all((tmp_path / name).read_text() == "old" for name in (*foreign, "plots/run.json"))
    assert read(tmp_path / "run.json")["status"] == "running"
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_folder_that_cannot_be_made_is_the_users_to_fix(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        RunRecord(tmp_path / "file" / "run", {})


# ── run.json and metrics.jsonl ───────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_ends_well_is_finished(tmp_path):
    record = RunRecord(tmp_path / "a" / "b", {"seed": 1})
    with record.running():
        assert read(tmp_path / "a" / "b" / "run.json")["status"] == "running"
        record.update(steps=3)
        assert read(tmp_path / "a" / "b" / "run.json")["steps"] == 3
    run = read(tmp_path / "a" / "b" / "run.json")
    assert (run["status"], run["seed"], run["steps"]) == ("finished", 1, 3)
    assert run["started"] <= run["ended"]
    assert 0 <= run["seconds"] < 60
    assert record.facts == run


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RunError("the loss\nis nan"), "failed", "the loss is nan"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (
            Interrupted("stopped by SIGTERM after step 3; this step\ncould not be kept", 143, by_hand=False),
            "interrupted",
            "stopped by SIGTERM after step 3; this step could not be kept",
        ),
    ],
)
def test_a_run_that_is_cut_off_says_how_and_why(tmp_path, error, status, reason):
    record = RunRecord(tmp_path, {})
    with pytest.raises(type(error)), record.running():
        raise error
    run = read(tmp_path / "run.json")
    assert run["status"] == status
    assert run["error"].startswith(reason)
    assert "ended" in run


def test_numbers_that_json_lacks_become_null(tmp_path):
    record = RunRecord(tmp_path, {"a": math.nan})
    record.log({"train/loss": math.inf, "eval/f1": 0.5}, step=1)
    record.update(best={"loss": -math.inf})
    run = read(tmp_path / "run.json")
    assert (run["a"], run["best"]) == (None, {"loss": None})
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": None, "eval/f1": 0.5}]


def test_every_logged_line_can_be_read_while_the_run_goes_on(tmp_path):
    record = RunRecord(tmp_path, {})
    for step in range(1, 4):
        record.log({"train/loss": 1 / step}, step)
        assert read_lines(tmp_path / "metrics.jsonl") == [{"step": s, "train/loss": 1 / s} for s in range(1, step + 1)]


def test_an_update_that_an_earlier_life_has_logged_is_not_logged_twice(tmp_path):
    """As when an evaluation is repeated."""
    earlier = RunRecord(tmp_path, {})
    for step in (4, 8, 9):
        earlier.log({"a": float(step)}, step)
    earlier._lock.close()
    later = RunRecord(tmp_path, {}, resumed_step=8)
    for step in (8, 9, 12):
        later.log({"a": -float(step)}, step)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["a"]) for line in lines] == [(4, 4.0), (8, 8.0), (9, -9.0), (12, -12.0)]
    assert later.logged_step == 9


def test_on_a_full_disk_the_records_stay_readable_and_say_so(tmp_path, small_disk):
    warnings = []
    record = RunRecord(small_disk.folder / "run", {"seed": 1}, warn=warnings.append)
    written = 0
    for room in (1 << 16, 0):
        small_disk.leave(room)
        with contextlib.suppress(OSError), (small_disk.folder / ".rest").open("ab", buffering=0) as rest:
            while room == 0:  # fill the last page, too
                rest.write(b"x")
        for _ in range(200):
            written += 1
            record.log({"train/loss": 1 / written, "note": 0.5}, written)
        record.update(steps=written)
        assert read(small_disk.folder / "run" / "run.json")["status"] == "running"
    assert any(line.startswith("run.json could not be written") for line in warnings)
    assert any(line.startswith("metrics.jsonl lacks step") for line in warnings)
    (small_disk.folder / ".rest").unlink()
    small_disk.leave(1 << 20)
    with record.running():
        record.log({"train/loss": 0.0}, written + 1)
    steps = [line["step"] for line in read_lines(small_disk.folder / "run" / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == written + 1  # every line is complete
    told = {int(line.split("step ")[1].split(":")[0]) for line in warnings if "lacks step" in line}
    assert set(range(1, written + 1)) - set(steps) <= told
    assert read(small_disk.folder / "run" / "run.json")["status"] == "finished"


def test_a_run_whose_end_cannot_be_recorded_has_not_ended_well(tmp_path):
    record = RunRecord(tmp_path / "run", {"seed": 1})
    with pytest.raises(RunError, match=r"cannot write run\.json .*; free some space there"), record.running():
        shutil.rmtree(tmp_path / "run")


def test_facts_are_a_copy(tmp_path):
    record = RunRecord(tmp_path, {"seed": 1})
    record.facts["seed"] = 2
    assert record.facts["seed"] == 1


def test_the_description_of_a_run_survives_json(tmp_path):
    facts = made_facts()
    write_json(tmp_path / "run.json", facts)
    assert read(tmp_path / "run.json") == facts
    assert facts["parameters"] == {"trainable": 1234, "total": 1_000_000, "trainable_ratio": 0.001234}
