"""What a person sees: tables and a progress bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from types import TracebackType

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Console:
    """The run's standard output.

    Args:
        speaks: False on every process but the main one; such a console says nothing.
        total_steps: updates in the whole run, for the bar and the ETA; set before `with`.
    """

    def __init__(self, speaks: bool = True) -> None:
        self._rich = RichConsole(quiet=not speaks, highlight=False)
        self._pretty = self._rich.is_terminal
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self.total_steps = 0

    def note(self, line: str) -> None:
        """One line that the user should know of."""
        self._print(Text(line))

    def warn(self, line: str) -> None:
        """One line that must not be overlooked."""
        self._print(Text(line, style="bold red"))

    def _print(self, what: RenderableType) -> None:
        """To the terminal, pipe or log file, as long as it takes what is said: a run does not end for its listener.

        A log on a full disk raises an OSError, and rich makes a SystemExit of a pipe that nobody reads.
        """
        try:
            self._rich.print(what, soft_wrap=isinstance(what, Text))
        except (OSError, SystemExit):
            self._rich.quiet = True
            # Else the interpreter fails to write what is left when it ends, and says so in the exit status.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

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

    def __enter__(self) -> Console:
        if self._pretty:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._rich,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self.total_steps, state="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, step: int) -> None:
        """Move the bar; a pipe hears of a step only when there is something to say about it."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, values: dict[str, float], step: int) -> None:
        """Show the loss and rate, and on a line of their own the scores."""
        loss, rate = values.get("train/loss"), values.get("train/samples_per_second")
        state = f"loss {loss:.4f}  {rate:.0f} samples/s" if loss is not None and rate is not None else ""
        if self._bar is not None:
            self._bar.update(self._task, state=state)
        elif state:
            place = f"step {step}/{self.total_steps}  epoch {values['train/epoch']:.2f}"
            self.note(f"{place}  {state}  lr {values['train/learning_rate']:.2e}")
        scores = {name.removeprefix("eval/"): value for name, value in values.items() if name.startswith("eval/")}
        if scores:
            shown = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())
            self.note(f"evaluation at step {step}  {shown}")
