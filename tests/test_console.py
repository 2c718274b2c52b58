"""What every command says: aligned lines in a pipe, tables on a terminal, and no end of its work for its listener."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlib.console import Console, _that_fit
from peftlib.reporting.console import CompareConsole
from peftlib.sweeps.console import SweepConsole
from peftlib.tracking.console import RunConsole
from tests.conftest import ROOT

LINES = "\n" * 3
TALKS = """
import sys, time
from peftlib.console import Console
console = Console()
for _ in range(3):
    console.warn("the disk is full")
    console.facts("summary", {"accuracy": "0.8"}, panel=True)
    console.table(["method", "accuracy"], [["bitfit", "0.8"]])
    sys.stdin.readline()
print("alive", file=sys.stderr)
"""


def test_a_log_file_on_a_full_disk_does_not_end_the_work():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", TALKS], input=LINES, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (0, "alive\n")


_ANSWER = (
    "from peftlib import cli; from peftlib.console import Console; cli.run(lambda: Console(is_result=True).note('x'))"
)


@pytest.mark.parametrize(
    "words",
    [["-c", _ANSWER], [ROOT / "scripts" / "sweep.py", ROOT / "scripts" / "sweeps" / "quick.yaml", "--dry_run"]],
    ids=["answer", "dry run"],
)
def test_a_result_that_a_full_disk_takes_is_a_failure(words):
    with Path("/dev/full").open("w") as full:
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
        done = subprocess.run([sys.executable, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
    line = "failed: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_pipe_that_nobody_reads_does_not_end_the_work():
    talking = subprocess.Popen(
        [sys.executable, "-c", TALKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert talking.stdout.readline()
    talking.stdout.close()
    _, errors = talking.communicate(LINES, timeout=60)
    assert (talking.returncode, errors) == (0, "alive\n")


@pytest.mark.parametrize("kind", [RunConsole, SweepConsole, CompareConsole])
def test_every_console_is_this_one(kind):
    """What it overrides would not hold what is tested here."""
    assert issubclass(kind, Console)
    assert not {"_print", "note", "warn", "facts", "table"} & vars(kind).keys()


def test_a_warning_says_that_it_is_one(capsys):
    Console().warn("the disk is full [50 %]")
    assert capsys.readouterr().out == "warning: the disk is full [50 %]\n"


def test_no_caller_says_it_again():
    """The prefixes are `Console.warn`'s and `Reporter.notes`'s; the Hub is asked before there is a console."""
    library = ROOT / "peftlib"
    said = [path for path in library.rglob("*.py") if re.search(r"[\"'](warning|note): ", path.read_text(), re.I)]
    assert {path.relative_to(library).as_posix() for path in said} == {"console.py", "hub.py", "tracking/reporter.py"}


def test_a_table_in_a_pipe_is_aligned(capsys):
    Console().table(["method", "accuracy"], [["bitfit", "0.8"], ["lora [r=8]", ""]], title="ranking", numbers=1)
    assert capsys.readouterr().out.splitlines() == ["method      accuracy", "bitfit      0.8", "lora [r=8]"]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(20, 120), st.integers(0, 11))
def test_a_table_that_is_too_wide_continues_below(widths, most, numbers):
    tables = _that_fit(widths, most, numbers)
    assert [place for table in tables for place in table[1:]] == list(range(1, len(widths)))
    for before, table in itertools.pairwise(tables):
        assert table[0] == 0 and 0 < table[1] <= numbers, "text wraps"
        assert sum(widths[place] + 3 for place in [*before, table[1]]) + 1 > most, "no table breaks early"
    for table in tables:
        fits = sum(widths[place] + 3 for place in table) + 1 <= most
        assert fits or len(table) <= 2 or table[-1] > numbers


def test_a_narrow_terminal_shows_whole_numbers(monkeypatch, capsys):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "60")):
        monkeypatch.setenv(name, value)
    header = ["method", *(f"metric {i}" for i in range(6))]
    Console().table(header, [["bitfit", *["0.8123 ± 0.0042"] * 6]], title="ranking", numbers=6)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert out.count("0.8123 ± 0.0042") == 6 and out.count("bitfit") == 3 and out.count("ranking") == 1
    assert max(map(len, out.splitlines())) <= 60


def test_a_table_on_a_terminal_has_its_numbers_on_the_right(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    Console().table(["method", "accuracy"], [["bitfit", "0.8"], ["lora [r=8]", ""]], title="ranking", numbers=1)
    out = capsys.readouterr().out
    assert "ranking" in out and "│ bitfit     │      0.8 │" in out and "│ lora [r=8] │" in out
