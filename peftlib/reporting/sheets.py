"""Tables as text: formatted cells for people, and their CSV, LaTeX and Markdown forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftlib.evaluation.statistics import Interval
from peftlib.files import to_csv
from peftlib.reporting.pairs import Pair, p_text
from peftlib.reporting.reference import SEED_REPORT
from peftlib.reporting.runs import Run
from peftlib.reporting.table import COSTS, Row, plus_minus, size


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        numeric: the leading columns that hold numbers, counting the first one, which names the row.
        sources: sources of the numbers marked [1], [2], ..., in that order.
    """

    header: list[str]
    lines: list[list[str]]
    numeric: int
    sources: tuple[str, ...] = ()


def sheet_of(rows: Sequence[Row]) -> Sheet:
    """Format the main table."""
    metrics = _metrics(rows)
    header = ["method", "seeds", *metrics, "trained parameters", *(title for title, _ in COSTS.values()), "saved"]
    lines = [
        [
            row.label,
            str(len(row.seeds)) if row.seeds else "–",
            *(_cell(row, name) for name in metrics),
            f"{row.trainable:,} ({row.ratio:.4%})" if row.trainable else "0",
            *(plus_minus(row.costs[name], write) if name in row.costs else "–" for name, (_, write) in COSTS.items()),
            size(row.saved_bytes),
        ]
        for row in rows
    ]
    return Sheet(header, lines, len(header))


def reference_sheet(rows: Sequence[Row]) -> Sheet:
    """Format our scores beside reported ones, for the methods that have any."""
    metrics = _metrics(rows)
    header = ["method", *(f"our {name}" for name in metrics), "seed report", "published"]
    sources: list[str] = []
    lines = []
    for row in rows:
        if row.seed_report or row.published:
            report = f"{row.seed_report} {_cite(sources, SEED_REPORT)}" if row.seed_report else "–"
            published = [f"{model}: {value} {_cite(sources, source)}" for model, value, source in row.published]
            lines.append([row.label, *(_cell(row, name) for name in metrics), report, "; ".join(published) or "–"])
    return Sheet(header, lines, 1 + len(metrics), tuple(sources))


