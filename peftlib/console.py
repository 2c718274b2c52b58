"""What a command says on its standard output: tables on a terminal, plain aligned lines in a pipe."""

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
    """A command's standard output.

    Args:
        speaks: False on every process but the main one; such a console says nothing.
    """

    def __init__(self, speaks: bool = True) -> None:
        self._rich = RichConsole(quiet=not speaks, highlight=False)

    @property
    def _pretty(self) -> bool:
        return self._rich.is_terminal

    def note(self, line: str = "") -> None:
        """One line that the user should know of, never cut."""
        self._print(Text(line))

    def warn(self, line: str) -> None:
        """One line that must not be overlooked."""
        self._print(Text(line, style="bold red"))

    def facts(self, title: str, rows: dict[str, str], *, panel: bool = False) -> None:
        """Names and values: a table or panel on a terminal, `name: value` lines in a pipe."""
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
        """A table that wraps within the terminal, or columns as wide as they need to be.

        Args:
            title: above it, on a terminal.
            numbers: columns behind the first one that hold numbers.
        """
        if not self._pretty:
            widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
            for line in [header, *lines]:
                self.note("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
            return
        table = Table(title=title, title_justify="left")
        for place, name in enumerate(header):
            # A number that is cut would be another one: what does not fit goes on in the next line.
            table.add_column(Text(name), justify="right" if 0 < place <= numbers else "left", overflow="fold")
        for line in lines:
            table.add_row(*map(Text, line))
        self._print(table)

    def _print(self, what: RenderableType) -> None:
        """To the terminal, pipe or log file, as long as it takes what is said: no work ends for its listener.

        A log on a full disk raises an OSError, and rich makes a SystemExit of a pipe that nobody reads.
        """
        try:
            self._rich.print(what, soft_wrap=isinstance(what, Text))
        except (OSError, SystemExit):
            self._rich.quiet = True
            # Else the interpreter fails to write what is left when it ends, and says so in the exit status.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
