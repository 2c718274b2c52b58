"""`scripts/compare.py` as its users start it: on very many made-up runs, and on wrong words."""

from __future__ import annotations

import csv
import re
import resource
from pathlib import Path

import pytest

from peftlib.reporting import runs as reading
from peftlib.reporting.report import work_out
from tests.conftest import ROOT
from tests.launching import run_python, run_script
from tests.reporting.made_up import make_run

SCRIPT = ROOT / "scripts" / "compare.py"
launched = pytest.mark.launch


@launched
def test_a_folder_that_is_not_a_reports_own_is_refused_in_one_line(tmp_path: Path) -> None:
    work = tmp_path / "work"
    run = make_run(work / "run")
    before = sorted(path.name for path in run.iterdir())
    done = run_script(SCRIPT, "run", "--output_dir", "run", cwd=work)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --output_dir run: contains metrics.jsonl, which is not part of a report; name another folder\n"
    )
    assert sorted(path.name for path in run.iterdir()) == before
    assert [path.name for path in work.iterdir()] == ["run"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 runs: two tasks, five methods, two rates, 25 seeds, each with answers, curves and times of its own."""
    place = tmp_path_factory.mktemp("many")
    ways = [("head",), ("bitfit",), ("full",), ("lora", "--lora_r", 8), ("lora", "--lora_r", 32)]
    for number in range(500):
        seed, way, rate, task = number % 25, ways[number // 25 % 5], number // 125 % 2, ("mrpc", "sst2")[number // 250]
        words = ("--task_name", task, "--method", *way, "--learning_rate", (1e-3, 1e-2)[rate])
        make_run(place / f"{number:03d}", *words, seed=seed, error=0.15 + 0.1 * rate)
    return place


@launched
def test_500_runs_in_a_moment(many: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python(SCRIPT, many, "--output_dir", many.parent / "report", cwd=many, OMP_NUM_THREADS="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # The processor's seconds, not the clock's: waiting for other work does not count. 7 to 8 on a core of its own, of
    # which importing takes 3 and drawing 3; a shared or older core takes up to twice as many.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30
    assert re.search(r"LoRA r=32, lr 0.001 +25 +0\.\d{4} ± ", done.stdout)
    # Every pair was worked out in full.
    with (many.parent / "report" / "tables" / "mrpc-pairs.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 20 and all(pair["bootstrap_p"] and pair["t_test_p"] for pair in pairs)
    assert len({pair["effect_size_dz"] for pair in pairs}) == 20 and any(pair["seeds_needed"] for pair in pairs)
    assert done.stdout.splitlines()[-1] == f"report: {many.parent / 'report' / 'index.html'}"


def test_every_file_of_500_runs_is_read_once(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    plain = reading.load_predictions
    monkeypatch.setattr(reading, "load_predictions", lambda folder: read.append(folder) or plain(folder))
    found = reading.find_runs([str(many)])
    report = work_out(found)
    assert len(read) == len(set(read)) == len(found) == 500
    assert [len(section.comparison.runs) for section in report.sections] == [250, 250]
