"""`scripts/submit.py` on what `scripts/train.py` and `scripts/predict.py` have left: MNLI and GLUE's diagnostics."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from peftlib.data.glue_server import SERVER_FILES
from tests.conftest import ROOT
from tests.launching import run_script

pytestmark = pytest.mark.launch

TRAIN, PREDICT, SUBMIT = (ROOT / "scripts" / f"{name}.py" for name in ("train", "predict", "submit"))


def write_mnli(folder: Path) -> Path:
    """A small MNLI in GLUE's layout, with as many diagnostics as there are, and half a test split."""
    classes = ("entailment", "neutral", "contradiction")
    for path, count in (
        ("MNLI/train", 48),
        ("MNLI/dev_matched", 12),
        ("MNLI/test_matched", 20),
        ("diagnostic/diagnostic", 1104),
    ):
        labelled = "test" not in path and "diag" not in path
        header = "index\tsentence1\tsentence2" + "\tgold_label" * labelled
        rows = [f"{i}\tIt rains .\tIt is {classes[i % 3]} ." + f"\t{classes[i % 3]}" * labelled for i in range(count)]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{path}.tsv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_from_training_to_the_zip(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    place = tmp_path / "work"
    glue = write_mnli(place / "glue")
    words = ["--model_name_or_path", tiny_folder(), "--task_name", "mnli", "--data_dir", glue, "--method", "bitfit"]
    words += ["--max_train_steps", 2, "--mixed_precision", "no", "--output_dir", "run", "--num_cpu_threads", 1]
    done = run_script(TRAIN, *words, cwd=place)
    assert done.returncode == 0, done.stderr
    for split in ("ax", "test"):
        done = run_script(PREDICT, "run", "--split", split, "--num_cpu_threads", 1, cwd=place)
        assert done.returncode == 0, done.stderr
    answers = place / "run" / "predictions" / "ax"
    content = (answers / "AX.tsv").read_bytes()
    assert SERVER_FILES["AX"].problem(content) is None
    about, record = (json.loads(path.read_text()) for path in (answers / "results.json", place / "run" / "run.json"))
    assert about["run_ended"] == record["ended"] and about["run_ended"]

    done = run_script(SUBMIT, "run", "--fill", "rest", cwd=place)
    assert done.returncode == 2
    assert done.stderr == "error: submission.zip: not written, 2 of 11 files are missing; run the commands above\n"
    predict = "make it with accelerate launch scripts/predict.py run"
    assert done.stdout.splitlines()[-2:] == [
        f"MNLI-m.tsv: run: 20 answers where the server wants 9,796; {predict}",
        f"MNLI-mm.tsv: run: missing; {predict} --split test_mismatched",
    ]
    assert not (place / "submission.zip").exists()

    for name in ("MNLI-m", "MNLI-mm"):  # as a whole MNLI would leave them
        file = SERVER_FILES[name]
        folder = place / "run" / "predictions" / file.split
        folder.mkdir(exist_ok=True)
        (folder / file.name).write_text(file.filled())
        (folder / "results.json").write_text(json.dumps(about))
    done = run_script(SUBMIT, "ru*", "--fill", "rest", "--output_file", "new/all.zip", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "AX.tsv       1,104    run",
        "for https://gluebenchmark.com/submit: new/all.zip",
    ]
    with zipfile.ZipFile(place / "new" / "all.zip") as archive:
        assert archive.namelist() == [file.name for file in SERVER_FILES.values()]
        assert archive.read("AX.tsv") == content
