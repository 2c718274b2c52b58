"""Plots show what the runs contain, or give the reason why they are left out."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colors, image
from matplotlib.figure import Figure

from peftlib.evaluation.statistics import mean_interval
from peftlib.reporting import plots
from peftlib.reporting.figures import look, new_figure
from peftlib.reporting.grouping import compare
from peftlib.reporting.plots import _possible, draw_curve, draw_scores, pareto_front
from peftlib.reporting.runs import read_run
from peftlib.reporting.table import rows
from peftlib.reporting.weight_plots import draw_weights
from tests.reporting.made_up import make_run


def drawn(folder, *ways, seeds=(1, 2)):
    """Draw plots for runs with these flags on made-up MRPC; return also the reasons for those left out."""
    made = [
        read_run(make_run(folder / f"run-{number}-{seed}", "--task_name", "mrpc", *way, seed=seed))
        for number, way in enumerate(ways)
        for seed in seeds
    ]
    (comparison,) = compare(made)
    place = folder / "plots"
    place.mkdir()
    return draw_scores(comparison, rows(comparison), place, "mrpc")


LORA = ("--method", "lora", "--lora_r")


def test_all_plots_of_scores_as_png_and_svg(tmp_path):
    ways = [(*LORA, rank, "--learning_rate", rate) for rank in (8, 16) for rate in (1e-3, 1e-2)]
    plots, left_out = drawn(tmp_path, *ways, ("--method", "head"))
    names = ["loss-by-step", "accuracy-by-step", "accuracy-by-parameters", "accuracy-by-time", "accuracy-by-memory",
             "accuracy-by-rank", "accuracy-by-rate"]  # fmt: skip
    assert [plot.name for plot in plots] == [f"mrpc-{name}" for name in names] and left_out == []
    for plot in plots:
        pixels = image.imread(tmp_path / "plots" / f"{plot.name}.png")[..., :3]
        assert pixels.min() < 0.1 and (pixels == 1).mean() > 0.5  # dark ink on white paper
        assert plot.svg == (tmp_path / "plots" / f"{plot.name}.svg").read_text()
        assert ElementTree.fromstring(plot.svg).tag.endswith("svg")
        assert plot.title and plot.caption in plot.alt


@pytest.fixture
def figures(monkeypatch):
    """Collect the axes of every plot that is drawn, by the plot's name."""
    kept = {}
    plain = plots.write_figure

    def keep(figure, folder, name, title, caption):
        kept[name] = figure.axes[0]
        return plain(figure, folder, name, title, caption)

    monkeypatch.setattr(plots, "write_figure", keep)
    return kept


def bars(axes):
    """Return label -> (places, means, lows, highs) for each series with error bars."""
    found = {}
    for container in axes.containers:
        (segments,) = (part.get_segments() for part in container.lines[2])
        ends = np.array(segments)[:, :, 1]
        found[container.get_label()] = (*container.lines[0].get_data(), ends.min(axis=1), ends.max(axis=1))
    return found


