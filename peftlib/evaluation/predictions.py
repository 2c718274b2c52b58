"""Predictions on disk: for comparing runs example by example, for people, and for GLUE's server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import expit, softmax

from peftlib.data.glue_server import answer_file
from peftlib.data.tasks import Task
from peftlib.errors import RunError, UserError
from peftlib.evaluation.by_class import ClassScore, confusion_csv, scores_by_class, scores_csv
from peftlib.files import placed_when_whole, to_csv, write_json, write_text
from peftlib.run_files import PREDICTIONS

if TYPE_CHECKING:  # imports torch, which readers of predictions do not need
    from peftlib.evaluation.evaluator import Evaluation

ABOUT = "results.json"
#: Up to this many classes get a probability column each in `predictions.csv` (in multi-label tasks, all do), and a
#: confusion matrix.
_MOST_CLASSES = 100
#: Number of class probabilities to print at most.
_MOST_SHOWN = 10


def answers_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Turn logits into predictions in the form of the labels.

    Args:
        logits: shape (examples, classes), or (examples, 1) in regression.
        labels: known or hidden; their dtype and shape tell the kind of task.

    Returns:
        Classes, int64, shape (examples,); in regression scores, fp32, shape (examples,); in multi-label tasks 0 or 1
        per class, int64, shape (examples, classes), with 1 for a probability above one half.
    """
    if labels.ndim == 2:
        return (logits > 0).astype(np.int64)
    return logits[:, 0] if labels.dtype.kind == "f" else logits.argmax(axis=-1)


