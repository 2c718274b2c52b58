"""The machine of a run is described correctly, and without secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

import peftlib
from peftlib.tracking.machine import Neighbours, environment, git_state, peak_memory
from tests.conftest import ROOT


def test_the_environment_names_versions_machine_and_commit_and_no_secret(monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "s3cr3t")
    run = environment(torch.device("cpu"))
    assert run["versions"]["torch"] == torch.__version__
    assert run["versions"]["peftlib"] == peftlib.__version__
    assert all(run["versions"].values())
    assert (run["machine"]["device_type"], run["machine"]["threads"]) == ("cpu", torch.get_num_threads())
    assert run["machine"]["device"]
    assert "s3cr3t" not in json.dumps(run)
    if run["git"] is not None:
        assert len(run["git"]["commit"]) == 40
        assert run["git"] == git_state(ROOT / "README.md")


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_recorded_and_whether_the_code_was_changed(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / "train.tsv").write_text("data, which nobody tracks")
    assert git_state(tmp_path / "a.py") == {"commit": commit, "changed": False}
    (tmp_path / "a.py").write_text("b")
    assert git_state(tmp_path / "a.py") == {"commit": commit, "changed": True}


def test_the_commit_of_a_project_that_only_holds_the_environment_is_not_recorded(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text(".venv")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "a")
    installed = tmp_path / ".venv" / "record.py"
    installed.parent.mkdir()
    installed.write_text("")
    assert git_state(installed) is None


def test_without_a_checkout_or_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path / "a.py") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(ROOT / "README.md") is None


def times(user: float) -> SimpleNamespace:
    return SimpleNamespace(user=user, system=0.0, nice=0.0, children_user=0.0, children_system=0.0)


class Machine:
    """A fake machine with two cores, whose clock and CPU times a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.own, self.all = 100.0, 5.0, 300.0
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2}, raising=False)
        monkeypatch.setattr(time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(os, "times", lambda: times(self.own))
        monkeypatch.setattr(
            psutil, "cpu_times", lambda percpu: [times(1e6 * self.clock), times(self.all / 2), times(self.all / 2)]
        )

    def goes_on(self, seconds: float, own: float, others: float) -> None:
        self.clock += seconds
        self.own += own
        self.all += own + others


@pytest.mark.parametrize(("own", "others", "busy"), [(4.0, 0.0, 0.0), (2.0, 2.0, 1.0), (4.0, 3.0, 1.5)])
def test_the_work_of_others_on_the_cores_that_one_may_use(
    monkeypatch: pytest.MonkeyPatch, own: float, others: float, busy: float
) -> None:
    machine = Machine(monkeypatch)
    neighbours = Neighbours()
    machine.goes_on(2.0, own, others)
    assert neighbours.busy_cores() == pytest.approx(busy)


def test_a_moment_says_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    neighbours = Neighbours()
    machine.goes_on(0.1, 0.0, 0.2)
    assert neighbours.busy_cores() == 0.0


def test_this_machine_tells_its_own_work_from_that_of_others() -> None:
    """A process beside this one that never rests is a busy core, whatever else the machine does."""
    neighbours = Neighbours()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        end = time.monotonic() + 30
        while neighbours.busy_cores() < 0.1 and time.monotonic() < end:
            time.sleep(0.1)
        assert 0.1 <= neighbours.busy_cores() <= (os.cpu_count() or 1) + 1
    finally:
        other.kill()
        other.wait()


def test_peak_memory_is_in_bytes_and_grows_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    assert before > 50e6  # torch alone takes more
    held = torch.ones(before // 4 + 25_000_000)  # fp32: 100 MB more than all before
    assert peak_memory(torch.device("cpu")) > held.numel() * 4
