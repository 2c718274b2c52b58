"""`scripts/reproduce.py` as `make reproduce` starts it: a small grid that is really run, and its report."""

from __future__ import annotations

import csv

import pytest

from tests.conftest import ROOT, write_glue
from tests.launching import run_python

SCRIPT = ROOT / "scripts" / "reproduce.py"
pytestmark = pytest.mark.launch


def test_a_small_grid_ends_in_a_report(tmp_path, tiny_folder):
    work = tmp_path / "work"
    work.mkdir()
    (work / "scripts").symlink_to(ROOT / "scripts")  # a sweep names its program from the project's folder
    words = ["--model_name_or_path", tiny_folder(), "--data_dir", write_glue(tmp_path / "glue"), "--seeds", 1]
    # The cheapest of the grid's methods, on one of its tasks.
    words += ["--set", "strategy=[{method: head}]", "task_name=[mrpc]", "max_train_steps=2", "num_cpu_threads=1"]
    done = run_python(SCRIPT, *words, "mixed_precision='no'", cwd=work, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "report: report/index.html"
    rows = list(csv.DictReader((work / "report" / "tables" / "mrpc.csv").open()))
    assert [row["method"] for row in rows] == ["majority class", "Head"]
    (folder,) = (work / "outputs" / "sweeps").iterdir()
    assert folder.name == f"reproduce-{tiny_folder().name}-mrpc-sst2"


def test_what_is_wrong_is_said_before_anything_starts(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("mine")
    done = run_python(SCRIPT, "--data_dir", tmp_path / "nowhere", "--output_dir", "report", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "holds mine.txt" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["report"]
