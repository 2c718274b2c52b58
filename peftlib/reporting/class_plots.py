"""The plot of which classes are taken for which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.font_manager import FontProperties, findfont, get_font

from peftlib.data.tasks import MULTI_LABEL
from peftlib.reporting.classes import leading
from peftlib.reporting.figures import Plot, new_figure, write_figure
from peftlib.reporting.grouping import Comparison
from peftlib.reporting.plots import NoData, draw_all

#: Most classes that a plot has room for.
_MOST_CLASSES = 12
#: Characters of a class's name beside the plot.
_LONGEST = 14


def draw_confusion(comparison: Comparison, folder: Path, slug: str) -> Plot:
    """Draw the best method's confusion matrix, each label's row divided by its number of examples: the mean over seeds.

    Raises:
        NoData: there is no matrix, or it is too large.
    """
    from sklearn.metrics import confusion_matrix

    best, title = leading(comparison), "Which classes are taken for which"
    if best is None:
        raise NoData(f"{title}: there are no classes with predictions.")
    names = [str(name) for name in comparison.key["classes"]]
    answers = {run.seed: run.answers for run in best.runs if run.answers is not None}
    if comparison.runs[0].record.get("problem_type") == MULTI_LABEL:
        raise NoData(f"{title}: a text may have several.")
    if len(names) > _MOST_CLASSES:
        raise NoData(f"{title}: {len(names)} classes are too many for a plot.")
    indices = range(len(names))
    counts = [confusion_matrix(labels, said, labels=indices) for said, labels in answers.values()]
    shares = np.mean([100 * each / np.maximum(each.sum(axis=1, keepdims=True), 1) for each in counts], axis=0)
    figure, axes = new_figure(plot_height=max(1.2, 0.3 * len(names)), below=1.25)
    axes.grid(False)
    axes.pcolormesh(shares, cmap="cividis", vmin=0, vmax=100)
    axes.invert_yaxis()
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share < 60 else "black"
        axes.text(column + 0.5, row + 0.5, f"{share:.0f}", ha="center", va="center", size=7, color=colour)
    short = [_short(name, place) for place, name in enumerate(names, start=1)]
    places = np.arange(len(names)) + 0.5
    axes.set_xticks(places, short, rotation=40, ha="right", parse_math=False)
    axes.set_yticks(places, short, parse_math=False)
    axes.set(xlabel="prediction", ylabel="label")
    figure.subplots_adjust(left=0.33)  # for the names
    seeds = f"mean over {len(answers)} seeds" if len(answers) > 1 else f"seed {next(iter(answers))}"
    caption = f"{best.label}, {seeds}: of the examples with a row's label, the percentage with a column's prediction."
    return write_figure(figure, folder, f"{slug}-confusion", title, caption)


def _short(name: str, place: int) -> str:
    """A class's name in one line; its place in the table where the plots' font lacks its characters (Chinese, say)."""
    name = " ".join(name.split())
    font = get_font(findfont(FontProperties()))
    if not all(font.get_char_index(ord(character)) for character in name):
        return f"class {place}"
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def draw_classes(comparison: Comparison, folder: Path, slug: str) -> tuple[list[Plot], list[str]]:
    """Draw the plot, or return a sentence that says why there is none."""
    return draw_all([lambda: draw_confusion(comparison, folder, slug)])
