"""`scripts/train.py --dry_run`: it says what the run would be, refuses what the run would, and leaves nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, write_glue
from tests.launching import ends_of, run_script, start_two

pytestmark = pytest.mark.launch

SCRIPT = ROOT / "scripts" / "train.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    """A folder with `model`, `glue`, and `work` to run in, where a finished run with checkpoints lies in `out`."""
    folder = tmp_path_factory.mktemp("dry")
    shutil.copytree(tiny_folder(), folder / "model")
    write_glue(folder / "glue", 37, 11)
    (folder / "work").mkdir()
    done = run_script(SCRIPT, *words(folder, "--num_train_epochs", 2, "--output_dir", "out"), cwd=folder / "work")
    assert done.returncode == 0, done.stderr
    return folder


def words(place: Path, *more: object) -> list[object]:
    given = ["--model_name_or_path", place / "model", "--task_name", "mrpc", "--data_dir", place / "glue"]
    given += ["--per_device_train_batch_size", 4, "--num_cpu_threads", 1, "--checkpointing_steps", 4, *more]
    return [*given, "--eval_steps", 3]


def contents(folder: Path) -> dict[Path, tuple[bytes, float] | None]:
    """Every file below it with its bytes and when it was written, and every folder."""
    return {path: (path.read_bytes(), path.stat().st_mtime) if path.is_file() else None for path in folder.rglob("*")}


def test_it_says_what_the_run_does_and_leaves_nothing(place: Path) -> None:
    record = json.loads((place / "work" / "out" / "run.json").read_text())
    before = contents(place / "work")
    tracked = ("--report_to", "wandb,tensorboard", "--dry_run")
    done = run_script(SCRIPT, *words(place, "--num_train_epochs", 2, *tracked), cwd=place / "work")
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(place / "work") == before
    results, steps = record["results"], record["steps"]
    kept = len(list((place / "work" / "out" / "checkpoints").iterdir()))
    lines = [json.loads(line) for line in (place / "work" / "out" / "metrics.jsonl").read_text().splitlines()]
    evaluations = sum("eval/loss" in line for line in lines)
    assert f"  trainable: {results['trainable_params']:,}\n" in done.stdout
    assert re.search(rf"^all, .* in the head +\d+ +{results['trainable_params']:,}$", done.stdout, flags=re.MULTILINE)
    assert f"  updates: {steps}; 10 an epoch; warm-up over 3\n" in done.stdout
    assert f"  evaluations: {evaluations}, and one of" in done.stdout
    assert f"  checkpoints: {kept} of about " in done.stdout
    for name in ("training", "evaluation", "together"):
        assert re.search(rf"^  {name}: about \d+\.?\d* s \(", done.stdout, flags=re.MULTILINE)
    peak = re.search(r"^  peak memory: ([\d.]+) MB resident$", done.stdout, flags=re.MULTILINE)
    assert peak is not None and float(peak[1]) > 50


def test_of_two_processes_one_speaks_and_a_run_that_goes_on_has_less_to_do(place: Path) -> None:
    both = ["--method", "lora", "--num_train_epochs", 1, "--gradient_accumulation_steps", 2]
    before = contents(place / "work")
    main, other = ends_of(start_two(SCRIPT, *words(place, *both, "--dry_run"), cwd=place / "work"))
    assert (main[0], *other) == (0, 0, "", ""), main
    assert "  updates: 3; 3 an epoch; " in main[1]  # of 4 × 2 × 2 examples
    assert "resident, per process at most\n" in main[1]
    assert main[1].count("together: about") == 1
    onward = ["--num_train_epochs", 3, "--output_dir", "out", "--resume_from_checkpoint", "auto", "--extend_training"]
    done = run_script(SCRIPT, *words(place, *onward, "--dry_run"), cwd=place / "work")
    assert done.returncode == 0, done.stderr
    assert "  resumed: after step 20\n" in done.stdout
    assert "  updates: 10 of 30, the others are done; 10 an epoch; " in done.stdout
    assert contents(place / "work") == before


@pytest.mark.parametrize(
    "more",
    [
        ("--output_dir", "out"),
        ("--output_dir", "../glue"),
        ("--output_dir", "out", "--resume_from_checkpoint", "auto", "--seed", 3),
        ("--data_dir", "nowhere"),
        ("--report_to", "wandbb"),
    ],
)
def test_what_the_run_would_be_refused_for_is_refused_alike(place: Path, more: tuple[object, ...]) -> None:
    before = contents(place / "work")

    def answer(*flags: object) -> subprocess.CompletedProcess[str]:
        return run_script(SCRIPT, *words(place, *more, *flags), cwd=place / "work")

    real, dry = answer(), answer("--dry_run")
    assert dry.returncode == real.returncode == 2
    assert dry.stderr == real.stderr and dry.stderr.startswith("error: ") and dry.stderr.count("\n") == 1
    assert contents(place / "work") == before
