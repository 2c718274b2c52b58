"""The table: one row per method, means over seeds with their intervals, baselines, and what others have reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftlib.evaluation.resampling import RESAMPLED, score_of
from peftlib.evaluation.statistics import Interval, mean_interval
from peftlib.files import bytes_in_words
from peftlib.reporting.grouping import Comparison
from peftlib.reporting.reference import references
from peftlib.reporting.runs import Run
from peftlib.reporting.variants import Variant
from peftlib.strategies import STRATEGIES

#: A row's field -> the column's title, and how a mean is written.
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "train_seconds": ("training s", lambda value: f"{value:,.1f}"),
    "samples_per_second": ("samples/s", lambda value: f"{value:,.0f}"),
    "peak_memory_bytes": ("peak memory MB", lambda value: f"{value / 1e6:,.0f}"),
}


@dataclass(frozen=True)
class Row:
    """One line of a comparison's table.

    Attributes:
        seeds: of the runs that it stands for; empty for an answer that is always the same, which nobody trains.
        metrics: metric -> its mean over the seeds.
        costs: a key of `COSTS` -> its mean over the seeds.
        trainable, ratio, saved_bytes: parameters, their share of the base model, and the size of what was saved.
        baseline: what the other methods have to beat.
    """

    label: str
    seeds: tuple[int, ...]
    metrics: dict[str, Interval]
    costs: dict[str, Interval]
    trainable: int
    ratio: float
    saved_bytes: int | None
    seed_report: str
    published: tuple[tuple[str, str, str], ...]  # (model, value, source)
    baseline: bool = False


def rows(comparison: Comparison) -> list[Row]:
    """An answer that is always the same, where predictions tell which, then the variants in order."""
    constant = _constant(comparison)
    return [*([constant] if constant else []), *(_row(comparison, variant) for variant in comparison.variants)]


def _row(comparison: Comparison, variant: Variant) -> Row:
    first = variant.runs[0]
    found = references(comparison.task, variant.method, variant.flags.get("lora_r"))
    return Row(
        label=variant.label,
        seeds=tuple(run.seed for run in variant.runs),
        metrics={metric: mean_interval(variant.scores(metric)) for metric in comparison.metrics},
        costs={
            "train_seconds": mean_interval([run.results["train_runtime"] for run in variant.runs]),
            "samples_per_second": mean_interval([run.results["train_samples_per_second"] for run in variant.runs]),
            "peak_memory_bytes": mean_interval([run.record["peak_memory_bytes"] for run in variant.runs]),
        },
        trainable=variant.trainable,
        ratio=first.record["parameters"]["trainable_ratio"],
        saved_bytes=first.results.get("saved_bytes"),
        seed_report="; ".join(reference.value for reference in found if reference.own),
        published=tuple((entry.model, entry.value, entry.source) for entry in found if not entry.own),
        baseline=variant.method == "head",
    )


def _constant(comparison: Comparison) -> Row | None:
    """What an answer that is always the same scores on the validation split."""
    labels = next((run.answers[1] for run in comparison.runs if run.answers is not None), None)
    if labels is None:
        return None
    title, answer = _most_common(labels)
    names = [name for name in comparison.metrics if name in RESAMPLED]
    always = np.broadcast_to(answer, (1, *labels.shape))
    metrics = {name: mean_interval(score_of(always, labels, name).tolist()) for name in names}
    return Row(title, (), metrics, {}, 0, 0.0, None, "", (), baseline=True)


def _most_common(labels: np.ndarray) -> tuple[str, np.ndarray]:
    """The answer that there is most of, and what it is called.

    Where an example may have several classes, those of more than half of the examples; or the most frequent one, for an
    answer of none would score nothing.
    """
    if labels.dtype.kind == "f":
        return "mean score", np.asarray(labels.mean())
    if labels.ndim == 1:
        return "majority class", np.asarray(np.bincount(labels).argmax())
    share = labels.mean(axis=0)
    chosen = share > 0.5 if share.max() > 0.5 else np.arange(len(share)) == share.argmax()
    return "most frequent classes", chosen.astype(labels.dtype)


def without_result(runs: list[Run]) -> list[tuple[str, str, str]]:
    """(name, what it was, why it does not count) of failed and unfinished runs."""
    return [(run.name, _what(run), run.problem) for run in runs if run.problem is not None]


def _what(run: Run) -> str:
    arguments: dict[str, Any] = run.arguments
    if not arguments:
        return "not recorded"
    name = STRATEGIES[run.method].named(arguments) if run.method in STRATEGIES else run.method
    return f"{run.task}, {name}, seed {run.seed}"


def plus_minus(interval: Interval, write: Callable[[float], str] = lambda value: f"{value:.4f}") -> str:
    """`0.8123 ± 0.0042`; with one seed the number alone."""
    if interval.half_width is None:
        return write(interval.mean)
    return f"{write(interval.mean)} ± {write(interval.half_width)}"


def size(count: int | None) -> str:
    """Bytes in words, where they are known."""
    return "–" if count is None else bytes_in_words(count)
