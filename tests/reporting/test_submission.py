"""The zip for GLUE's server: complete and reproducible, or not written, with the commands for what is missing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from peftlib.console import Console
from peftlib.data.glue_server import SERVER_FILES, ServerFile, answer_file
from peftlib.data.tasks import TASKS
from peftlib.errors import RunError, UserError
from peftlib.reporting.runs import find_runs
from peftlib.reporting.submission import Submission, check_place, collect
from tests.reporting.made_up import make_run

OTHERS = [name for name in SERVER_FILES if name != "MRPC"]


def trained(folder: Path, task: str = "mrpc", *, score: float = 0.8, **changes: Any) -> Path:
    """Make a finished run with this score."""
    results = {f"best_eval_{metric}": score for metric in TASKS[task].metrics}
    measured = {"best_eval_step": 60, "train_runtime": 1.0, "train_samples_per_second": 1.0}
    record = {"results": results | measured, "peak_memory_bytes": 1, "ended": "2026-01-01T01:00:00+00:00"}
    words = ("--task_name", task, "--method", "bitfit")
    return make_run(folder, *words, predictions=False, changes=record | changes)


def answered(folder: Path, task: str = "mrpc", **options: Any) -> Path:
    """Make such a run with all predictions for the server, as scripts/predict.py writes them."""
    trained(folder, task, **options)
    for file in SERVER_FILES.values():
        if file.task_name == task:
            answer(folder, file)
    return folder


def answer(folder: Path, file: ServerFile, **changes: Any) -> Path:
    place = folder / "predictions" / file.split
    place.mkdir(parents=True, exist_ok=True)
    choices = file.task.classes_in_glue() or ("0.000", "2.346", "5.000")
    generator = random.Random(f"{folder.name} {file.name}")
    (place / file.name).write_text(answer_file([generator.choice(choices) for _ in range(file.examples)]))
    about = {"run_ended": "2026-01-01T01:00:00+00:00", "global_step": 60, "source": "nyu-mll/glue (mrpc)"}
    (place / "results.json").write_text(json.dumps(about | changes))
    return place


def gathered(*words: Path, fill: tuple[str, ...] = ()) -> Submission:
    return collect(find_runs(map(str, words)), fill)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a run on MRPC with predictions, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return answered(Path("mrpc"))


def problem(run: Path) -> str:
    """Return the problem with the run's MRPC.tsv, which must be the only one."""
    submission = gathered(run, fill=("rest",))
    (line,) = submission.missing
    with pytest.raises(UserError, match=r"^s.zip: not written, 1 of 11 files are missing; run the commands above$"):
        submission.write(Path("s.zip"))
    assert not Path("s.zip").exists() and "\n" not in line
    start, end = f"MRPC.tsv: {run}", "; make it with accelerate launch scripts/predict.py mrpc"
    assert line.startswith(start) and line.endswith(end)
    return line.removeprefix(start).removesuffix(end).removeprefix(": ")


