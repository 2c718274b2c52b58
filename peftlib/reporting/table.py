"""The main table: one row per method, with means and intervals over seeds, baselines and reported scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.filesize import decimal

from peftlib.evaluation.resampling import RESAMPLED, score_of
from peftlib.evaluation.statistics import Interval, mean_interval
from peftlib.reporting.grouping import Comparison
from peftlib.reporting.reference import references
from peftlib.reporting.runs import Run
from peftlib.reporting.variants import Variant
from peftlib.strategies import STRATEGIES

#: Key of `Row.costs` -> (column title, formatter of a mean).
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "train_seconds": ("training s", lambda value: f"{value:,.1f}"),
    "samples_per_second": ("samples/s", lambda value: f"{value:,.0f}"),
    "peak_memory_bytes": ("peak memory MB", lambda value: f"{value / 1e6:,.0f}"),
}


@dataclass(frozen=True)
class Row:
    """One row of a comparison's table.

    Attributes:
        seeds: seeds of its runs; empty for the constant answer, which is not trained.
        metrics: metric -> mean and interval over the seeds.
        costs: key of `COSTS` -> mean and interval over the seeds.
        trainable, ratio, saved_bytes: number of trained parameters, their share of the base model, and the size of
            what was saved.
        baseline: whether it is a baseline, which the other methods have to beat.
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
    """Return the rows: the constant answer, if there are predictions with labels to score it on, then the variants."""
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
    """The baseline that always gives the same answer, scored on the validation split."""
    labels = next((run.answers[1] for run in comparison.runs if run.answers is not None), None)
    if labels is None:
        return None
    title, answer = _most_common(labels)
    names = [name for name in comparison.metrics if name in RESAMPLED]
    always = np.broadcast_to(answer, (1, *labels.shape))
    metrics = {name: mean_interval(score_of(always, labels, name).tolist()) for name in names}
    return Row(title, (), metrics, {}, 0, 0.0, None, "", (), baseline=True)


def _most_common(labels: np.ndarray) -> tuple[str, np.ndarray]:
    """The name of the constant answer, and the answer: the majority class, or for regression the mean score.

    For multi-label tasks, the classes of more than half of the examples; if there are none, the most frequent class,
    since an empty answer would score 0.
    """
    if labels.dtype.kind == "f":
        return "mean score", np.asarray(labels.mean())
    if labels.ndim == 1:
        return "majority class", np.asarray(np.bincount(labels).argmax())
    share = labels.mean(axis=0)
    chosen = share > 0.5 if share.max() > 0.5 else np.arange(len(share)) == share.argmax()
    return "most frequent classes", chosen.astype(labels.dtype)


def without_result(runs: list[Run]) -> list[tuple[str, str, str]]:
    """Return (name, description, problem) of each failed or unfinished run."""
    return [(run.name, _what(run), run.problem) for run in runs if run.problem is not None]


def _what(run: Run) -> str:
    arguments: dict[str, Any] = run.arguments
    if not arguments:
        return "not recorded"
    name = STRATEGIES[run.method].named(arguments) if run.method in STRATEGIES else run.method
    return f"{run.task}, {name}, seed {run.seed}"


def plus_minus(interval: Interval, write: Callable[[float], str] = lambda value: f"{value:z.4f}") -> str:
    """Format as `0.8123 ± 0.0042`; with one seed, the mean alone."""
    if interval.half_width is None:
        return write(interval.mean)
    return f"{write(interval.mean)} ± {write(interval.half_width)}"


def size(count: int | None) -> str:
    """Format a number of bytes, if it is known."""
    return "–" if count is None else decimal(count, precision=2)
