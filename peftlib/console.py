"""Standard output of a command: tables on a terminal, plain aligned text in a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


class Console:
    """Standard output of a command.

    Args:
        speaks: False on every process but the main one, which alone prints.
    """

    def __init__(self, speaks: bool = True) -> None:
        self._rich = RichConsole(quiet=not speaks, highlight=False)

    @property
    def _pretty(self) -> bool:
        return self._rich.is_terminal

    def note(self, line: str = "") -> None:
        """Print one line, never wrapped or truncated."""
        self._print(Text(line))

    def warn(self, line: str) -> None:
        """Print one line in bold red."""
        self._print(Text(line, style="bold red"))

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
        """Print a table that wraps within the terminal; in a pipe, columns are as wide as their content.

        Args:
            title: printed above the table, on a terminal only.
            numbers: number of columns after the first one that hold numbers.
        """
        if not self._pretty:
            widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
            for line in [header, *lines]:
                self.note("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
            return
        table = Table(title=title, title_justify="left")
        for place, name in enumerate(header):
            # Wrap instead of truncating: a truncated number would be a different number.
            table.add_column(Text(name), justify="right" if 0 < place <= numbers else "left", overflow="fold")
        for line in lines:
            table.add_row(*map(Text, line))
        self._print(table)

    def _print(self, what: RenderableType) -> None:
        """Print until the output fails: a closed pipe or full disk must not end the run.

        A full disk raises OSError, and rich turns a closed pipe into SystemExit.
        """
        try:
            self._rich.print(what, soft_wrap=isinstance(what, Text))
        except (OSError, SystemExit):
            self._rich.quiet = True
            # Otherwise the interpreter's final flush would fail and change the exit status.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
