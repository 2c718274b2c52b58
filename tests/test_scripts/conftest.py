"""What several of the scripts' tests stand on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT, write_glue
from tests.launching import run_python


class SmallGrid(NamedTuple):
    """`scripts/reproduce.py`, run from a folder that is not the project's: two methods on MRPC, one seed, two updates.

    Attributes:
        work: where it was started.
        runs: the runs' folders, BitFit's first.
    """

    done: subprocess.CompletedProcess[str]
    work: Path
    runs: tuple[Path, Path]


@pytest.fixture(scope="session")
def small_grid(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> SmallGrid:
    place = tmp_path_factory.mktemp("grid")
    work, sweep = place / "work", place / "sweep"
    work.mkdir()
    words = ["--model_name_or_path", tiny_folder(), "--data_dir", write_glue(place / "glue"), "--seeds", 1]
    words += ["--workers", 2, "--sweep_dir", sweep, "--set", "strategy=[{method: bitfit}, {method: lora, lora_r: 8}]"]
    words += ["task_name=[mrpc]", "max_train_steps=2", "eval_steps=1", "mixed_precision='no'"]
    done = run_python(ROOT / "scripts" / "reproduce.py", *words, cwd=work, PYTHONPATH=str(ROOT))
    return SmallGrid(done, work, (sweep / "runs" / "0000", sweep / "runs" / "0001"))