def test_a_curve_is_the_mean_and_its_band_the_lowest_and_the_highest_seed(tmp_path, figures):
    drawn(tmp_path, ("--method", "bitfit"), (*LORA, 8), seeds=(1, 2, 3))
    axes = figures["mrpc-accuracy-by-step"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer updates", "evaluation accuracy")
    for number, label, line, band in zip((0, 1), ("BitFit", "LoRA r=8"), axes.lines, axes.collections, strict=True):
        runs = [read_run(tmp_path / f"run-{number}-{seed}") for seed in (1, 2, 3)]
        curves = np.array([[point["eval/accuracy"] for point in run.curve] for run in runs])
        steps = [10, 20, 30, 40, 50, 60]
        assert line.get_label() == label and list(line.get_xdata()) == steps
        assert line.get_ydata() == pytest.approx(curves.mean(axis=0))
        corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
        edges = [*zip(steps, curves.min(axis=0), strict=True), *zip(steps, curves.max(axis=0), strict=True)]
        assert corners == set(edges)


def test_a_curve_that_ends_with_its_shortest_seed_says_so(tmp_path):
    runs = [make_run(tmp_path / f"run-{seed}", "--task_name", "mrpc", seed=seed) for seed in (1, 2)]
    captions = [draw_curve(compare(map(read_run, runs))[0], "eval/accuracy", tmp_path, "whole").caption]
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines()
    (runs[1] / "metrics.jsonl").write_text("\n".join(line for line in lines if json.loads(line)["step"] <= 40))
    captions.append(draw_curve(compare(map(read_run, runs))[0], "eval/accuracy", tmp_path, "short").caption)
    said = "Lines: mean over seeds. Bands: from the lowest to the highest seed."
    assert captions == [said, f"{said} A line ends where the first of its seeds does."]


def test_a_cost_is_drawn_with_the_tables_means_and_intervals(tmp_path, figures):
    drawn(tmp_path, ("--method", "bitfit"), (*LORA, 8), ("--method", "head"), seeds=(1, 2, 3))
    (comparison,) = compare([read_run(path.parent) for path in sorted(tmp_path.glob("run-*/run.json"))])
    table = {row.label: row for row in rows(comparison) if row.seeds}
    for cost, scale, value in (
        ("parameters", "log", lambda row: row.trainable),
        ("time", "linear", lambda row: row.costs["train_seconds"].mean),
        ("memory", "linear", lambda row: row.costs["peak_memory_bytes"].mean / 1e6),
    ):
        axes = figures[f"mrpc-accuracy-by-{cost}"]
        assert (axes.get_xscale(), axes.get_ylabel()) == (scale, "accuracy")
        series = bars(axes)
        assert series.keys() == table.keys()
        for label, (x, mean, low, high) in series.items():
            interval = table[label].metrics["accuracy"]
            expected = value(table[label]), interval.mean, interval.low, interval.high
            assert (x[0], mean[0], low[0], high[0]) == pytest.approx(expected)
        fronts = [line for line in axes.lines if line.get_label() == "Pareto front"]
        points = [(value(row), row.metrics["accuracy"].mean) for row in table.values()]
        drawn_fronts = [list(zip(*front.get_data(), strict=True)) for front in fronts]
        assert drawn_fronts == [front for front in [pareto_front(points)] if len(front) > 1]


@pytest.mark.parametrize(("name", "places"), [("rank", [8, 16]), ("rate", [1e-3, 1e-2])])
def test_ranks_and_rates_stand_in_order_on_a_logarithmic_axis(tmp_path, figures, name, places):
    flags = {"rank": lambda place: (*LORA, place), "rate": lambda place: ("--learning_rate", place)}[name]
    drawn(tmp_path, *map(flags, reversed(places)), seeds=(1, 2, 3))
    axes = figures[f"mrpc-accuracy-by-{name}"]
    assert axes.get_xscale() == "log" and list(axes.get_xticks()) == places
    ((x, means, lows, highs),) = bars(axes).values()
    assert list(x) == places
    for index, number in enumerate((1, 0)):
        found = mean_interval([read_run(tmp_path / f"run-{number}-{seed}").score("accuracy") for seed in (1, 2, 3)])
        assert (means[index], lows[index], highs[index]) == pytest.approx((found.mean, found.low, found.high))


@pytest.mark.parametrize(
    ("places", "shown"),
    [
        ([8], ["8"]),
        ([1e-4, 2e-4, 4e-4, 8e-4], ["0.0001", "0.0002", "0.0004", "0.0008"]),
        ([2**n for n in range(8)], ["1", "4", "16", "64"]),
        ([8, 32, 128, 256, 1024], ["8", "32", "128", "1024"]),
        ([1e-3, 1.25e-3, 1.5e-3], ["0.001", "0.00125", "0.0015"]),
        ([0.000214243, 0.0002243, 0.00023, 0.0012345, 0.00235022], ["0.00021", "0.0012", "0.0024"]),
    ],
)
def test_ticks_are_not_too_close_to_be_read(places, shown):
    axes = Figure().subplots()
    axes.set_xscale("log")
    plots._tick_at(axes, places)
    assert [label.get_text() for label in axes.get_xticklabels()] == shown


def test_a_rate_with_several_warm_ups_is_drawn_once(tmp_path, figures):
    """The one with the most seeds, then the best; the fifth run is the second with another seed."""
    ways = [(1e-3, 0.0, 0.1), (1e-3, 0.1, 0.3), (1e-2, 0.0, 0.3), (1e-2, 0.1, 0.1)]
    made = [(rate, warmup, error, 1) for rate, warmup, error in ways] + [(*ways[1], 2)]
    runs = [
        read_run(make_run(tmp_path / f"{n}", "--learning_rate", rate, "--warmup_ratio", warmup, error=error, seed=seed))
        for n, (rate, warmup, error, seed) in enumerate(made)
    ]
    (comparison,) = compare(runs)
    draw_scores(comparison, rows(comparison), tmp_path, "x")
    ((x, means, _, _),) = bars(figures["x-accuracy-by-rate"]).values()
    scores = [run.score("accuracy") for run in runs]
    assert list(x) == [1e-3, 1e-2]
    assert list(means) == pytest.approx([(scores[1] + scores[4]) / 2, scores[3]])


def test_a_plot_without_data_is_a_sentence(tmp_path):
    plots, left_out = drawn(tmp_path, ("--method", "bitfit"), seeds=[1])
    assert [plot.name for plot in plots] == ["mrpc-loss-by-step", "mrpc-accuracy-by-step"]
    assert left_out == [
        "Accuracy against trained parameters: there is only one method.",
        "Accuracy against training time (s): there is only one method.",
        "Accuracy against peak memory (MB): there is only one method.",
        "Accuracy against rank: there are fewer than two ranks.",
        "Accuracy against the learning rate: every method was trained at only one rate.",
    ]
    assert len(list((tmp_path / "plots").iterdir())) == 4


def test_ranks_with_other_flags_are_another_family(tmp_path):
    _, left_out = drawn(tmp_path, (*LORA, 8), (*LORA, 16, "--lora_alpha", 64), seeds=[1])
    assert "Accuracy against rank: there are fewer than two ranks." in left_out


def test_without_curves_no_curve_is_drawn(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 10, "eval/loss": 0.5, "eval/accuracy": 0.5}\n')
    (comparison,) = compare([read_run(run)])
    plots, left_out = draw_scores(comparison, rows(comparison), tmp_path, "x")
    assert plots == [] and "Evaluation loss against steps: no run was evaluated twice." in left_out


def test_the_same_runs_give_the_same_bytes(tmp_path):
    first, _ = drawn(tmp_path / "a", ("--method", "bitfit"), seeds=[1])
    second, _ = drawn(tmp_path / "b", ("--method", "bitfit"), seeds=[1])
    assert [plot.svg for plot in first] == [plot.svg for plot in second]


def test_methods_differ_in_marker_line_and_colour():
    looks = [look(index) for index in range(8)]
    for part in ("marker", "linestyle", "color"):
        assert len({str(entry[part]) for entry in looks}) == 8


def test_every_colour_stands_out_from_white_paper():
    luminances = [np.dot(colors.to_rgb(look(index)["color"]), (0.299, 0.587, 0.114)) for index in range(8)]
    assert max(luminances) < 0.72


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=15))
def test_the_front_is_what_nothing_beats(points):
    front = pareto_front(points)
    expected = {
        (cost, score)
        for cost, score in points
        if not any((c <= cost and s >= score) and (c, s) != (cost, score) for c, s in points)
    }
    assert set(front) == expected and front == sorted(front)


