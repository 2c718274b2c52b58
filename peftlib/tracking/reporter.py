"""Report a run's progress to the console, the record on disk and the trackers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from accelerate import Accelerator

from peftlib.distributed import on_main
from peftlib.errors import RunError, UserError, in_one_line
from peftlib.files import write_json
from peftlib.run_files import RESULTS, best_scores
from peftlib.tracking.announcement import facts_of, notes_of
from peftlib.tracking.console import RunConsole
from peftlib.tracking.folder import lock_folder, refuse_busy, refuse_finished, sweep_of_run
from peftlib.tracking.machine import Neighbours, environment, peak_memory
from peftlib.tracking.record import RunRecord
from peftlib.tracking.trackers import end_wandb_run, leave_wandb, start_trackers


class Reporter:
    """Reports from the main process; on the others every call does nothing.

    Args:
        folder: the run's output folder; created by `watching`.
        arguments: flag -> value, for the records.
        trackers: accelerate's names of the trackers, as passed to the `Accelerator`.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, arguments: dict[str, Any], trackers: list[str]) -> None:
        self._accelerator = accelerator
        self._arguments = arguments
        self._trackers = trackers
        self._created = time.perf_counter()
        self._neighbours = Neighbours()
        self._record: RunRecord | None = None
        self._lock: TextIO | None = None
        self._logged_step = -1
        self._resumed: frozenset[str] = frozenset()
        self._silenced: set[str] = set()
        self.tracker_ids: dict[str, str] = {}
        self.console = RunConsole(speaks=accelerator.is_main_process)
        self.folder = folder

    @property
    def facts(self) -> dict[str, Any]:
        """The current content of `run.json`; empty if there is no record."""
        return self._record.facts if self._record is not None else {}

    def claim(self) -> None:
        """Lock the output folder, if it exists, before a checkpoint in it is chosen; on the main process.

        An earlier process of this run may still be writing its last checkpoint.

        Raises:
            UserError: another run is writing there, or the folder cannot be written.
        """
        if self.folder.is_dir():
            try:
                if self._arguments["dry_run"]:
                    refuse_busy(self.folder)
                else:
                    self._lock = lock_folder(self.folder)
            except OSError as error:
                raise UserError(f"--output_dir {self.folder}: cannot be written ({error.strerror})") from error

    def _refuse_folder(self, resumed: dict[str, Any] | None) -> None:
        """Refuse the same as `_open_record`, but write nothing."""
        self.claim()
        if (resumed is None or not resumed["own"]) and not self._arguments["overwrite_output_dir"]:
            refuse_finished(self.folder)

    def _open_record(self, facts: dict[str, Any], resumed: dict[str, Any] | None) -> None:
        self._record = RunRecord(
            self.folder, facts, None if resumed is None else int(resumed["step"]), warn=self.warn, lock=self._lock,
            overwrite=self._arguments["overwrite_output_dir"], branches=resumed is not None and not resumed["own"],
        )  # fmt: skip
        self._logged_step = self._record.logged_step

    @contextmanager
    def watching(self, steps: int, facts: dict[str, Any], resumed: dict[str, Any] | None = None) -> Iterator[None]:
        """Open the records and trackers, announce the run, and close everything when the block ends.

        With `--dry_run` only announce the run.

        Args:
            steps: number of updates in the whole run.
            facts: facts known before the run starts, for `run.json`.
            resumed: manifest of the checkpoint from which the run resumes; None starts from scratch.

        Raises:
            UserError: the output folder cannot be written.
        """
        accelerator, arguments = self._accelerator, self._arguments
        device = accelerator.device
        facts = {"arguments": arguments, "output_dir": str(self.folder), **facts, **environment(device)}
        facts |= {"steps": steps, "processes": accelerator.num_processes}
        if (sweep := sweep_of_run()) is not None:
            facts["sweep"] = sweep
        if arguments["dry_run"]:
            on_main(lambda: self._refuse_folder(resumed))
            self._announce(facts, steps, resumed, "dry run: a few updates are measured, nothing is saved")
            yield
            return
        on_main(lambda: self._open_record(facts, resumed))
        parameters = {f"params/{name}": value for name, value in facts["parameters"].items()}
        with ExitStack() as closing, self._record.running() if self._record is not None else nullcontext():
            # Kept even if a tracker fails to start now, so that the run can find it again when it is resumed.
            self.tracker_ids = {} if resumed is None else dict(resumed["trackers"])
            self._resumed = frozenset(self.tracker_ids)
            notice = self._start_trackers({**arguments, "learning_rate": facts["learning_rate"], **parameters}, sweep)
            if self._trackers:
                closing.push(self._end_trackers)  # runs last, when the record is complete
            self._announce(facts, steps, resumed, notice)
            self._track({**parameters, "train/global_step": 0}, step=0)
            self.update(setup_seconds=time.perf_counter() - self._created)
            self.console.total_steps = steps
            with self.console if self._record is not None else nullcontext():
                yield

    def _start_trackers(self, config: dict[str, Any], sweep: dict[str, str] | None) -> str | None:
        """Start the trackers, or do without them if one fails; returns a notice for the user, if there is any."""
        started, notice = None, None
        with self._never_fatal("starting the trackers"):
            started, notice = start_trackers(
                self._accelerator,
                self._trackers,
                project=self._arguments["project_name"],
                name=self._arguments["run_name"] or self.folder.name,
                folder=self.folder,
                config={**config, **_flat(sweep)},
                group=None if sweep is None else sweep["id"],
                ids=self.tracker_ids,
            )
        if started is None:
            self._trackers, self._accelerator.trackers = [], []  # a partly started one would fail at every log
        else:
            self.tracker_ids |= started
        return notice

    def advance(self, step: int) -> None:
        """Advance the progress bar after an update."""
        self.console.advance(step)

    def log(self, values: dict[str, float], step: int) -> None:
        """Log values at an update. Call it once per update, since trackers drop values for earlier steps."""
        values = {**values, "perf/peak_memory_bytes": peak_memory(self._accelerator.device)}
        self._track(values, step)
        if self._record is not None:
            self._record.log(values, step)
        self.console.log(values, step)

    def notes(self, lines: Iterable[str]) -> None:
        """Print notes for the user before the run begins."""
        for line in lines:
            self.console.note(f"note: {line}")

    def warn(self, line: str) -> None:
        """Print a warning."""
        self.console.warn(line)

    def _end_trackers(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and "wandb" in self._trackers and self._accelerator.is_main_process:
            # W&B only sees exceptions that reach the interpreter's top level; scripts catch most of them before.
            with self._never_fatal("W&B"):
                end_wandb_run(self._accelerator.get_tracker("wandb", unwrap=True), error)
        with self._never_fatal("a tracker"):
            self._accelerator.end_training()
        if self._silenced and "wandb" in self._trackers:
            leave_wandb()

    def update(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        if self._record is not None:
            self._record.update(**facts)

    def finish(self, results: dict[str, Any]) -> None:
        """Write `all_results.json` and show the summary.

        Args:
            results: flat, with the keys of `transformers`' examples.

        Raises:
            RunError: the file cannot be written.
        """
        if self._record is None:
            return
        try:
            write_json(self.folder / RESULTS, results)
        except OSError as error:
            raise RunError(f"{self.folder}: cannot write all_results.json ({error}); free some space there") from error
        self._record.update(results=results, peak_memory_bytes=peak_memory(self._accelerator.device))
        rows = {name.replace("_", " "): f"{value:.4f}" for name, value in best_scores(results).items()}
        rows["best step"] = f"{results['best_eval_step']:,} of {results['global_step']:,}"
        rows["trained"] = f"{results['trainable_params']:,} parameters ({results['trainable_ratio']:.4%})"
        rows["time"] = (
            f"{results['train_runtime']:.1f} s of training, {results['train_samples_per_second']:.0f} samples/s"
        )
        rows["result"] = str(self.folder)
        self.console.facts("summary", rows, panel=True)

    def _track(self, values: dict[str, Any], step: int) -> None:
        """Log to each tracker, unless an earlier process of the run did: they drop repeated steps."""
        for tracker in self._accelerator.trackers:
            if step > self._logged_step or tracker.name not in self._resumed:
                with self._never_fatal("a tracker"):
                    tracker.log(values, step=step)

    @contextmanager
    def _never_fatal(self, who: str) -> Iterator[None]:
        """Turn a tracker's failure into one warning: it must not end the run."""
        try:
            yield
        except Exception as error:
            if who not in self._silenced:
                self._silenced.add(who)
                self.warn(f"{who} failed, the run continues without it: {in_one_line(error, named=True)}")

    def _announce(self, facts: dict[str, Any], steps: int, resumed: dict[str, Any] | None, notice: str | None) -> None:
        step = None if resumed is None else int(resumed["step"])
        for title, rows in facts_of(facts, self._arguments, steps, step, self.folder).items():
            self.console.facts(title, rows)
        self.notes(notes_of(facts, self._arguments, steps, self._neighbours.busy_cores()))
        if notice is not None:
            self.notes([notice])


def _flat(sweep: dict[str, str] | None) -> dict[str, str]:
    return {f"sweep/{name}": value for name, value in (sweep or {}).items()}
