"""The report that compares runs: a folder with tables, plots, a Markdown page and one self-contained HTML file."""

from __future__ import annotations

import base64
import datetime
import itertools
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from peftlib.errors import RunError, UserError, in_one_line
from peftlib.files import write_text
from peftlib.reporting.classes import class_sheet, classes_csv, classes_left_out
from peftlib.reporting.figures import Plot
from peftlib.reporting.folder import put_in_place
from peftlib.reporting.grouping import Comparison, compare
from peftlib.reporting.pairs import METHOD, Pair, compare_pairs
from peftlib.reporting.runs import Run
from peftlib.reporting.sheets import (
    Sheet,
    md_escaped,
    notes_of,
    pairs_csv,
    pairs_sheet,
    reference_sheet,
    rows_csv,
    runs_csv,
    sheet_of,
    to_latex,
    to_markdown,
)  # fmt: skip
from peftlib.reporting.table import Row, plus_minus, rows, without_result
from peftlib.reporting.variants import plain_number

#: What the names of a comparison's tables beside the main one end in.
_OTHER_TABLES = ("references", "classes", "pairs")
#: Maximum number of comparisons with plots; a sweep over a setting would otherwise draw one set of plots per value.
_PLOTTED = 6


@dataclass(frozen=True)
class Section:
    """One comparison with its tables, tests and plots.

    Attributes:
        slug: prefix of its file names.
        references: table of the methods for which others have reported a score.
        pairs: tests of the task's first metric.
        other_pairs: tests of its other metrics.
        plots, left_out: what `write_report` has drawn, and a sentence for each plot without data.
        classes: table of single classes, from `write_report`; None in regression, and without predictions.
    """

    slug: str
    comparison: Comparison
    rows: list[Row]
    sheet: Sheet
    references: Sheet
    pairs: list[Pair]
    other_pairs: list[Pair]
    plots: list[Plot] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    classes: Sheet | None = None

    @property
    def title(self) -> str:
        return f"{self.comparison.task} · {self.comparison.model}"

    @property
    def best(self) -> list[Row]:
        """The row of the contender with the highest standing, and of those with the same."""
        labels = {variant.label for variant in self.comparison.best}
        return [row for row in self.rows if row.label in labels]

    @property
    def unbeaten(self) -> str | None:
        """The constant answer, if its score is as high as the best contender's."""
        score = self._mean(self.best[0])
        constant = (row for row in self.rows if not row.seeds and self.metric in row.metrics)
        return next((row.label for row in constant if self._mean(row) >= score), None)

    @property
    def higher(self) -> list[Row]:
        """The rows with a higher mean than the best contender's, from seeds that are fewer, or that no other has."""
        score = self._mean(self.best[0])
        return [row for row in self.rows if row.seeds and self._mean(row) > score]

    def _mean(self, row: Row) -> float:
        return float(plain_number(row.metrics[self.metric].mean))

    @property
    def classes_left_out(self) -> str | None:
        """A sentence about the classes that the table of single classes leaves out."""
        return classes_left_out(self.comparison)

    @property
    def has_head(self) -> bool:
        """Whether there is a run of the head-only baseline (trained head, frozen encoder)."""
        return any(row.baseline and row.seeds for row in self.rows)

    @property
    def metric(self) -> str:
        return self.comparison.metrics[0]

    @property
    def by_other_metric(self) -> dict[str, list[Pair]]:
        """The tests by metric, without the first metric's."""
        metrics = dict.fromkeys(pair.metric for pair in self.other_pairs)
        return {metric: [pair for pair in self.other_pairs if pair.metric == metric] for metric in metrics}

    @property
    def claims(self) -> list[str]:
        return [pair.words for pair in self.pairs if pair.claimed]

    @property
    def no_claims(self) -> list[str]:
        return [pair.words for pair in self.pairs if not pair.claimed]


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes:
        failed: name, description and problem of each run without a result.
    """

    runs: list[Run]
    sections: list[Section]
    failed: list[tuple[str, str, str]]


def work_out(runs: list[Run]) -> Report:
    """Group, summarise and test the runs; writes nothing.

    Raises:
        UserError: no run has a result.
    """
    comparisons = compare(runs)
    failed = without_result(runs)
    if not comparisons:
        name, _, problem = failed[0]
        raise UserError(f"none of the {len(runs)} runs has a result (the first, {name}: {problem}); name finished runs")
    sections: list[Section] = []
    for comparison in comparisons:
        slug = _free_slug(comparison.task, {section.slug for section in sections})
        table = rows(comparison)
        first, *others = (compare_pairs(comparison, metric) for metric in comparison.metrics)
        best = {variant.label for variant in comparison.contenders()}
        sections.append(
            Section(
                slug=slug,
                comparison=comparison,
                rows=table,
                sheet=sheet_of(table),
                references=reference_sheet([row for row in table if row.label in best and comparison.apart is None]),
                pairs=first,
                other_pairs=[pair for pairs in others for pair in pairs],
            )
        )
    return Report(runs, sections, failed)


def _free_slug(task: str, taken: set[str]) -> str:
    """A section's file name prefix: its task's name, numbered if files of another section would have that name."""
    slug = re.sub(r"[^\w-]+", "-", task)
    names = itertools.chain([slug], (f"{slug}-{number}" for number in itertools.count(2)))
    # tables/runs.csv holds all runs, and the page has a section of failed ones.
    return next(name for name in names if not any(_clash(name, other) for other in (*taken, "runs", "failed")))


def _clash(slug: str, other: str) -> bool:
    return slug == other or any(
        f"{one}-{table}" == two for one, two in ((slug, other), (other, slug)) for table in _OTHER_TABLES
    )


def write_report(report: Report, folder: Path, command: str) -> None:
    """Write the report into the folder, replacing an earlier one.

    Args:
        command: the command line as typed, for the report's footer.

    Raises:
        UserError: the folder holds files that no report has written, or is read-only.
        RunError: writing failed, for instance on a full disk.
    """
    try:
        _write_report(report, folder, command)
    except OSError as error:  # those of Pillow, from writing a plot, have no strerror
        reason = error.strerror or in_one_line(error)
        way = "make room there, or name another folder"
        raise RunError(f"--output_dir {folder}: cannot be written ({reason}); {way}") from error


def _write_report(report: Report, folder: Path, command: str) -> None:
    # Imported here: the table on the terminal needs no matplotlib.
    from peftlib.reporting.class_plots import draw_classes
    from peftlib.reporting.plots import draw_scores
    from peftlib.reporting.weight_plots import draw_weights

    with tempfile.TemporaryDirectory(prefix="report-") as staged:
        # Written to a temporary folder first: an error while drawing leaves the earlier report intact.
        place = Path(staged)
        for name in ("tables", "plots"):
            (place / name).mkdir()
        report = replace(
            report, sections=[replace(one, classes=class_sheet(one.comparison)) for one in report.sections]
        )
        for section in report.sections:
            _write_tables(section, place / "tables")
        write_text(place / "tables" / "runs.csv", runs_csv(report.runs))
        by_size = sorted(report.sections, key=lambda section: len(section.comparison.runs), reverse=True)
        drawn: dict[str, Section] = {}
        for section in by_size[:_PLOTTED]:
            scores, no_scores = draw_scores(section.comparison, section.rows, place / "plots", section.slug)
            weights, no_weights = draw_weights(section.comparison, place / "plots", section.slug)
            classes, no_classes = draw_classes(section.comparison, place / "plots", section.slug)
            drawn[section.slug] = replace(
                section, plots=[*scores, *classes, *weights], left_out=[*no_scores, *no_classes, *no_weights]
            )
        for section in by_size[_PLOTTED:]:
            reason = f"Plots are drawn only for the {_PLOTTED} comparisons with the most runs."
            drawn[section.slug] = replace(section, left_out=[reason])
        report = replace(report, sections=[drawn[section.slug] for section in report.sections])
        content = {
            "report": report,
            "command": command,
            "made": datetime.date.today().isoformat(),
            "facts": facts_of(report),
            "method_of_tests": METHOD,
        }
        for name in ("report.md", "index.html"):
            write_text(place / name, _templates().get_template(name).render(content))
        put_in_place(place, folder)


def facts_of(report: Report) -> dict[str, str]:
    """Return the machines, library versions and commits of the runs."""
    records = [run.record for section in report.sections for run in section.comparison.runs]
    machines = {str(record.get("machine", {}).get("device", "unknown")) for record in records}
    named = ("torch", "transformers", "peft")
    versions = {f"{name} {record.get('versions', {}).get(name)}" for record in records for name in named}
    commits = {_commit(record.get("git") or {}) for record in records}
    return {"machine": ", ".join(sorted(machines)), "versions": ", ".join(sorted(versions)),
            "commit": ", ".join(sorted(commits))}  # fmt: skip


def _commit(git: dict[str, Any]) -> str:
    """The short commit hash, marked if the checkout had changes, since the commit alone is then not what ran."""
    return str(git.get("commit", "unknown"))[:12] + (" and uncommitted changes" if git.get("changed") else "")


def _write_tables(section: Section, folder: Path) -> None:
    write_text(folder / f"{section.slug}.csv", rows_csv(section.rows))
    write_text(folder / f"{section.slug}.tex", to_latex(section.sheet))
    if section.references.lines:
        write_text(folder / f"{section.slug}-references.tex", to_latex(section.references))
    if section.classes is not None:
        write_text(folder / f"{section.slug}-classes.csv", classes_csv(section.comparison))
    if section.pairs:
        write_text(folder / f"{section.slug}-pairs.csv", pairs_csv([*section.pairs, *section.other_pairs]))


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("peftlib.reporting"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"md": md_escaped, "markdown_table": to_markdown, "notes": notes_of, "data_uri": _data_uri,
                            "pairs_sheet": pairs_sheet, "plus_minus": plus_minus}  # fmt: skip
    return environment


def _data_uri(plot: Plot) -> Markup:
    return Markup("data:image/svg+xml;base64,") + base64.b64encode(plot.svg.encode()).decode()