def test_a_dearer_point_is_not_better_by_the_rounding_of_a_sum():
    less, more = sorted(((0.7 + 0.7 + 0.7) / 3, (0.8 + 0.7 + 0.6) / 3))
    assert less < more and pareto_front([(1.0, less), (2.0, more)]) == [(1.0, less)]


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        (
            ("--method", "head"),
            [
                "Where the biases moved: there is no BitFit run.",
                "Singular values of the LoRA updates: there is no LoRA adapter that training has changed.",
            ],
        ),
        (
            ("--method", "bitfit", "--model_name_or_path", "no/model"),
            [
                "Where the biases moved: the weights of no/model are not on this machine.",
                "Singular values of the LoRA updates: there is no LoRA adapter that training has changed.",
            ],
        ),
        (
            ("--method", "lora"),
            [
                "Where the biases moved: there is no BitFit run.",
                "Singular values of the LoRA updates: there is no LoRA adapter that training has changed.",
            ],
        ),
    ],
)
def test_weights_that_are_not_there_are_said(tmp_path, words, reasons):
    (comparison,) = compare([read_run(make_run(tmp_path / "run", *words))])
    assert draw_weights(comparison, tmp_path, "x") == ([], reasons)


@pytest.mark.parametrize(
    ("metric", "limits"),
    [
        ("accuracy", (-0.02, 1.02)),
        ("matthews_correlation", (-1.02, 1.02)),
        ("pearson", (-1.02, 1.02)),
        ("r2", (None, 1.02)),
    ],
)
def test_an_axis_ends_where_scores_do(metric: str, limits: tuple[float | None, float]) -> None:
    """The interval of two seeds can be wider than the range of the metric."""
    _, axes = new_figure()
    axes.errorbar([1, 2], [0.5, 0.6], yerr=[8.0, 0.1])
    low, high = limits
    assert _possible(axes, metric) == (axes.get_ylim()[0] if low is None else low, high)
    _, axes = new_figure()
    axes.errorbar([1, 2], [0.5, 0.6], yerr=[0.05, 0.1])
    assert _possible(axes, metric) == axes.get_ylim()
