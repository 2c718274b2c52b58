"""`scripts/reproduce.py` as `make reproduce` starts it: a small grid that is really run, and its report."""

from __future__ import annotations

import csv
import json

import pytest

from tests.conftest import ROOT
from tests.launching import run_python

SCRIPT = ROOT / "scripts" / "reproduce.py"
pytestmark = pytest.mark.launch


def test_a_small_grid_ends_in_a_report(small_grid):
    done, work, (bitfit, _) = small_grid
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "report: report/index.html"
    rows = {row["method"]: row for row in csv.DictReader((work / "report" / "tables" / "mrpc.csv").open())}
    assert list(rows) == ["majority class", "BitFit", "LoRA r=8"]
    assert int(rows["BitFit"]["saved_bytes"]) == (bitfit / "adapter_model.safetensors").stat().st_size
    record = json.loads((bitfit / "run.json").read_text())
    assert float(rows["BitFit"]["f1_mean"]) == record["results"]["best_eval_f1"]
    plots = {path.name for path in (work / "report" / "plots").glob("*.png")}
    assert {"mrpc-bias-changes.png", "mrpc-loss-by-step.png", "mrpc-accuracy-by-time.png"} <= plots


def test_what_is_wrong_is_said_before_anything_starts(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("mine")
    done = run_python(SCRIPT, "--data_dir", tmp_path / "nowhere", "--output_dir", "report", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "holds mine.txt" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["report"]
