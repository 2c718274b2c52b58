"""The result on disk: complete or absent, and its numbers under the usual names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

from peftlib.errors import RunError
from peftlib.evaluation.evaluator import Evaluation
from peftlib.evaluation.predictions import load_predictions
from peftlib.strategies.bitfit import BitFit
from peftlib.strategies.full import Full
from peftlib.strategies.parameters import ParameterCount
from peftlib.training.saving import flat_results, save_result
from peftlib.training.state import Progress
from tests.conftest import SmallDisk
from tests.strategies.classifiers import classifier, logits, update

RUN: dict[str, Any] = {
    "arguments": {"method": "bitfit", "task_name": "sst2", "seed": 1},
    "parameters": {"trainable": 10, "total": 100, "trainable_ratio": 0.1},
    "model": {"name": "tiny", "location": "/models/tiny"},
    "labels": ["no", "yes"],
    "data": {"validation": {"examples": 5}},
    "learning_rate": 0.001,
    "steps": 3,
    "effective_batch_size": 4,
    "precision": {"name": "no"},
}
ANSWERS = Evaluation(
    {"accuracy": 0.5, "loss": 0.7}, np.array([[0.25, -1.0], [3.0, 4.0]], np.float32), np.array([0, 0]), seconds=1.0
)


def save(folder: Path, base: Path, strategy: Any = None) -> tuple[torch.Tensor, int]:
    """Save; return the trained logits and the reported size."""
    strategy = strategy or BitFit()
    model, head = classifier(base)
    adapted = strategy.apply(model, head)
    update(adapted)
    tokenizer = AutoTokenizer.from_pretrained(base)
    size = save_result(folder, strategy, adapted, head, tokenizer, RUN, ANSWERS)
    return logits(adapted), size


def test_an_adapter_its_tokenizer_and_its_card(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    expected, size = save(tmp_path, tiny_folder())
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "predictions.safetensors",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert size == (tmp_path / "adapter_model.safetensors").stat().st_size
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert torch.equal(logits(loaded), expected)
    text = "a film, unbelievably good"
    ids = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(tiny_folder())(text)["input_ids"]
    answers = load_predictions(tmp_path)
    assert answers is not None
    assert np.array_equal(answers[0], ANSWERS.logits) and np.array_equal(answers[1], ANSWERS.labels)
    card = (tmp_path / "README.md").read_text()
    assert str(tmp_path) in card, "the card loads the folder that it lies in"
    assert ".saving-" not in card


def test_a_checkpoint(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    _, size = save(tmp_path, tiny_folder(), Full())
    assert size == (tmp_path / "model.safetensors").stat().st_size
    assert (tmp_path / "config.json").is_file()
    assert not list(tmp_path.glob("adapter*"))


@dataclass(frozen=True)
class FailsAfterTheWeights(BitFit):
    def _save(self, model: Any, head: frozenset[str], folder: Path) -> None:
        super()._save(model, head, folder)
        assert (folder / "adapter_model.safetensors").is_file()
        raise OSError("no space left on device")


def test_nothing_is_half_written_when_saving_fails_in_the_middle(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="no space left"):
        save(tmp_path, tiny_folder(), FailsAfterTheWeights())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_earlier_result_as_it_was(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    save(tmp_path, tiny_folder())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunError, match="no space left"):
        save(tmp_path, tiny_folder(), FailsAfterTheWeights())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_wherever_the_disk_is_full_the_earlier_result_stays(
    tiny_folder: Callable[..., Path], tmp_path: Path, small_disk: SmallDisk
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    save(whole, tiny_folder())
    names = {path.name for path in whole.iterdir()}
    needed = sum(path.stat().st_size for path in whole.iterdir())
    earlier = {name: f"old {name}".encode() for name in names}
    for name, content in earlier.items():
        (small_disk.folder / name).write_bytes(content)
    failures = 0
    for room in range(0, needed, needed // 12):
        small_disk.leave(room)
        with pytest.raises(RunError, match=r"could not be written .*; make room there and train again"):
            save(small_disk.folder, tiny_folder())
        failures += 1
        assert {
            path.name: path.read_bytes() for path in small_disk.folder.iterdir() if path.name != ".filler"
        } == earlier
    assert failures >= 12
    (small_disk.folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    small_disk.leave(0)
    with pytest.raises(RunError, match="continue with --resume_from_checkpoint auto"):
        save(small_disk.folder, tiny_folder())
    small_disk.leave(2 * needed)
    save(small_disk.folder, tiny_folder())
    assert all((small_disk.folder / name).read_bytes() == (whole / name).read_bytes() for name in names - {"README.md"})


def test_saving_prints_nothing(
    tiny_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, tiny_folder())
    assert capsys.readouterr().out == ""


def test_the_results_are_flat_and_named_as_usual() -> None:
    progress = Progress(
        epoch=1,
        window=3,
        step=9,
        skipped=2,
        examples=70,
        loss_sum=4.5,
        train_seconds=3.5,
        best={"accuracy": 0.75, "f1": 0.5, "loss": 0.25, "step": 6},
        last={"accuracy": 0.5, "f1": 0.25, "loss": 0.5, "step": 9},
        windows_per_epoch=6,
    )
    evaluation = Evaluation(
        {"accuracy": 0.75, "f1": 0.5, "loss": 0.25}, np.zeros((20, 2)), np.zeros(20, dtype=int), 4.0
    )
    results = flat_results(progress, evaluation, ParameterCount(25, 100), 117_520)
    assert results == {
        "eval_accuracy": 0.75,
        "eval_f1": 0.5,
        "eval_loss": 0.25,
        "last_eval_accuracy": 0.5,
        "last_eval_f1": 0.25,
        "last_eval_loss": 0.5,
        "best_eval_accuracy": 0.75,
        "best_eval_f1": 0.5,
        "best_eval_loss": 0.25,
        "best_eval_step": 6,
        "train_loss": 0.5,
        "train_runtime": 3.5,
        "train_samples_per_second": 20.0,
        "eval_samples": 20,
        "eval_samples_per_second": 5.0,
        "trainable_params": 25,
        "total_params": 100,
        "trainable_ratio": 0.25,
        "saved_bytes": 117_520,
        "global_step": 9,
        "skipped_steps": 2,
        "epoch": 1.5,
    }
    json.dumps(results, allow_nan=False)
