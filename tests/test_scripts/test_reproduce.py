"""`scripts/reproduce.py` as `make reproduce` starts it: a small grid that is really run, its report, its examples."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT, write_glue
from tests.launching import run_script

SCRIPT = ROOT / "scripts" / "reproduce.py"
pytestmark = pytest.mark.launch


class SmallGrid(NamedTuple):
    """`scripts/reproduce.py`, run from a folder that is not the project's: two methods on MRPC, one seed, two updates.

    Attributes:
        work: where it was started.
        runs: the runs' folders, BitFit's first.
    """

    done: subprocess.CompletedProcess[str]
    work: Path
    runs: tuple[Path, Path]


@pytest.fixture(scope="module")
def small_grid(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> SmallGrid:
    place = tmp_path_factory.mktemp("grid")
    work, sweep = place / "work", place / "sweep"
    work.mkdir()
    words = ["--model_name_or_path", tiny_folder(), "--data_dir", write_glue(place / "glue"), "--seeds", 1]
    words += ["--workers", 2, "--sweep_dir", sweep, "--set", "strategy=[{method: bitfit}, {method: lora, lora_r: 8}]"]
    words += ["task_name=[mrpc]", "max_train_steps=2", "eval_steps=1", "mixed_precision='no'"]
    done = run_script(SCRIPT, *words, cwd=work, PYTHONPATH=str(ROOT))
    return SmallGrid(done, work, (sweep / "runs" / "0000", sweep / "runs" / "0001"))


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


def test_its_runs_example_by_example(small_grid, tmp_path):
    done = run_script(ROOT / "scripts" / "compare.py", "--examples", *small_grid.runs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"mrpc: both right \d+, both wrong \d+ of 10\n", done.stdout)
    assert re.search(r"reproduce-\w+/0 right, reproduce-\w+/1 wrong: ", done.stdout)
    assert not (tmp_path / "report").exists()


def test_what_is_wrong_is_said_before_anything_starts(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("mine")
    done = run_script(SCRIPT, "--data_dir", tmp_path / "nowhere", "--output_dir", "report", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "contains mine.txt" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["report"]


def test_a_dry_run_names_the_runs_and_leaves_nothing(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    words = ["--seeds", "1,2", "--dry_run", "--data_dir", write_glue(tmp_path / "glue")]
    words += ["--set", "task_name=[mrpc]", "strategy=[{method: bitfit}, {method: lora, lora_r: 8}]"]
    done = run_script(SCRIPT, *words, cwd=work)
    assert done.returncode == 0, done.stderr
    *runs, number = done.stdout.splitlines()
    assert number == "4 runs" and [run.partition(":")[0] for run in runs] == list("0123")
    assert "--seed=2 --method=lora --lora_r=8" in runs[3]
    assert list(work.iterdir()) == []


def test_a_dry_run_without_the_data_says_on_what_else_it_would_be(tmp_path):
    done = run_script(SCRIPT, "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notice, *runs = done.stdout.splitlines()
    assert notice.startswith("MRPC and SST-2 are not available (") and "which is packaged" in notice
    assert all("--task_name=rotten_tomatoes" in run for run in runs[:-1]) and runs[-1] == "18 runs"
