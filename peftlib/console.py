"""Standard output of a command: tables on a terminal, plain aligned text in a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from peftlib.errors import RunError


class Console:
    """Standard output of a command.

    Args:
        speaks: False on every process but the main one, which alone prints.
        is_result: what is printed is what the command was started for: if it cannot be written, it has failed.
    """

    def __init__(self, speaks: bool = True, *, is_result: bool = False) -> None:
        self._rich = RichConsole(quiet=not speaks, highlight=False)
        self._is_result = is_result

    @property
    def _pretty(self) -> bool:
        return self._rich.is_terminal

    def note(self, line: str = "") -> None:
        """Print one line, never wrapped or truncated."""
        self._print(Text(line))

    def warn(self, line: str) -> None:
        """Print one line in bold red, as a warning."""
        self._print(Text(f"warning: {line}", style="bold red"))

    def facts(self, title: str, rows: dict[str, str], *, panel: bool = False) -> None:
        """Print names and values: a table or panel on a terminal, `name: value` lines in a pipe."""
        if not self._pretty:
            self.note(title)
            for name, value in rows.items():
                self.note(f"  {name}: {value}")
            return
        grid = Table.grid(padding=(0, 2)) if panel else Table(title=title, title_justify="left", show_header=False)
        for name, value in rows.items():
            grid.add_row(Text(name, style="bold"), Text(value))
        self._print(Panel(grid, title=title, expand=False) if panel else grid)

    def table(
        self, header: Sequence[str], lines: Sequence[Sequence[str]], *, title: str | None = None, numbers: int = 0
    ) -> None:
        """Print a table; in a pipe, columns are as wide as their content.

        On a terminal too narrow for it, numbers continue in further tables with the first column repeated, and text
        wraps.

        Args:
            title: printed above the table, on a terminal only.
            numbers: number of columns after the first one that hold numbers.
        """
        widths = [max(map(cell_len, column)) for column in zip(header, *lines, strict=True)]
        if not self._pretty:
            for line in [header, *lines]:
                self.note("  ".join(set_cell_size(cell, n) for cell, n in zip(line, widths, strict=True)).rstrip())
            return
        for part, columns in enumerate(_that_fit(widths, self._rich.width, numbers)):
            table = Table(title=None if part else title, title_justify="left")
            for place in columns:
                # Wrap instead of truncating: a truncated number would be a different number.
                justify: Literal["left", "right"] = "right" if 0 < place <= numbers else "left"
                table.add_column(Text(header[place]), justify=justify, overflow="fold")
            for line in lines:
                table.add_row(*(Text(line[place]) for place in columns))
            self._print(table)

    def _print(self, what: RenderableType) -> None:
        """Print until the output fails: a closed pipe or full disk must not end the run.

        A full disk raises OSError, and rich turns a closed pipe into SystemExit.
        """
        try:
            self._rich.print(what, soft_wrap=isinstance(what, Text))
        except (OSError, SystemExit) as error:
            if self._is_result and isinstance(error, OSError):
                raise not_written(error) from error
            self._rich.quiet = True
            _print_no_more()


def not_written(error: OSError) -> RunError:
    """Return what ends a command whose output is its result; nothing is printed any more."""
    _print_no_more()
    return RunError(f"standard output cannot be written: {error.strerror or error}")


def _print_no_more() -> None:
    """Otherwise the interpreter's final flush would fail and change the exit status."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _that_fit(widths: Sequence[int], most: int, numbers: int) -> list[list[int]]:
    """Divide a table's columns into tables no wider than `most` characters, each with the first column.

    Args:
        widths: of the columns' content.
        numbers: columns after the first one that may begin another table; later ones wrap.
    """
    tables, border = [[0]], 3  # of each column, and one more
    for place in range(1, len(widths)):
        here = tables[-1]
        if place <= numbers and len(here) > 1 and sum(widths[one] + border for one in [*here, place]) + 1 > most:
            tables.append([0])
        tables[-1].append(place)
    return tables
