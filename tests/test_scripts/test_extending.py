"""The code of docs/extending.md, put into a copy of the project as the page says, and used."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

from tests.conftest import ROOT
from tests.launching import run_python

pytestmark = pytest.mark.launch


def extend(project: Path) -> None:
    """Make the page's changes: a file from each block of Python, changed lines from each block of differences."""
    blocks = re.findall(r"```(python|diff)\n# (\S+)\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    assert [kind for kind, *_ in blocks] == ["python", "diff", "diff", "diff"]
    for kind, name, block in blocks:
        path = project / name
        if kind == "python":
            path.write_text(block)
            continue
        text = path.read_text()
        for hunk in block.split("@@\n")[1:]:
            lines = hunk.splitlines()
            before, after = ("\n".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
            assert text.count(f"\n{before}\n") == 1, before
            text = text.replace(f"\n{before}\n", f"\n{after}\n")
        path.write_text(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, beside an extended copy of the project and some texts in three classes."""
    place = tmp_path_factory.mktemp("extended")
    for name in ("peftlib", "scripts"):
        shutil.copytree(ROOT / name, place / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
    extend(place / "project")
    (place / "work").mkdir()
    rows = [("abc"[i % 3], f"{('hello', 'buy', 'minister')[i % 3]} {i}") for i in range(48)]
    with (place / "work" / "mails.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("label", "text"), *rows])
    return place


def train(place: Path, model: Path, *words: object) -> subprocess.CompletedProcess[str]:
    flags = ["--model_name_or_path", model, "--train_file", "mails.csv", "--validation_file", "mails.csv"]
    flags += ["--mixed_precision", "bf16", "--num_cpu_threads", 1, "--num_train_epochs", 2, "--eval_steps", 2, *words]
    script = place / "project" / "scripts" / "train.py"
    return run_python(script, *flags, cwd=place / "work", PYTHONPATH=str(place / "project"))


def test_the_page_s_method_and_metric_work_like_those_that_are_here(
    place: Path, tiny_folder: Callable[..., Path]
) -> None:
    """It trains the biases that it says, and it alone; the metric chooses the best state; a checkpoint resumes."""
    model = tiny_folder()
    words = ["--method", "top_biases", "--bias_layers", 1, "--metric_for_best_model", "balanced_accuracy"]
    words += ["--checkpointing_steps", 3]
    done = train(place, model, *words, "--output_dir", "whole")
    assert done.returncode == 0, done.stderr
    whole = place / "work" / "whole"
    results = json.loads((whole / "all_results.json").read_text())
    assert 0 < results["best_eval_balanced_accuracy"] <= 1
    assert json.loads((whole / "run.json").read_text())["arguments"]["bias_layers"] == 1

    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=3).state_dict()
    trained = AutoPeftModelForSequenceClassification.from_pretrained(whole, num_labels=3).merge_and_unload()
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, base[name])}
    last = f".layer.{trained.config.num_hidden_layers - 1}."
    assert len(changed) > 5
    assert all(name.startswith("classifier") or (last in name and name.endswith(".bias")) for name in changed)

    shutil.copytree(whole / "checkpoints" / "step_00000003", place / "work" / "part" / "checkpoints" / "step_00000003")
    shutil.copy(whole / "run.json", place / "work" / "part")
    done = train(place, model, *words, "--output_dir", "part", "--resume_from_checkpoint", "auto")
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "work" / "part" / "run.json").read_text())["resumed_at_step"] == 3
    adapters = [(folder / "adapter_model.safetensors").read_bytes() for folder in (whole, place / "work" / "part")]
    assert adapters[0] == adapters[1]
