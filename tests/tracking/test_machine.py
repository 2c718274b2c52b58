"""What a run ran on: told right, and without secrets."""

from __future__ import annotations

import json
import subprocess

import torch

from peftlib.tracking.machine import environment, git_state, peak_memory
from tests.conftest import ROOT


def test_the_environment_names_versions_machine_and_commit_and_no_secret(monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "s3cr3t")
    run = environment(torch.device("cpu"))
    assert run["versions"]["torch"] == torch.__version__
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


def test_peak_memory_is_in_bytes_and_grows_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    assert before > 50e6  # torch alone takes more
    held = torch.ones(before // 4 + 25_000_000)  # fp32: more than everything before, and 100 MB
    assert peak_memory(torch.device("cpu")) > held.numel() * 4
