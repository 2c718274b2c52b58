"""Signals become stop requests; the previous handlers are restored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from peftlib.training.interruption import EXIT_STATUS, Interruption

ALONE = SimpleNamespace(num_processes=1)


@pytest.mark.parametrize("number", list(EXIT_STATUS))
def test_a_signal_is_remembered_until_it_is_asked_for(number):
    before = signal.getsignal(number)
    with Interruption(ALONE) as interruption:
        assert interruption.requested() is None
        os.kill(os.getpid(), number)
        assert interruption.requested() == number
    assert signal.getsignal(number) == before


def test_the_exit_statuses_are_the_shells():
    assert {number.name: status for number, status in EXIT_STATUS.items()} == {
        "SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 0,
    }  # fmt: skip


def test_the_first_signal_counts():
    with Interruption(ALONE) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # as a launcher that dies may send
        assert interruption.requested() == signal.SIGINT


def test_a_second_sigint_ends_at_once():
    code = (
        "import os, signal, types\n"
        "from peftlib.training.interruption import Interruption\n"
        "with Interruption(types.SimpleNamespace(num_processes=1)):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert "still here" not in done.stdout