def _metrics(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _cell(row: Row, metric: str) -> str:
    return plus_minus(row.metrics[metric]) if metric in row.metrics else "–"


def _cite(sources: list[str], source: str) -> str:
    if source not in sources:
        sources.append(source)
    return f"[{sources.index(source) + 1}]"


def rows_csv(rows: Sequence[Row]) -> str:
    """Format the main table as CSV in full precision, each mean with the ends of its interval."""
    measured = [*_metrics(rows), *COSTS]
    header = ["method", "seeds", *(f"{name}_{end}" for name in measured for end in ("mean", "low", "high"))]
    header += ["trainable_params", "trainable_ratio", "saved_bytes", "seed_report", "published", "published_source"]
    lines: list[list[Any]] = []
    for row in rows:
        line: list[Any] = [row.label, " ".join(map(str, row.seeds))]
        for name in measured:
            line += _ends((row.metrics | row.costs).get(name))
        published = "; ".join(f"{model}: {value}" for model, value, _ in row.published)
        sources = "; ".join(dict.fromkeys(source for *_, source in row.published))
        lines.append([*line, row.trainable, row.ratio, row.saved_bytes, row.seed_report, published, sources])
    return to_csv([header, *lines])


def _ends(interval: Interval | None) -> list[float | None]:
    return [None, None, None] if interval is None else [interval.mean, interval.low, interval.high]


def pairs_csv(pairs: Sequence[Pair]) -> str:
    """Format the tests as CSV."""
    header = ["metric", "a", "b", "seeds", "difference", "bootstrap_low", "bootstrap_high", "bootstrap_p", "t_test_p",
              "effect_size_dz", "seeds_needed", "examples_suffice", "mcnemar_p", "p", "holm_p", "claimed"]  # fmt: skip
    lines = []
    for pair in pairs:
        bootstrap, seed_test = pair.bootstrap, pair.seed_test
        resampled = [None] * 3 if bootstrap is None else [bootstrap.low, bootstrap.high, bootstrap.p]
        tested = [None] * 2 if seed_test is None else [seed_test.p, seed_test.effect]
        more = [pair.seeds_needed, None if bootstrap is None else pair.examples_suffice]
        lines.append([pair.metric, pair.a, pair.b, " ".join(map(str, pair.seeds)), pair.difference, *resampled, *tested,
                      *more, pair.mcnemar, pair.p, pair.corrected, pair.claimed])  # fmt: skip
    return to_csv([header, *lines])


def pairs_sheet(pairs: Sequence[Pair]) -> Sheet:
    """Format the tests, narrow enough for a page."""
    header = ["pair", "seeds", "difference", "95 % interval", "p, examples", "p, seeds", "effect d_z", "p, corrected"]
    lines = []
    for pair in pairs:
        bootstrap, seed_test = pair.bootstrap, pair.seed_test
        lines.append([
            f"{pair.a} − {pair.b}", str(len(pair.seeds)), f"{pair.difference:+z.4f}",
            "–" if bootstrap is None else f"{bootstrap.low:+z.4f} to {bootstrap.high:+z.4f}",
            "–" if bootstrap is None else p_text(bootstrap.p),
            "–" if seed_test is None else p_text(seed_test.p),
            "–" if seed_test is None or seed_test.effect is None else f"{seed_test.effect:+.2f}",
            "–" if pair.corrected is None else p_text(pair.corrected),
        ])  # fmt: skip
    return Sheet(header, lines, len(header))


def runs_csv(runs: Sequence[Run]) -> str:
    """Format the runs as CSV, with or without a result."""
    named = list(dict.fromkeys(name for run in runs for name in run.record.get("results") or {}))
    header = ["run", "folder", "problem", "task", "method", "base_model", "seed", "learning_rate", "device", *named]
    lines = []
    for run in runs:
        record, results = run.record, run.record.get("results") or {}
        lines.append([
            run.name, run.folder, run.problem, run.arguments.get("task_name"), run.arguments.get("method"),
            record.get("model", {}).get("name"), run.arguments.get("seed"), record.get("learning_rate"),
            record.get("machine", {}).get("device"), *(results.get(name) for name in named),
        ])  # fmt: skip
    return to_csv([header, *lines])


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--",
        "−": "$-$", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}  # fmt: skip


def to_latex(sheet: Sheet) -> str:
    """Format as a booktabs tabular, with the sources as comments."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(tex_escaped(cell) for cell in cells) + r" \\"

    columns = "l" + "r" * (sheet.numeric - 1) + "l" * (len(sheet.header) - sheet.numeric)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(sheet.header), r"\midrule"]
    body += [*map(line, sheet.lines), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(["% needs \\usepackage{booktabs}", *(f"% {note}" for note in notes_of(sheet)), *body, ""])


def tex_escaped(text: str) -> str:
    """Put `text` on one line and escape what TeX reads as a command."""
    return re.sub(r"[\\~^±–−&%$#_{}]", lambda match: _TEX[match[0]], " ".join(text.split()))


def to_markdown(sheet: Sheet) -> str:
    """Format as a pipe table; cells are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(md_escaped(cell) for cell in cells) + " |"

    rule = ["---"] + ["---:"] * (sheet.numeric - 1) + ["---"] * (len(sheet.header) - sheet.numeric)
    return "\n".join([line(sheet.header), "|" + "|".join(rule) + "|", *map(line, sheet.lines)])


def md_escaped(text: str) -> str:
    """Put `text` on one line and escape what Markdown or HTML reads as markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#&$])", r"\\\1", " ".join(text.split()))


def notes_of(sheet: Sheet) -> list[str]:
    """Format each source as `[1] source`."""
    return [f"[{number}] {source}" for number, source in enumerate(sheet.sources, start=1)]
