"""What every command says: aligned lines in a pipe, tables on a terminal, and no end of its work for its listener."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from peftlib.console import Console
from peftlib.reporting.console import CompareConsole
from peftlib.sweeps.console import SweepConsole
from peftlib.tracking.console import RunConsole

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


def test_a_table_in_a_pipe_is_aligned(capsys):
    Console().table(["method", "accuracy"], [["bitfit", "0.8"], ["lora [r=8]", ""]], title="ranking", numbers=1)
    assert capsys.readouterr().out.splitlines() == ["method      accuracy", "bitfit      0.8", "lora [r=8]"]


def test_a_table_on_a_terminal_has_its_numbers_on_the_right(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    Console().table(["method", "accuracy"], [["bitfit", "0.8"], ["lora [r=8]", ""]], title="ranking", numbers=1)
    out = capsys.readouterr().out
    assert "ranking" in out and "│ bitfit     │      0.8 │" in out and "│ lora [r=8] │" in out
