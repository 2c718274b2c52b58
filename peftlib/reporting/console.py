"""What a person sees of a comparison: tables on a terminal, aligned plain text in a pipe."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from peftlib.reporting.report import Report, Section, work_out, write_report
from peftlib.reporting.runs import Run
from peftlib.reporting.sheets import Sheet, notes_of


def publish(runs: list[Run], folder: Path, command: str) -> None:
    """Show the comparison, write its report, and say where it is.

    Args:
        folder: one that `check_folder` has let pass.
        command: what the user typed.

    Raises:
        UserError: no run has a result.
    """
    console = CompareConsole()
    report = work_out(runs)
    console.show(report)
    write_report(report, folder, command)
    console.note(f"report: {folder / 'index.html'}")


class CompareConsole:
    """The comparison's standard output."""

    def __init__(self) -> None:
        self._rich = RichConsole(highlight=False)

    def note(self, line: str = "") -> None:
        """One line, never cut."""
        self._rich.print(Text(line), soft_wrap=True)

    def show(self, report: Report) -> None:
        """Every comparison's table and what may be claimed, then the runs without a result."""
        for section in report.sections:
            self._section(section)
        for name, what, why in report.failed:
            self.note(f"no result: {name} ({what}): {why}")

    def _section(self, section: Section) -> None:
        self.note(section.title)
        if section.comparison.apart:
            self.note(f"apart: {section.comparison.apart}")
        self.table(section.sheet)
        for line in section.comparison.notes:
            self.note(line)
        if section.references.lines:
            self.note("beside what others have reported, of other models and settings:")
            self.table(section.references)
            for line in notes_of(section.references):
                self.note(line)
        for words in (*section.claims, *section.no_claims):
            self.note(f"- {words}")
        for metric, pairs in section.by_other_metric.items():
            found = [pair.words for pair in pairs if pair.claimed]
            self.note(f"{metric}: {len(found)} of {len(pairs)} pairs differ; every test is in the report")
        self.note()

    def table(self, sheet: Sheet) -> None:
        """A table that wraps within the terminal, or columns as wide as they need to be."""
        if not self._rich.is_terminal:
            widths = [max(map(len, column)) for column in zip(sheet.header, *sheet.lines, strict=True)]
            for line in [sheet.header, *sheet.lines]:
                self.note("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
            return
        table = Table()
        for index, title in enumerate(sheet.header):
            table.add_column(Text(title), justify="right" if 0 < index < sheet.numeric else "left")
        for line in sheet.lines:
            table.add_row(*map(Text, line))
        self._rich.print(table)