def save_predictions(folder: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Write `predictions.safetensors` into `folder`, which nobody may be reading yet.

    Args:
        logits: fp32, shape (examples, classes), in the split's order.
        labels: as in `EncodedExamples`.
    """
    tensors: dict[str, np.ndarray] = {
        "logits": np.ascontiguousarray(logits, np.float32),
        "labels": np.ascontiguousarray(labels, np.float32 if labels.dtype.kind == "f" else np.int64),
    }
    save_file(tensors, folder / PREDICTIONS)


def load_predictions(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Load logits, fp32 (examples, classes), and labels, as in `EncodedExamples`; None if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / PREDICTIONS
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        return tensors["logits"], tensors["labels"]
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run it again, or remove the file") from error


def place_of(source: str) -> str:
    """Return the source of texts in a form that does not depend on the working directory."""
    return str(Path(source).absolute()) if Path(source).exists() else source


def refuse_other_answers(folder: Path, run: Path, ended: str | None, source: str, fingerprint: str) -> None:
    """Refuse a folder that holds anything but a run's predictions for the same texts or the same source.

    Args:
        run, ended: the run's folder, and when it ended: it may have been moved since, or trained again.
        source, fingerprint: where the texts come from, and a hash of them.

    Raises:
        UserError: the folder holds something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        before, texts = about.get("place", about["source"]), about["fingerprint"]  # 0.1.0 wrote no place
        whose = about.get("run")
        # Up to 0.6.0 the folder was written as typed: relative to nobody knows where, it is no evidence.
        other = whose and Path(whose) != run.absolute() and about.get("run_ended") != ended
        other = other and run.absolute() not in folder.absolute().parents  # inside the run's folder they are its own
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        before = texts = whose = other = None
    if other:
        raise UserError(f"{folder}: holds the predictions of {whose}; name another --output_dir")
    if before not in (source, place_of(source)) and texts != fingerprint:
        what = "files of another kind" if before is None else f"the predictions for {before}"
        raise UserError(f"{folder}: holds {what}; name another --output_dir")


def write_answers(
    folder: Path,
    task: Task,
    texts: Sequence[tuple[str, ...]],
    glue_answers: str | None,
    evaluation: Evaluation,
    about: dict[str, Any],
) -> tuple[dict[str, float], list[ClassScore]]:
    """Write `results.json`, `predictions.csv` and `predictions.safetensors` into `folder`; they replace older ones.

    In classification with known labels also `classes.csv`, and, for one class per text, `confusion.csv`.

    Args:
        texts: the inputs, one or two texts per example.
        glue_answers: name of the file for GLUE's server, written if the labels are hidden; None writes none.
        about: further content of `results.json`.

    Returns:
        The scores in `results.json`, and those of single classes, if there are any (see `score_classes`).

    Raises:
        RunError: a file could not be written.
    """
    scores = {f"eval_{name}": value for name, value in evaluation.metrics.items()}
    counts = {
        "eval_samples": len(evaluation.labels),
        "eval_samples_per_second": len(evaluation.labels) / evaluation.seconds,
    }
    classes = score_classes(evaluation, task)
    tables = {"predictions.csv": _table(evaluation, task, texts)} | _by_class(evaluation, classes, task)
    if not scores and glue_answers is not None:
        tables[glue_answers] = _for_glue(evaluation, task)
    try:
        with placed_when_whole(folder) as temporary:
            save_predictions(temporary, evaluation.logits, evaluation.labels)
            for name, table in tables.items():
                write_text(temporary / name, table)
            write_json(temporary / ABOUT, {**scores, **counts, **about})
        sometimes = {"classes.csv", "confusion.csv"} | ({glue_answers} if glue_answers is not None else set())
        for name in sometimes - tables.keys():
            (folder / name).unlink(missing_ok=True)  # of a file that had labels then, or had none
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise RunError(f"{folder}: cannot be written ({error}); make room there, or name --output_dir") from error
    return scores, classes


def score_classes(evaluation: Evaluation, task: Task) -> list[ClassScore]:
    """Score each class on its own; empty in regression, and if the labels are hidden."""
    if task.regression or not evaluation.metrics:
        return []
    return scores_by_class(answers_of(evaluation.logits, evaluation.labels), evaluation.labels, task.labels)


def _by_class(evaluation: Evaluation, classes: Sequence[ClassScore], task: Task) -> dict[str, str]:
    """Format the scores of single classes, and, for one class per text, which are taken for which: file -> content."""
    if not classes:
        return {}
    files = {"classes.csv": scores_csv(classes)}
    if not task.multi_label and len(task.labels) <= _MOST_CLASSES:
        answers = answers_of(evaluation.logits, evaluation.labels)
        files["confusion.csv"] = confusion_csv(answers, evaluation.labels, task.labels)
    return files


def _table(evaluation: Evaluation, task: Task, texts: Sequence[tuple[str, ...]]) -> str:
    """Format a row per example: its index in the split, the class and its probability, and the label if known.

    After these come each class's probability, and the text. In regression the raw score, without probabilities.
    """
    answers = answers_of(evaluation.logits, evaluation.labels).tolist()
    columns: dict[str, Iterable[str]] = {}  # iterators, so that rows are written without holding all columns in memory
    classes: dict[str, Iterable[str]] = {}
    if task.regression:
        columns["prediction"] = map(_shortest, answers)
    else:
        columns["prediction"] = map(task.written, answers)
        logits = evaluation.logits.astype(np.float64)
        shares = expit(logits) if task.multi_label else softmax(logits, axis=-1)
        if task.multi_label or len(task.labels) <= _MOST_CLASSES:
            classes = {f"probability of {name}": map(_decimal, shares[:, i]) for i, name in enumerate(task.labels)}
        if task.multi_label:
            columns |= classes
        else:
            columns["probability"] = map(_decimal, shares.max(axis=-1))
    if evaluation.metrics:  # empty if the labels are hidden
        columns["label"] = map(_shortest if task.regression else task.written, evaluation.labels.tolist())
    columns |= classes  # in multi-label tasks they are in already, before the label
    titles = ("text",) if len(texts[0]) == 1 else ("first text", "second text")
    columns |= {title: map(itemgetter(i), texts) for i, title in enumerate(titles)}
    rows = ([place, *row] for place, row in enumerate(zip(*columns.values(), strict=True)))
    return to_csv(itertools.chain([["index", *columns]], rows))


def in_words(evaluation: Evaluation, task: Task) -> dict[str, str]:
    """Describe the first prediction: its class or classes and the highest probabilities, in order; or its score."""
    answer, logits = answers_of(evaluation.logits, evaluation.labels).tolist()[0], evaluation.logits[0]
    if task.regression:
        return {"score": f"{answer:.4f}"}
    shares = expit(logits) if task.multi_label else softmax(logits.astype(np.float64))
    ordered = sorted(zip(shares.tolist(), task.labels, strict=True), reverse=True)[:_MOST_SHOWN]
    title = "classes" if task.multi_label else "class"
    return {
        title: task.written(answer) or "none",
        **{f"probability of {name}": f"{share:.4f}" for share, name in ordered},
    }


def _shortest(score: float) -> str:
    """Write a score with as many digits as it takes to read the same fp32 number again."""
    return str(np.float32(score))


def _decimal(value: float) -> str:
    return f"{value:.6f}"


def _for_glue(evaluation: Evaluation, task: Task) -> str:
    """Format answers for GLUE's server; scores are clipped to their range, with three decimals, as in run_glue.py."""
    answers = answers_of(evaluation.logits, evaluation.labels)
    classes = task.classes_in_glue()
    if task.score_range is not None:
        written = [f"{score:.3f}" for score in answers.clip(*task.score_range).tolist()]
    else:
        written = [classes[answer] for answer in answers.tolist()]
    return answer_file(written)
