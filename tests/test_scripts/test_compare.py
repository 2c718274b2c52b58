"""`scripts/compare.py` as its users start it: on real runs, on very many made-up ones, and on wrong words."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peftlib.arguments import CompareArguments, parse_compare_arguments
from peftlib.errors import UserError
from peftlib.reporting import runs as reading
from peftlib.reporting.report import work_out
from tests.conftest import ROOT, write_glue
from tests.launching import run_python
from tests.reporting.made_up import make_run

SCRIPT = ROOT / "scripts" / "compare.py"
launched = pytest.mark.launch


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    """A folder `work` with two runs that were really trained."""
    place = tmp_path_factory.mktemp("compare")
    work = place / "work"
    work.mkdir()
    words = ["--model_name_or_path", tiny_folder(), "--task_name", "mrpc", "--data_dir", write_glue(place / "glue")]
    words += ["--max_train_steps", 4, "--eval_steps", 2, "--mixed_precision", "no", "--num_cpu_threads", 1]

    def train(method: str) -> subprocess.CompletedProcess[str]:
        train_script = ROOT / "scripts" / "train.py"
        return run_python(train_script, *words, "--method", method, "--output_dir", method, cwd=work)

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(train, ("bitfit", "lora")):
            assert done.returncode == 0, done.stderr
    return work


@launched
def test_real_runs_in_a_report(trained: Path) -> None:
    done = run_python(SCRIPT, "bitfit", "lo*", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-1] == "report: report/index.html"
    assert any(re.match(r"BitFit +1 +0\.\d{4} ", line) for line in lines)
    rows = {row["method"]: row for row in csv.DictReader((trained / "report" / "tables" / "mrpc.csv").open())}
    assert list(rows) == ["majority class", "BitFit", "LoRA r=16"]
    assert int(rows["BitFit"]["saved_bytes"]) == (trained / "bitfit" / "adapter_model.safetensors").stat().st_size
    # The base model lies in a folder: the plots of the weights are there too.
    plots = {path.name for path in (trained / "report" / "plots").glob("*.png")}
    assert {"mrpc-bias-changes.png", "mrpc-singular-values.png", "mrpc-loss-by-step.png"} <= plots
    assert "bitfit" in (trained / "report" / "index.html").read_text()


@launched
def test_real_runs_example_by_example(trained: Path) -> None:
    done = run_python(SCRIPT, "bitfit", "lora", "--examples", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert re.match(r"mrpc: both right \d+, both wrong \d+ of 10\n", done.stdout)
    assert "bitfit right, lora wrong: " in done.stdout


@launched
def test_a_folder_that_is_not_a_reports_own_is_refused_in_one_line(tmp_path: Path) -> None:
    work = tmp_path / "work"
    run = make_run(work / "run")
    before = sorted(path.name for path in run.iterdir())
    done = run_python(SCRIPT, "run", "--output_dir", "run", cwd=work)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --output_dir run: holds metrics.jsonl, which no report has written; name another folder\n"
    )
    assert sorted(path.name for path in run.iterdir()) == before
    assert [path.name for path in work.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no runs: name their folders"),
        (["run", "--exmples"], "--exmples: no such flag; did you mean --examples?"),
        (["run", "--max_examples", "0"], "--max_examples 0: must be at least 1"),
        (["run", "--max_examples", "few"], "--max_examples: invalid int value: 'few'"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_compare_arguments(words)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_flags_stand_before_and_behind_the_runs() -> None:
    runs, options = parse_compare_arguments(["--examples", "a", "b", "--max-examples", "3"])
    assert runs == ["a", "b"] and options == CompareArguments(examples=True, max_examples=3)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 runs: two tasks, five methods, two rates, 25 seeds."""
    place = tmp_path_factory.mktemp("many")
    ways = [("head",), ("bitfit",), ("full",), ("lora", "--lora_r", 8), ("lora", "--lora_r", 32)]
    first: dict[str, Path] = {}
    for number in range(500):
        seed, way, rate, task = number % 25, ways[number // 25 % 5], number // 125 % 2, ("mrpc", "sst2")[number // 250]
        words = ("--task_name", task, "--method", *way, "--learning_rate", (1e-3, 1e-2)[rate])
        key = f"{task} {way} {rate}"
        if key not in first:
            first[key] = make_run(place / f"{number:03d}", *words, seed=seed, error=0.15 + 0.1 * rate)
        else:  # parsing 500 command lines takes longer than comparing the runs
            folder = shutil.copytree(first[key], place / f"{number:03d}")
            text = (folder / "run.json").read_text()
            (folder / "run.json").write_text(re.sub(r'"seed": \d+', f'"seed": {seed}', text))
    return place


@launched
def test_500_runs_in_a_moment(many: Path) -> None:
    started = time.monotonic()
    done = run_python(SCRIPT, many, "--output_dir", many.parent / "report", cwd=many)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    # 8 s on one busy core, of which importing takes half. The bound is for a machine that does other things too.
    assert seconds < 40
    assert re.search(r"LoRA r=32, lr 0.001 +25 ", done.stdout)


def test_every_file_of_500_runs_is_read_once(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    plain = reading.load_predictions
    monkeypatch.setattr(reading, "load_predictions", lambda folder: read.append(folder) or plain(folder))
    found = reading.find_runs([str(many)])
    report = work_out(found)
    assert len(read) == len(set(read)) == len(found) == 500
    assert [len(section.comparison.runs) for section in report.sections] == [250, 250]
