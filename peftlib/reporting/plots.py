"""Plots of a comparison's scores. A plot without data is left out, and a sentence says what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullFormatter

from peftlib.evaluation.statistics import mean_interval
from peftlib.reporting.figures import Plot, legend_below, look, new_figure, styled, write_figure
from peftlib.reporting.grouping import Comparison
from peftlib.reporting.table import Row
from peftlib.reporting.variants import Variant, plain_number

#: Name -> (axis label, whether the axis is logarithmic, value of a row).
_COSTS: dict[str, tuple[str, bool, Callable[[Row], float]]] = {
    "parameters": ("trained parameters", True, lambda row: row.trainable),
    "time": ("training time (s)", False, lambda row: row.costs["train_seconds"].mean),
    "memory": ("peak memory (MB)", False, lambda row: row.costs["peak_memory_bytes"].mean / 1e6),
}
#: The axis extends this far beyond a score's range, so that a marker at its end is not cut off.
_MARGIN = 0.02
#: At least this share of a logarithmic axis, one in so many, lies between two ticks.
_TICKS = 6
#: Characters from which the label of a tick is rounded: 0.00125 is written in full.
_LONG = 8
#: Lower bounds of scores; all others are at least 0.
_LOWEST = {"matthews_correlation": -1.0, "pearson": -1.0, "spearmanr": -1.0, "r2": -math.inf}


class NoData(Exception):
    """There is no data for a plot; the message says why, as a sentence."""


def draw_curve(comparison: Comparison, key: str, folder: Path, slug: str) -> Plot:
    """Draw evaluation loss or metric against steps: the mean over seeds, in a band from the lowest to the highest.

    Args:
        key: as in `metrics.jsonl`, such as "eval/loss".

    Raises:
        NoData: no run was evaluated twice.
    """
    name = key.removeprefix("eval/")
    figure, axes = new_figure()
    drawn, cut = 0, False
    for index, variant in enumerate(comparison.contenders()):
        steps, values = _common_steps(variant, key)
        if len(steps) < 2:
            continue
        drawn, cut = drawn + 1, cut or steps[-1] < max(run.curve[-1]["step"] for run in variant.runs)
        style = look(index)
        axes.plot(steps, values.mean(axis=0), label=variant.label, markevery=max(1, len(steps) // 8), **style)
        if len(values) > 1:
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.12, lw=0)
    if not drawn:
        raise NoData(f"Evaluation {name} against steps: no run was evaluated twice.")
    axes.set(xlabel="optimizer updates", ylabel=f"evaluation {name}")
    legend_below(figure, axes)
    caption = "Lines: mean over seeds. Bands: from the lowest to the highest seed."
    if cut:
        caption += " A line ends where the first of its seeds does."
    return write_figure(figure, folder, f"{slug}-{name}-by-step", f"Evaluation {name} by update", caption)


def draw_pareto(comparison: Comparison, rows: list[Row], cost: str, folder: Path, slug: str) -> Plot:
    """Draw the metric against a cost, with the Pareto front.

    Raises:
        NoData: there is one method only.
    """
    label, logarithmic, value = _COSTS[cost]
    metric = comparison.metrics[0]
    shown = {variant.label: index for index, variant in enumerate(comparison.contenders())}
    points = [(row, value(row)) for row in rows if row.label in shown]
    if len(points) < 2:
        raise NoData(f"{metric.capitalize()} against {label}: there is only one method.")
    figure, axes = new_figure()
    for row, x in points:
        interval = row.metrics[metric]
        style = look(shown[row.label]) | {"linestyle": "none"}
        axes.errorbar(x, interval.mean, yerr=interval.half_width, capsize=3, elinewidth=1, label=row.label, **style)
    front = pareto_front([(x, row.metrics[metric].mean) for row, x in points])
    if len(front) > 1:  # with one point there is no line
        axes.step(*zip(*front, strict=True), where="post", color="#999999", lw=1, zorder=0, label="Pareto front")
    axes.set(xlabel=label, ylabel=metric, ylim=_possible(axes, metric))
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
    legend_below(figure, axes)
    caption = (
        f"Means with 95 % intervals over seeds. On the front, no method shown has a higher {metric} at a lower cost."
    )
    return write_figure(figure, folder, f"{slug}-{metric}-by-{cost}", f"{metric.capitalize()} by {label}", caption)


def draw_rank(comparison: Comparison, folder: Path, slug: str) -> Plot:
    """Draw the metric against LoRA's rank, all other flags being equal.

    Raises:
        NoData: there are no two ranks.
    """
    families: dict[str, list[Variant]] = {}
    for variant in comparison.contenders(most=len(comparison.variants)):
        if "lora_r" in variant.flags:
            others = {name: value for name, value in variant.flags.items() if name != "lora_r"}
            families.setdefault(f"{variant.method} {sorted(others.items())}", []).append(variant)
    family = max(families.values(), key=len, default=[])
    metric = comparison.metrics[0]
    if len(family) < 2:
        raise NoData(f"{metric.capitalize()} against rank: there are fewer than two ranks.")
    figure, axes = new_figure()
    family = sorted(family, key=lambda variant: int(variant.flags["lora_r"]))
    ranks = [int(variant.flags["lora_r"]) for variant in family]
    _line_with_intervals(axes, ranks, family, metric, index=0)
    axes.set(xlabel="rank r", ylabel=metric, xscale="log", ylim=_possible(axes, metric))
    _tick_at(axes, ranks)
    return write_figure(
        figure, folder, f"{slug}-{metric}-by-rank", f"{metric.capitalize()} by rank",
        "Means with 95 % intervals over seeds, each rank at the learning rate that is tested.",
    )  # fmt: skip


def draw_rate(comparison: Comparison, folder: Path, slug: str) -> Plot:
    """Draw the metric against the learning rate, for every method that was trained at two rates or more.

    Raises:
        NoData: there is no such method.
    """
    metric = comparison.metrics[0]
    figure, axes = new_figure()
    rates: set[float] = set()
    for index, best in enumerate(comparison.contenders()):
        by_rate: dict[float, Variant] = {}
        # With several warm-ups a rate has several variants: keep the one with the most seeds, then the best mean.
        for variant in sorted(comparison.variants, key=lambda variant: (len(variant.runs), variant.mean(metric))):
            if variant.strategy == best.strategy:
                by_rate[variant.rate] = variant
        if len(by_rate) < 2:
            continue
        same = [by_rate[rate] for rate in sorted(by_rate)]
        _line_with_intervals(axes, [variant.rate for variant in same], same, metric, index, best.strategy)
        rates |= {variant.rate for variant in same}
    if not rates:
        raise NoData(f"{metric.capitalize()} against the learning rate: every method was trained at only one rate.")
    axes.set(xlabel="peak learning rate", ylabel=metric, xscale="log", ylim=_possible(axes, metric))
    _tick_at(axes, sorted(rates))
    legend_below(figure, axes)
    caption = "Means with 95 % intervals over seeds. Of several warm-ups at a rate, the one with most seeds is shown."
    return write_figure(figure, folder, f"{slug}-{metric}-by-rate", f"{metric.capitalize()} by learning rate", caption)


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto-optimal (cost, score) points by increasing cost, equal ones once."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or plain_number(score) > plain_number(front[-1][1]):
            front.append((cost, score))
    return front


def _line_with_intervals(
    axes: Axes,
    places: list[float] | list[int],
    variants: list[Variant],
    metric: str,
    index: int,
    label: str | None = None,
) -> None:
    intervals = [mean_interval(variant.scores(metric)) for variant in variants]
    halves = [interval.half_width or 0.0 for interval in intervals]
    means = [interval.mean for interval in intervals]
    axes.errorbar(places, means, yerr=halves, capsize=3, elinewidth=1, label=label, **look(index))


def _possible(axes: Axes, metric: str) -> tuple[float, float]:
    """The y limits, clipped to the metric's range, which confidence intervals of two seeds exceed."""
    low, high = axes.get_ylim()
    return max(low, _LOWEST.get(metric, 0.0) - _MARGIN), min(high, 1 + _MARGIN)


