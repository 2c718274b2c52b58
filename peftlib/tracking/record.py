"""A run's record on disk: `run.json` and `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from peftlib.data.tasks import Task
from peftlib.errors import Interrupted, RunError, UserError
from peftlib.files import strict, write_json, write_text
from peftlib.fingerprint import Fingerprint
from peftlib.modeling import ModelSource
from peftlib.run_files import METRICS, RECORD, logged_in
from peftlib.strategies.parameters import ParameterCount
from peftlib.tracking.folder import RUN_FILES, clear_results, lock_folder, refuse_finished, remove_leftovers


class RunRecord:
    """The JSON files of one run, written by the main process only, whatever the tracker.

    Args:
        folder: the output folder; created if missing, and cleared of an earlier run's files.
        facts: the initial content of `run.json`; strictly JSON types, no secrets.
        resumed_step: the update to resume after; `metrics.jsonl` is kept up to there. None starts afresh.
        warn: called when a line or file cannot be written; the run goes on.
        lock: the folder's lock, if it is already held; see `lock_folder`.
        overwrite: also remove an earlier run's checkpoints and other results. Otherwise they stay: even damaged
            checkpoints may be worth a rescue.
        branches: it resumes from a checkpoint in another folder, so what this one holds is an earlier run's.

    Attributes:
        logged_step: the last update logged before the run was resumed; -1 for none.

    Raises:
        UserError: the folder cannot be written, another run is using it, or a finished run would be lost.
    """

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],
        resumed_step: int | None = None,
        warn: Callable[[str], None] = print,
        *,
        lock: TextIO | None = None,
        overwrite: bool = False,
        branches: bool = False,
    ) -> None:
        self.folder = folder
        self.logged_step = self._kept_step = -1
        self._warn = warn
        self._started = time.time()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(folder) if lock is None else lock
            remove_leftovers(folder)
            if resumed_step is None or branches:
                if not overwrite:
                    refuse_finished(folder)
                for name in RUN_FILES:
                    (folder / name).unlink(missing_ok=True)
                if overwrite:
                    clear_results(folder)
            else:
                self.logged_step, self._kept_step = _cut_metrics(folder, resumed_step)
            self._metrics: TextIO = (folder / METRICS).open("a", encoding="utf-8")
            resumed = {} if resumed_step is None else {"resumed_at_step": resumed_step}
            self._facts: dict[str, Any] = {"status": "running", "started": _now(), **resumed, **facts}
            self._write()
        except OSError as error:
            raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror})") from error

    @property
    def facts(self) -> dict[str, Any]:
        """The current content of `run.json`."""
        return dict(self._facts)

    def update(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        self._facts |= facts
        try:
            self._write()
        except OSError as error:
            self._warn(f"run.json could not be written: {error}")

    def complete(self, **facts: Any) -> None:
        """Add facts to `run.json` without which the run is not finished.

        Raises:
            RunError: they cannot be written.
        """
        self._facts |= facts
        try:
            self._write()
        except OSError as error:
            raise RunError(f"{self.folder}: cannot write run.json ({error}); free some space there") from error

    def log(self, values: dict[str, float], step: int) -> None:
        """Append one line to `metrics.jsonl` and flush it, so that readers see it at once.

        After a resume, an evaluation that is repeated already has its line.
        """
        if step <= self._kept_step:
            return
        try:
            self._metrics.write(_as_line({"step": step, **values}))
            self._metrics.flush()
        except OSError as error:
            self._warn(f"metrics.jsonl lacks step {step}: {error}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Mark the run as finished when the block ends, or as failed or interrupted, with the reason."""
        try:
            yield
        except BaseException as error:
            reason = str(error) or type(error).__name__
            status = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
            self.update(status=status, error=" ".join(reason.split())[:1000], ended=_now(), seconds=self._seconds())
            raise
        else:
            self.complete(status="finished", ended=_now(), seconds=self._seconds())
        finally:
            with contextlib.suppress(OSError):  # a full disk has been reported line by line
                self._metrics.close()
            self._lock.close()

    def _seconds(self) -> float:
        return time.time() - self._started

    def _write(self) -> None:
        write_json(self.folder / RECORD, self._facts)


def _cut_metrics(folder: Path, step: int) -> tuple[int, int]:
    """Drop the lines after `step`; returns the last step that was logged before the cut, and after it; -1 for none."""
    lines = list(logged_in(folder))
    kept = [values for values in lines if values["step"] <= step]
    write_text(folder / METRICS, "".join(map(_as_line, kept)))
    last, last_kept = (max((values["step"] for values in some), default=-1) for some in (lines, kept))
    return last, last_kept


def _as_line(values: dict[str, Any]) -> str:
    return json.dumps(strict(values), allow_nan=False) + "\n"


def describe_run(
    source: ModelSource,
    base: Fingerprint,
    task: Task,
    data: dict[str, dict[str, Any]],
    parameters: ParameterCount,
    precision: tuple[str, str],
    learning_rate: float,
    effective_batch_size: int,
) -> dict[str, Any]:
    """Return what is known of a run before it starts, under the keys of `run.json`.

    Args:
        base: fingerprint of the base model.
        data: split -> number of examples, fingerprint and source.
        precision: name, and the reason for the choice.
        learning_rate: peak learning rate.
        effective_batch_size: examples per update, over all processes.
    """
    scores = {} if task.score_range is None else {"score_range": task.score_range}
    own: dict[str, Any] = {} if task.own is None else {"text_columns": task.own.text_columns}
    if task.own is not None and task.own.dataset is not None and Path(task.own.dataset[0]).is_dir():
        own["dataset_folder"] = str(Path(task.own.dataset[0]).resolve())
    return {
        "model": {
            "name": source.name,
            "location": source.location,
            "fingerprint": base.weights,
            "configuration": base.configuration,
        },
        "labels": list(task.labels),
        "problem_type": task.problem_type,
        "metrics": list(task.metrics),
        **scores,
        **own,
        "data": data,
        "parameters": {
            "trainable": parameters.trainable,
            "total": parameters.total,
            "trainable_ratio": parameters.ratio,
        },
        "precision": {"name": precision[0], "reason": precision[1]},
        "learning_rate": learning_rate,
        "effective_batch_size": effective_batch_size,
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
