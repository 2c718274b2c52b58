"""One run of a sweep: a subprocess, monitored through the files that it writes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, TextIO

from peftlib.errors import RunError
from peftlib.files import try_lock, write_json
from peftlib.processes import RUNS_AT_ONCE, end_with_parent
from peftlib.run_files import CHECKPOINTS, LOCK, METRICS, RECORD, last_words, logged_in, record_in
from peftlib.sweeps.command import expand, search_path
from peftlib.sweeps.config import Sweep

_TAIL_LINES = 20
_PATIENCE = 120.0  # seconds that a stopped run has to write its checkpoint


class TrialRun:
    """A trial's subprocess, started on construction; its output goes to `<folder>.log`.

    Args:
        flags: flag -> value of the trial's parameters.
        folder: the run's output folder; if it holds an earlier part of this run, the run resumes.
        lock: the trial's lock. The subprocess (with `accelerate launch`, the launcher) inherits it and holds it too.
        identity: the sweep's id and the trial's number.
        at_once: number of runs that share the machine's cores.

    Raises:
        RunError: the command cannot be started; the trial is free to be claimed again.

    Attributes:
        stopping: the last signal sent to the run, if any.
    """

    def __init__(
        self,
        sweep: Sweep,
        flags: dict[str, Any],
        folder: Path,
        lock: TextIO,
        identity: tuple[str, int],
        at_once: int = 1,
    ) -> None:
        self.folder, self.metric = folder, sweep.metric
        self.values: list[float] = []
        self.steps = 0
        self.stopping: signal.Signals | None = None
        self._before = _version(folder / RECORD)
        self._place = (0, 0)  # inode of the metrics file, and the offset up to which it was read
        self._deadline = float("inf")
        self.command = expand(sweep, {**flags, "output_dir": str(folder), "resume_from_checkpoint": "auto"}, folder)
        with log_of(folder).open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    self.command,
                    env=_environment(sweep, identity, at_once),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C at the terminal reaches the sweep only
                    pass_fds=(lock.fileno(),),
                    preexec_fn=end_with_parent,  # safe here: there is one thread
                )
            except OSError as error:  # its program was there when the sweep started
                raise RunError(f"command: {self.command[0]} cannot be started ({error.strerror})") from error

    def poll(self) -> int | None:
        """Read new metrics; return the exit status once all of the run's processes have exited, else None."""
        status = self._process.poll()
        self._read_metrics()
        if time.monotonic() > self._deadline:
            self._signal(signal.SIGKILL)
        # A launcher killed by a signal exits while the training is still writing its checkpoint.
        return None if status is None or in_use(self.folder) else status

    @property
    def has_begun(self) -> bool:
        """Whether it has opened its record; until then, that in its folder is of an earlier part of the run."""
        return _version(self.folder / RECORD) != self._before

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal the run to stop: it writes a checkpoint, and is killed if that takes too long."""
        if self.stopping is None:
            self._deadline = time.monotonic() + _PATIENCE
        self.stopping = number
        self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # it has just exited

    def _read_metrics(self) -> None:
        path = self.folder / METRICS
        if not path.exists():
            return
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            which, place = self._place
            if which != facts.st_ino or facts.st_size < place:  # a resumed run cuts what it will log again
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


def _environment(sweep: Sweep, identity: tuple[str, int], at_once: int) -> dict[str, str]:
    project = {"WANDB_PROJECT": sweep.project} if sweep.project and "WANDB_PROJECT" not in os.environ else {}
    own = {"PATH": search_path(), "PEFTLIB_SWEEP_ID": identity[0], "PEFTLIB_TRIAL": str(identity[1])}
    return {**os.environ, **project, **own, RUNS_AT_ONCE: str(at_once)}


def _version(path: Path) -> tuple[int, int] | None:
    """Identify what is in a file that is replaced whenever it is written; None if there is none."""
    with contextlib.suppress(FileNotFoundError):
        facts = path.stat()
        return facts.st_ino, facts.st_mtime_ns
    return None


def in_use(folder: Path) -> bool:
    """Whether a training process is writing into the folder."""
    if not (folder / LOCK).exists():
        return False
    lock = try_lock(folder / LOCK)
    if lock is not None:
        lock.close()
    return lock is None


def values_in(folder: Path) -> dict[str, list[float]]:
    """Read a finished run's `metrics.jsonl` as metric -> all its values, in order; NaN for what was not finite."""
    logged: dict[str, list[float]] = {}
    for values in logged_in(folder):
        for name, value in values.items():
            logged.setdefault(name, []).append(math.nan if value is None else float(value))
    return logged


def log_of(folder: Path) -> Path:
    """Return the path of the run's output log."""
    return folder.with_suffix(".log")


def tail_of(folder: Path) -> str:
    """Return the last lines of the run's output log."""
    lines = log_of(folder).read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(line.rstrip() for line in lines[-_TAIL_LINES:])


def reason_of(folder: Path, status: int | None) -> str:
    """Say in one line why a run failed: its own error message if it left one, and its exit status if that is known."""
    record, words = record_in(folder), last_words(tail_of(folder).splitlines())
    reason = words.partition(": ")[2] if words else ""
    if record.get("status") == "failed":
        reason = record["error"]
    if status is None:
        return reason
    way = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{reason} ({way})" if reason else way


def end_early(folder: Path, evaluations: int) -> None:
    """Remove the checkpoints of a run that was stopped early, and say so in its record: it will not be resumed."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    record = record_in(folder)
    if record and record.get("status") != "failed":  # that reason is its own
        why = f"stopped early by the sweep, after {evaluations} evaluation{'' if evaluations == 1 else 's'}"
        with contextlib.suppress(OSError):  # a full disk, say: the study knows
            write_json(folder / RECORD, record | {"status": "interrupted", "error": why})
