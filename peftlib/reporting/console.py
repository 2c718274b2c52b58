"""Console output of a comparison: tables on a terminal, aligned plain text in a pipe."""

from __future__ import annotations

from pathlib import Path

from peftlib.console import Console
from peftlib.reporting.report import Report, Section, work_out, write_report
from peftlib.reporting.runs import Run
from peftlib.reporting.sheets import Sheet, notes_of


def publish(runs: list[Run], folder: Path, command: str) -> None:
    """Print the comparison, write its report, and say where it is.

    Args:
        folder: the report's folder; `check_folder` has accepted it.
        command: the command line as typed.

    Raises:
        UserError: no run has a result.
    """
    console = CompareConsole()
    report = work_out(runs)
    console.show(report)
    write_report(report, folder, command)
    console.note(f"report: {folder / 'index.html'}")


#: Up to this many pairs without a difference are printed one by one.
_FEW = 3


class CompareConsole(Console):
    """Standard output of a comparison."""

    def show(self, report: Report) -> None:
        """Print each comparison's table and claims, then the runs without a result."""
        for section in report.sections:
            self._section(section)
        for name, what, why in report.failed:
            self.note(f"no result: {name} ({what}): {why}")

    def _section(self, section: Section) -> None:
        self.note(section.title)
        if section.comparison.apart:
            self.note(f"separate comparison: {section.comparison.apart}")
        self.sheet(section.sheet)
        for line in section.comparison.notes:
            self.note(line)
        if section.references.lines:
            self.note("scores reported by others, for other models and settings:")
            self.sheet(section.references)
            for line in notes_of(section.references):
                self.note(line)
        for words in section.claims:
            self.note(f"- {words}")
        if len(section.no_claims) <= _FEW:
            for words in section.no_claims:
                self.note(f"- {words}")
        else:
            self.note(f"- no difference can be claimed for {len(section.no_claims)} pairs; all tests are in the report")
        for metric, pairs in section.by_other_metric.items():
            found = [pair.words for pair in pairs if pair.claimed]
            self.note(f"{metric}: {len(found)} of {len(pairs)} pairs differ; all tests are in the report")
        self.note()

    def sheet(self, sheet: Sheet) -> None:
        """Print a table of the report."""
        self.table(sheet.header, sheet.lines, numbers=sheet.numeric - 1)
