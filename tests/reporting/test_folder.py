"""The report's folder: a report replaces an earlier one, and touches no other files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from peftlib.errors import RunError, UserError
from peftlib.reporting import folder as folders
from peftlib.reporting import report as reports
from peftlib.reporting.folder import check_folder
from peftlib.reporting.report import Report, work_out, write_report
from peftlib.reporting.runs import read_run
from tests.reporting.made_up import make_run


def report_of(place: Path, *tasks: str) -> Report:
    """Make a report of one run on each task."""
    return work_out([read_run(make_run(place / f"run-{task}", "--task_name", task)) for task in tasks])


def held(folder: Path) -> dict[str, bytes]:
    """Return path -> content of all files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    check_folder(folder)
    write_report(report_of(tmp_path / "a", "mrpc", "sst2"), folder, "first")
    check_folder(folder)
    write_report(report_of(tmp_path / "b", "sst2"), folder, "second")
    assert {path.stem.partition("-")[0] for path in (folder / "plots").iterdir()} == {"sst2"}
    assert "second" in (folder / "report.md").read_text()
    assert sorted(json.loads((folder / ".report.json").read_text())) == sorted(held(folder).keys() - {".report.json"})


def test_a_report_that_is_written_twice_is_the_same(tmp_path: Path) -> None:
    report = report_of(tmp_path / "runs", "mrpc", "sst2")
    for name in ("first", "second"):
        write_report(report, tmp_path / name, "")
    first, second = (tmp_path / name / "report.md" for name in ("first", "second"))
    assert first.read_text() == second.read_text() and "![" in first.read_text()


def hold(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")


OTHERS = [
    "notes.txt",
    "plots/fig1.png",
    "plots/mine.svg",
    "tables/data.csv",
    "tables/deep/a.csv",
    "run.json",
    ".hidden",
]


@pytest.mark.parametrize("name", [*OTHERS, "index.html", "report.md"])
def test_a_folder_of_others_files_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    hold(tmp_path / "paper", name)
    for refuse in (check_folder, lambda folder: write_report(report_of(tmp_path, "mrpc"), folder, "")):
        with pytest.raises(UserError) as caught:
            refuse(tmp_path / "paper")
        assert f"contains {name}, which is not part of a report; name another folder" in str(caught.value)
        assert held(tmp_path / "paper") == {name: b"mine"}


@pytest.mark.parametrize("name", OTHERS)
def test_what_was_put_beside_a_report_keeps_it_from_being_replaced(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "report"
    write_report(report_of(tmp_path, "mrpc"), folder, "")
    hold(folder, name)
    before = held(folder)
    with pytest.raises(UserError, match=re.escape(f"contains {name}, which is not part of a report")):
        check_folder(folder)
    assert held(folder) == before


def test_a_link_to_others_files_is_not_followed(tmp_path: Path) -> None:
    hold(tmp_path / "mine", "fig1.png")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "plots").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="contains plots, which is not part of a report"):
        check_folder(tmp_path / "report")


@pytest.mark.parametrize("text", ["{", "3", '["../mine.txt", "", ".", 4]', "[]"])
def test_a_damaged_list_owns_nothing(tmp_path: Path, text: str) -> None:
    hold(tmp_path, "mine.txt")
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / ".report.json").write_text(text)
    write_report(report_of(tmp_path, "mrpc"), folder, "")
    assert (tmp_path / "mine.txt").read_text() == "mine" and (folder / "index.html").exists()


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_an_interrupted_report_can_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    folder = tmp_path / "report"
    write_report(report_of(tmp_path / "a", "mrpc"), folder, "first")
    copies = iter(range(after + 1))
    plain = shutil.copyfile

    def interrupted(source: Path, target: Path) -> None:
        plain(source, target)
        if next(copies) == after:
            raise KeyboardInterrupt

    second = report_of(tmp_path / "b", "sst2")
    with monkeypatch.context() as patch:
        patch.setattr(folders.shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_report(second, folder, "second")
    assert list(folder.rglob("*.part")) and (folder / "index.html").exists()
    write_report(report_of(tmp_path / "c", "mrpc"), folder, "third")
    assert "third" in (folder / "report.md").read_text() and not list(folder.rglob("*.part"))
    assert not list(folder.rglob("sst2*"))


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    write_report(report_of(tmp_path / "a", "mrpc"), folder, "first")
    before = held(folder)
    monkeypatch.setattr(reports, "facts_of", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(report_of(tmp_path / "b", "sst2"), folder, "second")
    assert held(folder) == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "report")


def test_a_copy_that_a_full_disk_cuts_off_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.shutil, "copyfile", half)
    with pytest.raises(RunError, match="No space"):
        write_report(report_of(tmp_path / "a", "mrpc"), tmp_path / "report", "first")
    assert held(tmp_path / "report").keys() == {".report.json"}
