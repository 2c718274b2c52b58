"""How a script ends: its exit status, and one line from one process."""

from __future__ import annotations

import copy
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from peftlib import cli, distributed
from peftlib.errors import Ending, Interrupted, RunError, UserError


def raising(error):
    def main():
        if error is not None:
            raise error

    return main


ENDINGS = [
    (UserError("--seed x: no number"), 2, "error: --seed x: no number\n"),
    (RunError("the loss is nan"), 1, "failed: the loss is nan\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
]


@pytest.mark.parametrize(("error", "status", "line"), ENDINGS)
def test_an_ending_has_its_status_and_one_line_on_stderr(error, status, line, capsys, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.run(raising(error))
    assert caught.value.code == status
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(("error", "status", "line"), ENDINGS)
@pytest.mark.parametrize(("rank", "local_rank"), [(0, 0), (1, 1), (3, 3), (4, 0)])
@pytest.mark.parametrize("shared", [False, True])
def test_the_first_process_of_a_node_speaks_at_once_and_the_others_if_they_are_left(
    error, status, line, rank, local_rank, shared, capsys, monkeypatch
):
    """The launcher ends all with the first that has ended; one that is still there may have failed alone."""
    said_before: list[str] = []
    monkeypatch.setattr(error, "shared", shared, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: said_before.append(capsys.readouterr().err))
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    with pytest.raises(SystemExit) as caught:
        cli.run(raising(error))
    assert caught.value.code == status
    said = [*said_before, capsys.readouterr().err]
    alone = f"process {rank}: {line}" if isinstance(error, Ending) and not shared else ""
    assert said == {0: [line], 1: ["", alone], 3: ["", alone], 4: [line, ""]}[rank]


def test_a_stop_travels_between_processes():
    stop = copy.copy(Interrupted("stopped by SIGTERM", 143, by_hand=True))  # the way that pickling takes
    assert (str(stop), stop.status, stop.by_hand) == ("stopped by SIGTERM", 143, True)


def test_a_run_that_ends_well_says_nothing(capsys):
    cli.run(raising(None))
    assert capsys.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("pass", 0, ""),
        ("raise errors.RunError('a')", 1, "failed: a\n"),
        ("raise errors.UserError('a')", 2, "error: a\n"),
        ("raise errors.UserError('a', 'b')", 2, "error: a\nerror: b\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_the_shell_sees_the_status(body, status, said):
    code = f"from peftlib import cli, errors\ndef main():\n    {body}\ncli.run(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_what_a_script_imports_is_not_collected_and_the_rest_is_as_ever():
    kept = gc.get_freeze_count()
    with pytest.raises(ImportError), cli.importing():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count() > kept


@pytest.fixture
def triton_when_asked(monkeypatch):
    """What `sys.modules` has as Triton each time that torch._dynamo is imported, which fails."""
    found = []

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "torch._dynamo":
                found.append(sys.modules.get("triton", "to be found"))
                raise ImportError(name)

    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    return found


def test_triton_is_hidden_from_torch_alone(triton_when_asked):
    with pytest.raises(ImportError, match=r"torch\._dynamo"), cli.importing_torch():
        pass
    assert triton_when_asked == [None]
    assert "triton" not in sys.modules and gc.isenabled()


def test_triton_is_not_hidden_where_there_is_a_gpu(triton_when_asked, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with cli.importing_torch():
        pass
    assert triton_when_asked == []


def test_triton_that_was_imported_stays(triton_when_asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", sys)
    with cli.importing_torch():
        pass
    assert triton_when_asked == [] and sys.modules["triton"] is sys


def test_a_terminal_without_letters_for_a_name_ends_nothing():
    """LC_ALL=C, say, and a class called é."""
    body = "from peftlib import cli; cli.run(lambda: print('caf\\u00e9'))"
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"caf\\xe9\n", b"")


def test_windows_is_refused_at_once(capsys, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as caught:
        cli.run(raising(ZeroDivisionError()))
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: Windows is not supported; run it in WSL (wsl --install)\n")


@pytest.mark.parametrize(
    ("world", "here", "told"), [(None, None, False), ("2", "2", False), ("2", None, False), ("4", "2", True)]
)
def test_other_nodes_alone_are_told_of_wrong_input(world, here, told, capsys, monkeypatch):
    for name, value in (("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", here)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    heard: list[UserError] = []
    monkeypatch.setattr(distributed, "tell", heard.append)
    error = UserError("--seed x: no number")
    with pytest.raises(SystemExit) as caught:
        cli.run(raising(error))
    assert caught.value.code == 2 and capsys.readouterr().err == "error: --seed x: no number\n"
    assert heard == [error] * told


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_later_signals_change_neither_the_status_nor_the_end_of_a_run_that_has_stopped(rank, number):
    """Each thread of a dying launcher may bring one. The second process is waiting for the first meanwhile."""
    code = (
        "import atexit, os, time\nfrom peftlib import cli\nfrom peftlib.errors import Interrupted\n"
        "atexit.register(lambda: (time.sleep(1 if os.environ['RANK'] == '0' else 0), print('cleaned up')))\n"
        "cli._PATIENCE = 1\n"
        "def main(): raise Interrupted('stopped by SIGTERM', 143, by_hand=False)\n"
        "cli.run(main)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        started = time.monotonic()
        while not ignores(run.pid, signal.SIGUSR1):  # the last one that it sets
            assert run.poll() is None and time.monotonic() < started + 60
            time.sleep(0.01)
        run.send_signal(number)
        said = run.communicate(timeout=60)
        expected = "stopped by SIGTERM\n" if rank == "0" else ""
        assert (run.returncode, *said) == (143, "cleaned up\n", expected)
    finally:
        run.kill()


def ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal, see proc(5)."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigIgn"], 16) >> (number - 1) & 1)