def test_the_answers_to_all_tasks_are_one_zip(tmp_path: Path) -> None:
    tasks = [name for name, task in TASKS.items() if task.glue is not None]
    for task in tasks:
        answered(tmp_path / "runs" / f"{task}-lora", task)
    submission = gathered(tmp_path / "runs")
    assert not submission.missing and not submission.left_out
    path = tmp_path / "new" / "all.zip"
    submission.write(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [file.name for file in SERVER_FILES.values()]
        for file in SERVER_FILES.values():
            there = tmp_path / "runs" / f"{file.task_name}-lora" / "predictions" / file.split / file.name
            assert archive.read(file.name) == there.read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["all.zip"]


def test_the_same_answers_make_the_same_bytes(run: Path, tmp_path: Path) -> None:
    digests = set()
    for name, when in (("a.zip", 0), ("b.zip", 2_000_000_000)):
        for path in run.rglob("*"):
            os.utime(path, (when, when))
        gathered(run, fill=("rest",)).write(tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:  # whenever, and by whomever, they are written
        said = {(entry.date_time, entry.external_attr >> 16, entry.create_system) for entry in archive.infolist()}
    assert said == {((1980, 1, 1, 0, 0, 0), 0o644, 3)}
    answer(run, ServerFile("mrpc", "test", 1725, "1")).joinpath("MRPC.tsv").write_text(SERVER_FILES["MRPC"].filled())
    gathered(run, fill=("rest",)).write(tmp_path / "a.zip")  # in its place
    assert hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest() not in digests


def test_of_several_runs_the_best_one_answers_and_is_named(tmp_path: Path) -> None:
    for seed, score in (("1", 0.7), ("2", 0.9), ("3", 0.9)):
        answered(tmp_path / f"mrpc-{seed}", score=score)
    answered(tmp_path / "cola-1", "cola", score=0.4)
    submission = gathered(tmp_path, fill=("rest",))
    best = tmp_path / "mrpc-2"
    why = ", the best of 3 by accuracy on the validation split (0.9000)"
    assert submission.origins["MRPC.tsv"] == f"{best}{why}"
    assert submission.contents["MRPC.tsv"] == (best / "predictions" / "test" / "MRPC.tsv").read_bytes()
    assert submission.origins["CoLA.tsv"] == str(tmp_path / "cola-1")
    (best / "predictions" / "test" / "MRPC.tsv").rename(tmp_path / "gone.tsv")
    # Not quietly the next best: that would depend on what happens to have been asked.
    (best / "predictions" / "test" / "results.json").unlink()
    (line,) = gathered(tmp_path, fill=("rest",)).missing
    assert line == (f"MRPC.tsv: {best}{why}: missing; make it with accelerate launch scripts/predict.py {best}")


def test_runs_that_were_scored_on_different_examples_are_not_compared(tmp_path: Path) -> None:
    answered(tmp_path / "all")
    data = json.loads((tmp_path / "all" / "run.json").read_text())["data"]
    data["validation"] = data["validation"] | {"fingerprint": "d" * 64, "examples": 50}
    answered(tmp_path / "few", score=0.99, data=data)
    with pytest.raises(UserError) as caught:
        gathered(tmp_path)
    one, other = tmp_path / "all", tmp_path / "few"
    assert str(caught.value) == f"mrpc: {one} and {other} were scored on different validation examples; name one"


def test_what_is_missing_is_said_with_the_command_that_makes_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Path("my mnli"), "mnli")
    submission = gathered(Path("my mnli"))
    predict = "accelerate launch scripts/predict.py 'my mnli'"
    assert [line for line in submission.missing if "mnli" in line] == [
        f"MNLI-m.tsv: my mnli: missing; make it with {predict}",
        f"MNLI-mm.tsv: my mnli: missing; make it with {predict} --split test_mismatched",
        f"AX.tsv: my mnli: missing; make it with {predict} --split ax",
    ]
    train = "accelerate launch scripts/train.py --task_name cola"
    assert submission.missing[0] == f"CoLA.tsv: no run on cola was given; train one with {train}"
    assert len(submission.missing) == 11
    names = "CoLA,SST-2,MRPC,STS-B,QQP,QNLI,RTE,WNLI"
    with pytest.raises(
        UserError, match=rf"^a.zip: not written, 11 of 11 files are missing; .* above, or use --fill {names}$"
    ):
        submission.write(Path("a.zip"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("index\tprediction", "id\tlabel", "line 1: the header is not index<TAB>prediction"),
        ("\n1724\t", "\n1725\t", "line 1726: the index is '1725', not 1724"),
        ("\n3\t", "\n3\t1\n3\t", "1,726 answers where the server wants 1,725"),
    ],
)
def test_answers_that_the_server_would_not_take_are_not_sent(run: Path, old: str, new: str, expected: str) -> None:
    path = run / "predictions" / "test" / "MRPC.tsv"
    path.write_text(path.read_text().replace(old, new))
    assert problem(run) == expected


def test_answers_of_an_earlier_training_are_not_sent(run: Path) -> None:
    file = SERVER_FILES["MRPC"]
    stale = "made before the run was trained again"
    answer(run, file, run_ended="2026-01-01T00:59:59+00:00")
    assert problem(run) == stale
    place = answer(run, file, global_step=40)
    assert problem(run) == stale
    about = json.loads((place / "results.json").read_text()) | {"global_step": 60}
    del about["run_ended"]  # of 0.1.0
    (place / "results.json").write_text(json.dumps(about))
    assert not gathered(run, fill=("rest",)).missing
    for damaged in ("[]", "{"):
        (place / "results.json").write_text(damaged)
        assert problem(run) == "no results.json beside it says which training it is from"


def test_answers_to_another_file_are_not_glue_s(run: Path) -> None:
    place = answer(run, SERVER_FILES["MRPC"], source="mails/test.csv")
    (place / "MRPC.tsv").unlink()
    assert problem(run) == "mrpc/predictions/test has answers to mails/test.csv, not to GLUE's split"
    (place / "MRPC.tsv").mkdir()
    assert problem(run).startswith("cannot be read (")


def test_only_what_nobody_has_answered_is_filled_and_said(run: Path) -> None:
    trained(Path("mnli"), "mnli")
    submission = gathered(run, Path("mnli"), fill=("rest",))
    assert [line.partition(":")[0] for line in submission.missing] == ["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"]
    submission = gathered(run, Path("mnli"), fill=("rest", "AX"))
    assert [line.partition(":")[0] for line in submission.missing] == ["MNLI-m.tsv", "MNLI-mm.tsv"]
    filled = {name: origin for name, origin in submission.origins.items() if "--fill" in origin}
    assert filled == {
        f"{name}.tsv": f"--fill: always {SERVER_FILES[name].constant}" for name in OTHERS if not name.startswith("MNLI")
    }
    with pytest.raises(UserError, match=r"^--fill MRPC: mrpc/.*/MRPC.tsv has a run's answers; leave out the run"):
        gathered(run, fill=("MRPC",))


def test_other_runs_are_left_out_by_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(Path("films"), "--task_name", "rotten_tomatoes")
    make_run(Path("going"), "--task_name", "mrpc", status="running")
    Path("mrpc.csv").write_text("text,label\nso,a\nno,b\n")
    make_run(Path("own"), "--train_file", "mrpc.csv", "--validation_file", "mrpc.csv")
    submission = gathered(Path(), fill=("rest",))
    submission.show(Console())
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "left out: films: rotten_tomatoes is not a GLUE task",
        "left out: going: unfinished: still running, or killed",
        "left out: own: mrpc-file is not a GLUE task",
    ]
    assert [line.split() for line in said[4:7]] == [
        ["CoLA.tsv", "1,063", "--fill:", "always", "1"],
        ["SST-2.tsv", "1,821", "--fill:", "always", "1"],
        ["MRPC.tsv", "1,725", "mrpc"],
    ]


def test_a_file_of_another_kind_is_not_replaced(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    check_place(path)
    gathered(run, fill=("rest",)).write(path)
    check_place(path)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("thesis.tex", "all of it")
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "folder.zip").mkdir()
    for name, message in (
        ("mine.zip", "exists and is not a submission; name another file"),
        ("text.zip", "exists and is not a submission; name another file"),
        ("folder.zip", "is a folder; name a file"),
        ("text.zip/s.zip", f"{tmp_path}/text.zip is a file; name another place"),
    ):
        with pytest.raises(UserError) as caught:
            check_place(tmp_path / name)
        assert str(caught.value) == f"--output_file {tmp_path / name}: {message}"


def test_a_full_disk_leaves_the_earlier_zip(run: Path, small_disk: Any) -> None:
    path = small_disk.folder / "s.zip"
    gathered(run, fill=("rest",)).write(path)
    before = small_disk.contents()
    small_disk.leave(8_000)
    with pytest.raises(
        RunError, match=r"^--output_file .*s.zip: cannot be written \(.*\); free some space, or name another file$"
    ):
        gathered(run, fill=("rest",)).write(path)
    assert small_disk.contents() == before
