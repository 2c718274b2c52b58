"""A model's answers on a split on disk: for comparing runs example by example, for people, and for GLUE's server."""

from __future__ import annotations

import csv
import io
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
from peftlib.files import placed_when_whole, write_json, write_text

if TYPE_CHECKING:  # it imports torch, which whoever reads predictions does without
    from peftlib.evaluation.evaluator import Evaluation

PREDICTIONS = "predictions.safetensors"
RESULTS = "results.json"
#: So many have a column each in the table for people, where one of them is the answer.
_MOST_CLASSES = 100
#: Most classes whose probability is printed.
_MOST_SHOWN = 10


def answers_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What was answered, in the form of the labels: classes, int64, or scores, fp32, shape (examples,).

    Or for each class whether it is one of the example's, int64, shape (examples, classes): it is at a probability of
    more than a half.

    Args:
        logits: shape (examples, classes), or (examples, 1) of scores.
        labels: known or hidden; their type and shape tell which of the three.
    """
    if labels.ndim == 2:
        return (logits > 0).astype(np.int64)
    return logits[:, 0] if labels.dtype.kind == "f" else logits.argmax(axis=-1)


def save_predictions(folder: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Write `predictions.safetensors` into `folder`, which is not yet anybody's to read.

    Args:
        logits: fp32, shape (examples, classes), in the split's order.
        labels: as `EncodedExamples` has them.
    """
    tensors: dict[str, np.ndarray] = {
        "logits": np.ascontiguousarray(logits, np.float32),
        "labels": np.ascontiguousarray(labels, np.float32 if labels.dtype.kind == "f" else np.int64),
    }
    save_file(tensors, folder / PREDICTIONS)


def load_predictions(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits, fp32 (examples, classes), and labels, as `EncodedExamples` has them; None when there are none.

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
    """Where texts come from, whatever the directory that one asks in."""
    return str(Path(source).absolute()) if Path(source).exists() else source


def refuse_other_answers(folder: Path, source: str, fingerprint: str) -> None:
    """Before answers are worked out: newer ones replace those to the same texts or the same file, and nothing else.

    Args:
        source, fingerprint: where these texts come from, and which they are.

    Raises:
        UserError: the folder holds something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        about = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        before, texts = about.get("place", about["source"]), about["fingerprint"]  # of 0.1.0 without a place
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        before = texts = None
    if before not in (source, place_of(source)) and texts != fingerprint:
        what = "files of another kind" if before is None else f"the answers to {before}"
        raise UserError(f"{folder}: holds {what}; name another --output_dir")


def write_answers(
    folder: Path,
    task: Task,
    texts: Sequence[tuple[str, ...]],
    glue_answers: str | None,
    evaluation: Evaluation,
    about: dict[str, Any],
) -> dict[str, float]:
    """Write `results.json`, `predictions.csv` and `predictions.safetensors` into `folder`; they replace older ones.

    Args:
        texts: what was answered, one text or two an example.
        glue_answers: what the file is called that GLUE's server takes where the labels are hidden; None for none.
        about: what else `results.json` says.

    Returns:
        The scores in it.

    Raises:
        RunError: the disk refused.
    """
    scores = {f"eval_{name}": value for name, value in evaluation.metrics.items()}
    counts = {
        "eval_samples": len(evaluation.labels),
        "eval_samples_per_second": len(evaluation.labels) / evaluation.seconds,
    }
    try:
        with placed_when_whole(folder) as temporary:
            save_predictions(temporary, evaluation.logits, evaluation.labels)
            write_text(temporary / "predictions.csv", _table(evaluation, task, texts))
            if not scores and glue_answers is not None:
                write_text(temporary / glue_answers, _for_glue(evaluation, task))
            write_json(temporary / RESULTS, {**scores, **counts, **about})
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own
        raise RunError(f"{folder}: cannot be written ({error}); make room there, or name --output_dir") from error
    return scores


def _table(evaluation: Evaluation, task: Task, texts: Sequence[tuple[str, ...]]) -> str:
    """A row for each example: its place in the split, the class and its probability, and the true one where known.

    Behind them each class's probability, and the text. In regression the score, as it came, and no probability.
    """
    answers = answers_of(evaluation.logits, evaluation.labels).tolist()
    columns: dict[str, Iterable[str]] = {}  # written row by row: a column at a time they would all lie in memory
    classes: dict[str, Iterable[str]] = {}
    if task.regression:
        columns["prediction"] = map(_decimal, answers)
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
    if evaluation.metrics:  # else the labels are hidden
        columns["label"] = map(task.written, evaluation.labels.tolist())
    columns |= classes  # of several classes an example they stand before the label already
    of_text = ("text",) if len(texts[0]) == 1 else ("first text", "second text")
    columns |= {title: map(itemgetter(i), texts) for i, title in enumerate(of_text)}
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(["index", *columns])
    table.writerows([place, *row] for place, row in enumerate(zip(*columns.values(), strict=True)))
    return written.getvalue()


def in_words(evaluation: Evaluation, task: Task) -> dict[str, str]:
    """Describe the first answer: its class or classes and their probabilities, the highest first; or its score."""
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


def _decimal(value: float) -> str:
    return f"{value:.6f}"


def _for_glue(evaluation: Evaluation, task: Task) -> str:
    """Scores within their range, to three decimals, as transformers' run_glue.py writes them."""
    answers = answers_of(evaluation.logits, evaluation.labels)
    classes = task.classes_in_glue()
    if task.score_range is not None:
        written = [f"{score:.3f}" for score in answers.clip(*task.score_range).tolist()]
    else:
        written = [classes[answer] for answer in answers.tolist()]
    return answer_file(written)