def _tick_at(axes: Axes, places: Sequence[float]) -> None:
    """Put the ticks of a logarithmic axis where something was measured; skip those that would be too close."""
    shown = [places[0]]
    for place in places[1:]:
        if math.log(place / shown[-1]) >= 0.99 * math.log(places[-1] / places[0]) / _TICKS:
            shown.append(place)
    # In full, unless a search has drawn it.
    axes.set_xticks(shown, [f"{place:g}" if len(f"{place:g}") < _LONG else f"{place:.2g}" for place in shown])
    axes.minorticks_off()


def _common_steps(variant: Variant, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which every seed was evaluated, and the values there, shape (seeds, steps)."""
    curves = [
        {int(point["step"]): point[key] for point in run.curve if point.get(key) is not None} for run in variant.runs
    ]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in curves])


def draw_scores(comparison: Comparison, rows: list[Row], folder: Path, slug: str) -> tuple[list[Plot], list[str]]:
    """Draw all of these plots; return those with data, and a sentence for each without."""
    metric = comparison.metrics[0]
    drawings: list[Callable[[], Plot]] = [
        lambda: draw_curve(comparison, "eval/loss", folder, slug),
        lambda: draw_curve(comparison, f"eval/{metric}", folder, slug),
        *(lambda cost=cost: draw_pareto(comparison, rows, cost, folder, slug) for cost in _COSTS),
        lambda: draw_rank(comparison, folder, slug),
        lambda: draw_rate(comparison, folder, slug),
    ]
    return draw_all(drawings)


def draw_all(drawings: list[Callable[[], Plot]]) -> tuple[list[Plot], list[str]]:
    """Call each drawing function; return the plots, and a sentence for each that had no data."""
    plots, left_out = [], []
    with styled():
        for draw in drawings:
            try:
                plots.append(draw())
            except NoData as reason:
                left_out.append(str(reason))
    return plots, left_out
