"""Style of all plots: methods differ by marker and line as well as colour, for greyscale and colour-blind readers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftlib.files import write_text

# Okabe and Ito, 2008 (https://jfly.uni-koeln.de/color/), without yellow, which is hard to see on white paper.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

_WIDTH = 4.4  # inches
_SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.markersize": 5.5,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # Deterministic ids, so that the same input gives the same bytes.
    "svg.hashsalt": "peftlib",
}


@dataclass(frozen=True)
class Plot:
    """A plot that was written.

    Attributes:
        name: stem of its PNG and SVG files.
        caption: what the plot shows; part of `alt`, the text for those who cannot see it.
        svg: content of the SVG file.
    """

    name: str
    title: str
    caption: str
    svg: str

    @property
    def alt(self) -> str:
        return f"{self.title}. {self.caption}"


@contextmanager
def styled() -> Iterator[None]:
    """Apply the project's style to what is drawn and saved inside the block."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def look(index: int) -> dict[str, Any]:
    """Return colour, marker and line style for the method at this index of its comparison."""
    place = index % len(_COLOURS)
    return {"color": _COLOURS[place], "marker": _MARKERS[place], "linestyle": _LINES[place]}


def new_figure(plot_height: float = 2.3, below: float = 0.5) -> tuple[Figure, Axes]:
    """Create a figure narrow enough for a phone to show at full size.

    Args:
        plot_height: height of the axes, in inches.
        below: inches below the axes, for ticks and labels.
    """
    # Fixed margins in inches: matplotlib's layout engines take longer than all of the drawing.
    height = plot_height + below + 0.3
    figure = Figure(figsize=(_WIDTH, height))
    figure.subplots_adjust(left=0.74 / _WIDTH, right=1 - 0.12 / _WIDTH, bottom=below / height, top=1 - 0.3 / height)
    return figure, figure.add_subplot()


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes, where it hides no data; the figure grows by the legend's height."""
    handles, labels = axes.get_legend_handles_labels()
    _, height = figure.get_size_inches()
    columns = 1 if max(map(len, labels)) > 24 else 2
    rows = 0.08 + 0.19 * -(-len(labels) // columns)
    edges = figure.subplotpars
    figure.set_size_inches(_WIDTH, height + rows)
    figure.subplots_adjust(
        bottom=(edges.bottom * height + rows) / (height + rows), top=(edges.top * height + rows) / (height + rows)
    )
    figure.legend(
        handles, labels, loc="lower center", ncols=columns, handlelength=2.8, columnspacing=1.2, borderaxespad=0.3
    )


def write_figure(figure: Figure, folder: Path, name: str, title: str, caption: str) -> Plot:
    """Write `<name>.png` and `<name>.svg` into `folder`."""
    figure.axes[0].set_title(title)
    figure.savefig(folder / f"{name}.png", dpi=160)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_text(folder / f"{name}.svg", buffer.getvalue())
    return Plot(name, title, caption, buffer.getvalue())
