"""Made-up runs with the files of a training: records, curves and predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from peftlib.arguments import parse_train_arguments
from peftlib.data.sources import find_task
from peftlib.data.tasks import METRICS_OF_OWN_DATA, MULTI_LABEL
from peftlib.evaluation.metrics import score
from peftlib.evaluation.predictions import save_predictions

EXAMPLES = 200
_TRAINED = {
    "head": 770,
    "ia3": 16_898,
    "ln_tuning": 10_754,
    "bitfit": 26_882,
    "lora": 21_120,
    "peft": 31_362,
    "full": 22_713_986,
}
_METRICS = {
    "mrpc": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
    "sst2": ("accuracy",),
    "rotten_tomatoes": ("accuracy",),
}


def make_run(
    folder: Path,
    *words: object,
    error: float = 0.2,
    status: str = "finished",
    predictions: bool = True,
    seed: int = 42,
    fingerprint: str = "f" * 64,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write a run.

    Args:
        words: flags of train.py, as a user types them.
        error: share of wrong predictions, drawn by the seed; in regression, standard deviation of errors / 5.
        fingerprint: of the validation split.
        changes: entries of `run.json` to replace.
    """
    parsed = parse_train_arguments([*map(str, words), "--seed", str(seed)])
    arguments = parsed.flat()
    task, method = arguments["task_name"], arguments["method"]
    found = find_task(task, parsed.data.own)
    # The examples are the task's, the errors are the run's.
    labels = np.random.default_rng(7).integers(0, 2, EXAMPLES)
    generator = np.random.default_rng([seed, *map(ord, folder.name)])
    wrong = generator.random(EXAMPLES) < error
    answers = np.where(wrong, 1 - labels, labels)
    if task == "stsb":
        labels = np.random.default_rng(7).integers(0, 26, EXAMPLES).astype(np.float32) / 5
        answers = labels + (5 * error * generator.standard_normal(EXAMPLES)).astype(np.float32)
    rate = arguments["learning_rate"] or parsed.strategy.default_learning_rate
    trained = _TRAINED[method] * arguments.get("lora_r", 1)
    record: dict[str, Any] = {
        "status": status,
        "started": f"2026-01-01T00:{seed % 60:02d}:00+00:00",
        "arguments": arguments,
        "model": {"name": arguments["model_name_or_path"], "location": "/models/made-up"},
        "labels": found.labels,
        "problem_type": found.problem_type,
        "data": {
            "train": {"examples": 1000, "fingerprint": "e" * 64, "source": "made up"},
            "validation": {"examples": EXAMPLES, "fingerprint": fingerprint, "source": "made up"},
        },
        "parameters": {"trainable": trained, "total": 22_713_986, "trainable_ratio": trained / 22_713_986},
        "precision": {"name": "no", "reason": "asked for"},
        "learning_rate": rate,
        "effective_batch_size": 16,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "git": {"commit": "0" * 40, "changed": False},
        "machine": {"device": "made-up processor", "device_type": "cpu", "threads": 1},
        "steps": 60,
    }
    folder.mkdir(parents=True)
    if status == "finished":
        scores = _scores(answers, labels, task)
        record |= {"results": _results(scores, trained, generator), "peak_memory_bytes": 900_000_000 + trained * 16}
        if predictions:
            logits = answers[:, None] if task == "stsb" else np.eye(2, dtype=np.float32)[answers]
            save_predictions(folder, logits, labels)
    elif status == "failed":
        record["error"] = "the loss is nan at step 3"
    (folder / "run.json").write_text(json.dumps(record | (changes or {})))
    _write_curve(folder / "metrics.jsonl", 1 - error, generator)
    return folder


def make_run_of_several(folder: Path, *words: object, seed: int = 42, error: float = 0.2) -> Path:
    """Write a multi-label run with three classes, with this share of wrong predictions, drawn by the seed."""
    labels = (np.random.default_rng(7).random((EXAMPLES, 3)) < (0.6, 0.3, 0.1)).astype(np.int64)
    wrong = np.random.default_rng([seed, *map(ord, folder.name)]).random(labels.shape) < error
    answers = np.where(wrong, 1 - labels, labels)
    mails = folder.parent / "mails.json"
    mails.write_text(json.dumps([{"text": f"mail {i}", "label": [list("abc")[j] for j in range(3) if row[j]]}
                                 for i, row in enumerate(labels.tolist())]))  # fmt: skip
    words = ("--train_file", mails, "--validation_file", mails, *words)
    make_run(folder, *words, seed=seed, predictions=False)
    save_predictions(folder, np.where(answers > 0, 2.0, -2.0), labels)
    record = json.loads((folder / "run.json").read_text())
    scores = score(METRICS_OF_OWN_DATA[MULTI_LABEL], answers, labels)
    record["results"] |= {f"best_eval_{name}": value for name, value in scores.items()}
    del record["results"]["best_eval_accuracy"]
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def _scores(answers: np.ndarray, labels: np.ndarray, task: str) -> dict[str, float]:
    if task == "stsb":
        return score(_METRICS[task], answers, labels)
    hits, errors = ((answers == 1) & (labels == 1)).sum(), (answers != labels).sum()
    scores = {"accuracy": float((answers == labels).mean()), "f1": float(2 * hits / (2 * hits + errors))}
    return {name: scores[name] for name in _METRICS.get(task, ("accuracy",))}


def _results(scores: dict[str, float], trained: int, generator: np.random.Generator) -> dict[str, Any]:
    seconds = 20 + trained / 1e6 + generator.random()
    return {
        **{f"eval_{name}": value for name, value in scores.items()},
        **{f"best_eval_{name}": value for name, value in scores.items()},
        "best_eval_loss": 0.5,
        "best_eval_step": 60,
        "train_runtime": seconds,
        "train_samples_per_second": 960 / seconds,
        "trainable_params": trained,
        "saved_bytes": trained * 4 + 2000,
    }


def _write_curve(path: Path, accuracy: float, generator: np.random.Generator) -> None:
    lines = []
    for step in range(1, 61):
        values = {"step": step, "train/loss": 0.7 - step / 200}
        if step % 10 == 0:
            noise = 0.01 * generator.standard_normal()
            values |= {"eval/loss": 0.7 - step / 200 + noise, "eval/accuracy": accuracy * step / 60 + noise}
        lines.append(json.dumps(values))
    path.write_text("\n".join(lines) + "\n")
