"""One run of a sweep: a real command in processes of its own, watched through the files that it writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, TextIO

from peftlib.errors import RunError
from peftlib.processes import end_with_parent
from peftlib.run_files import last_words, logged_in, record_in
from peftlib.sweeps.command import expand, search_path
from peftlib.sweeps.config import Sweep
from peftlib.sweeps.folder import try_lock

_TAIL_LINES = 20
_PATIENCE = 120.0  # seconds that a stopped run has for its checkpoint


class Run:
    """Starts when made; its output goes to `<folder>.log`.

    Args:
        flags: the values of the parameters.
        folder: the run's own output folder. One that holds an earlier part of this run is gone on with.
        lock: the trial's; what is started holds it too, for as long as it lives (of `accelerate launch`, the launcher).
        identity: the sweep's id, and the number of the trial.

    Raises:
        RunError: the command cannot be started; the trial is left to whoever looks next.

    Attributes:
        stopping: the signal that was sent, if any.
    """

    def __init__(
        self, sweep: Sweep, flags: dict[str, Any], folder: Path, lock: TextIO, identity: tuple[str, int]
    ) -> None:
        self.folder, self.metric = folder, sweep.metric
        self.values: list[float] = []
        self.steps = 0
        self.stopping: signal.Signals | None = None
        self.started = time.monotonic()
        self._place = (0, 0)  # the file that was read, and how far
        self._deadline = float("inf")
        self.command = expand(sweep, {**flags, "output_dir": str(folder), "resume_from_checkpoint": "auto"}, folder)
        with log_of(folder).open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self.command,
                    env=_environment(sweep, identity),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C at the terminal is the sweep's to handle
                    pass_fds=(lock.fileno(),),
                    preexec_fn=end_with_parent,  # safe here: there is one thread
                )
            except OSError as error:  # its program was there when the sweep began
                raise RunError(f"command: {self.command[0]} cannot be started ({error.strerror})") from error

    def poll(self) -> int | None:
        """The exit status once all of the run's processes are gone, else None."""
        status = self._process.poll()
        self._read_metrics()
        if time.monotonic() > self._deadline:
            self._signal(signal.SIGKILL)
        # A launcher that dies of a signal leaves while the training is still writing its checkpoint.
        return None if status is None or in_use(self.folder) else status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask the run to end; it writes a checkpoint and is killed when that takes too long."""
        if self.stopping is None:
            self._deadline = time.monotonic() + _PATIENCE
        self.stopping = number
        self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # it has just ended

    def _read_metrics(self) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            which, place = self._place
            if which != facts.st_ino or facts.st_size < place:  # a run that goes on cuts what it will log again
                place, self.values = 0, []
            file.seek(place)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._place = (facts.st_ino, place + len(whole))
        for line in whole.splitlines():
            logged = json.loads(line)
            self.steps = int(logged["step"])
            if logged.get(self.metric) is not None:
                self.values.append(float(logged[self.metric]))


def _environment(sweep: Sweep, identity: tuple[str, int]) -> dict[str, str]:
    project = {"WANDB_PROJECT": sweep.project} if sweep.project and "WANDB_PROJECT" not in os.environ else {}
    own = {"PATH": search_path(), "PEFTLIB_SWEEP_ID": identity[0], "PEFTLIB_TRIAL": str(identity[1])}
    return {**os.environ, **project, **own}


def in_use(folder: Path) -> bool:
    """Whether a training is writing into the folder."""
    if not (folder / ".lock").exists():
        return False
    lock = try_lock(folder / ".lock")
    if lock is not None:
        lock.close()
    return lock is None


def values_in(folder: Path) -> dict[str, list[float]]:
    """Metric -> all its values in a finished run's `metrics.jsonl`."""
    logged: dict[str, list[float]] = {}
    for values in logged_in(folder):
        for name, value in values.items():
            if value is not None:
                logged.setdefault(name, []).append(float(value))
    return logged


def log_of(folder: Path) -> Path:
    """The file with what the run printed."""
    return folder.with_suffix(".log")


def tail_of(folder: Path) -> str:
    """The last lines of what it printed."""
    lines = log_of(folder).read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line.rstrip() for line in lines[-_TAIL_LINES:])


def reason_of(folder: Path, status: int) -> str:
    """One line that says why a run failed: its own words if it has left any, else its exit status."""
    way = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    record = record_in(folder)
    if record.get("status") == "failed":
        return f"{record['error']} ({way})"
    words = last_words(tail_of(folder).splitlines())
    return f"{words.partition(': ')[2]} ({way})" if words else way


def forget_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that will not go on."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
