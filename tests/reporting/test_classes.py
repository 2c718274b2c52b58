"""Scores of single classes in a comparison: table, CSV, plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from peftlib.evaluation.predictions import save_predictions
from peftlib.evaluation.statistics import mean_interval
from peftlib.reporting import class_plots
from peftlib.reporting.class_plots import draw_classes, draw_confusion
from peftlib.reporting.classes import MOST_CLASSES, class_sheet, classes_csv
from peftlib.reporting.grouping import Comparison, compare
from peftlib.reporting.plots import NoData
from peftlib.reporting.runs import read_run
from peftlib.reporting.table import plus_minus
from tests.reporting.made_up import make_run, make_run_of_several

METHODS = (("head", 0.3), ("bitfit", 0.1))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two methods on MRPC, with three seeds each."""
    place = tmp_path_factory.mktemp("classes")
    words = ("--task_name", "mrpc", "--method")
    runs = [
        make_run(place / f"{method}-{seed}", *words, method, seed=seed, error=error)
        for method, error in METHODS
        for seed in (1, 2, 3)
    ]
    (found,) = compare(map(read_run, runs))
    return found


def of_many(folder: Path, classes: int, **names: str) -> Comparison:
    """A comparison of one run with so many classes, some with other names, of which the last one is never right."""
    make_run(folder, "--task_name", "mrpc", predictions=False)
    record = json.loads((folder / "run.json").read_text())
    labels = np.arange(2 * classes) % classes
    said = np.where(labels == classes - 1, 0, labels)
    save_predictions(folder, np.eye(classes, dtype=np.float32)[said], labels)
    (folder / "run.json").write_text(
        json.dumps(record | {"labels": [names.get(f"_{i}", f"class {i}") for i in range(classes)]})
    )
    (found,) = compare([read_run(folder)])
    return found


def test_the_table_has_each_class_s_mean_f1_over_the_seeds(comparison):
    sheet = class_sheet(comparison)
    assert sheet.header == ["class", "examples", "Head", "BitFit"] and sheet.numeric == 4
    assert [line[0] for line in sheet.lines] == ["not_equivalent", "equivalent"]
    for index, line in enumerate(sheet.lines):
        assert line[1] == str((comparison.runs[0].answers[1] == index).sum())
        for variant, cell in zip(comparison.variants, line[2:], strict=True):
            f1 = [f1_score(run.answers[1], run.answers[0], pos_label=index) for run in variant.runs]
            assert cell == plus_minus(mean_interval(f1))


def test_the_csv_has_each_run(comparison):
    rows = list(csv.DictReader(io.StringIO(classes_csv(comparison))))
    assert len(rows) == 6 * 2 and {row["method"] for row in rows} == {"Head", "BitFit"}
    for row in rows:
        (variant,) = (one for one in comparison.variants if one.label == row["method"])
        (run,) = (one for one in variant.runs if str(one.seed) == row["seed"])
        index = ("not_equivalent", "equivalent").index(row["class"])
        assert float(row["recall"]) == pytest.approx(recall_score(run.answers[1], run.answers[0], pos_label=index))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written from now on."""
    figures = []
    plain = class_plots.write_figure
    monkeypatch.setattr(class_plots, "write_figure", lambda figure, *of: figures.append(figure) or plain(figure, *of))
    return figures


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_plot_has_the_best_method_s_shares(comparison, tmp_path, drawn, seeds):
    (part,) = compare([run for run in comparison.runs if run.seed <= seeds])
    plot = draw_confusion(part, tmp_path, "mrpc")
    assert plot.caption.startswith("BitFit, mean over 3 seeds: " if seeds == 3 else "BitFit, seed 1: ")
    counts = [confusion_matrix(run.answers[1], run.answers[0]) for run in part.best[0].runs]
    shares = np.mean([each / each.sum(axis=1, keepdims=True) for each in counts], axis=0)
    assert [text.get_text() for text in drawn[0].axes[0].texts] == [f"{100 * share:.0f}" for share in shares.flat]
    assert (tmp_path / "mrpc-confusion.png").exists() and (tmp_path / "mrpc-confusion.svg").exists()


def test_names_that_the_font_lacks_are_numbered_and_none_is_markup(tmp_path, drawn, recwarn):
    comparison = of_many(
        tmp_path / "run", 5, _0="$100$ \\frac", _1="正面", _2="two\nlines", _3="a very long name of it"
    )
    draw_classes(comparison, tmp_path, "mails")
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert names == ["$100$ \\frac", "class 2", "two lines", "a very long n…", "class 4"]
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


def test_of_very_many_classes_the_table_has_the_worst_and_there_is_no_plot(tmp_path):
    comparison = of_many(tmp_path / "run", MOST_CLASSES + 5)
    sheet = class_sheet(comparison)
    assert len(sheet.lines) == MOST_CLASSES
    assert sheet.lines[-1] == [f"class {MOST_CLASSES + 4}", "2", "0.0000"]
    assert len(classes_csv(comparison).splitlines()) == 1 + MOST_CLASSES + 5
    with pytest.raises(NoData, match=r"35 classes are too many for a plot"):
        draw_confusion(comparison, tmp_path, "mrpc")


def test_where_a_text_may_have_several_classes_there_is_a_table_and_no_plot(tmp_path):
    (comparison,) = compare([read_run(make_run_of_several(tmp_path / "run"))])
    assert [line[0] for line in class_sheet(comparison).lines] == ["a", "b", "c"]
    assert draw_classes(comparison, tmp_path, "mails") == (
        [], ["Which classes are taken for which: a text may have several."]
    )  # fmt: skip


@pytest.mark.parametrize(("task", "predictions"), [("stsb", True), ("mrpc", False)])
def test_without_classes_or_predictions_there_is_neither(tmp_path, task, predictions):
    (comparison,) = compare([read_run(make_run(tmp_path / "run", "--task_name", task, predictions=predictions))])
    assert class_sheet(comparison) is None
    _, (reason,) = draw_classes(comparison, tmp_path, task)
    assert reason == "Which classes are taken for which: there are no classes with predictions."


def test_a_run_without_predictions_leaves_the_others_theirs(comparison, tmp_path):
    lacking = read_run(make_run(tmp_path / "run", "--task_name", "mrpc", "--method", "lora", predictions=False))
    (found,) = compare([*comparison.runs, lacking])
    assert class_sheet(found).header == ["class", "examples", "Head", "BitFit"]
