"""What a user sees: plain lines in a pipe, a bar and tables on a terminal."""

from __future__ import annotations

import pytest

from peftlib.tracking.console import RunConsole

VALUES = {
    "train/loss": 0.54321,
    "train/samples_per_second": 123.4,
    "train/epoch": 1.5,
    "train/learning_rate": 0.00123,
}
SCORES = {"eval/accuracy": 0.8125, "eval/best_accuracy": 0.82}
ESCAPE = "\x1b"


@pytest.fixture
def pipe(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def terminal(monkeypatch):
    """Make rich draw as on an interactive terminal of 100 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


def show_a_run(console):
    """Show everything that a console can show, in the order of a run."""
    console.note("a note with [brackets] and 123")
    console.facts("run", {"task": "mrpc", "long": "x" * 150})
    console.total_steps = 20
    with console:
        for step in range(1, 11):
            console.advance(step)
        console.log(VALUES, 10)
        console.log(VALUES | SCORES, 11)
        console.log(SCORES, 12)
    console.facts("summary", {"best accuracy": "0.8200"}, panel=True)


def test_a_pipe_gets_plain_lines(pipe, capsys):
    show_a_run(RunConsole())
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "a note with [brackets] and 123",
        "run",
        "  task: mrpc",
        f"  long: {'x' * 150}",  # not wrapped, so that grep finds whole lines
        "step 10/20  epoch 1.50  loss 0.5432  123 samples/s  lr 1.23e-03",
        "step 11/20  epoch 1.50  loss 0.5432  123 samples/s  lr 1.23e-03",
        "evaluation at step 11  accuracy 0.8125  best accuracy 0.8200",
        "evaluation at step 12  accuracy 0.8125  best accuracy 0.8200",
        "summary",
        "  best accuracy: 0.8200",
    ]


def test_a_pipe_gets_no_control_codes(pipe, capsys):
    show_a_run(RunConsole())
    out = capsys.readouterr().out
    assert [character for character in out if not (character.isprintable() or character == "\n")] == []


def test_a_terminal_gets_a_bar_with_loss_rate_and_eta(terminal, capsys):
    console = RunConsole()
    console.total_steps = 20
    with console:
        console.advance(10)
        console.log(VALUES, 10)
    out = capsys.readouterr().out
    assert ESCAPE in out
    for part in ("training", "10/20", "loss 0.5432  123 samples/s", "ETA"):
        assert part in out
    assert "step 10/20" not in out  # the bar shows it


def test_a_terminal_gets_tables_a_panel_and_the_scores(terminal, capsys):
    show_a_run(RunConsole())
    out = capsys.readouterr().out
    for part in ("a note with [brackets] and 123", "mrpc", "evaluation at step 11", "summary", "0.8200", "╭", "╰"):
        assert part in out


@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_other_processes_say_nothing(where, request, capsys):
    request.getfixturevalue(where)
    console = RunConsole(speaks=False)
    show_a_run(console)
    assert capsys.readouterr().out.replace(ESCAPE + "[?25l", "").replace(ESCAPE + "[?25h", "").strip() == ""


def test_the_bar_is_taken_down_when_the_run_fails(terminal, capsys):
    console = RunConsole()
    with pytest.raises(ZeroDivisionError), console:
        raise ZeroDivisionError
    assert capsys.readouterr().out.endswith(f"{ESCAPE}[?25h")  # the cursor is visible again
    console.advance(1)  # the bar is gone
    console.log(VALUES, 1)
    assert "step 1/0" in capsys.readouterr().out
