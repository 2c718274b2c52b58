"""The study: which trial runs next and how the finished ones did, in one SQLite file.

All processes of a machine that open the same folder share the study, one after the other or concurrently; on network
file systems neither SQLite nor the locks can be relied on. A trial is claimed as long as a process holds its lock
file. The lock is released when its holders exit, so a trial that the study calls running but whose lock is free was
interrupted; the next process to look resumes it.
"""

from __future__ import annotations

import sqlite3
import uuid
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError  # of Optuna's storage

from peftlib.errors import UserError, in_one_line
from peftlib.files import try_lock
from peftlib.sweeps.config import Sweep
from peftlib.sweeps.folder import alone_in, keep_to, open_folder
from peftlib.sweeps.parameters import label, spelled

_CUT_OFF_LIMIT = 3  # times that a run may be interrupted from outside before it counts as failed
_OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass
class Claim:
    """A trial that this process has claimed.

    Attributes:
        values: parameter name -> value.
        lock: held by this process and the run's launcher.
        taken_up: whether the trial was started before and interrupted.
        seen: number of evaluations already reported to the study.
    """

    trial: Trial
    values: dict[str, Any]
    lock: TextIO
    taken_up: bool
    seen: int

    @property
    def number(self) -> int:
        return self.trial.number


class Search:
    """The sweep's study in `folder`, created if it is missing.

    Args:
        seed: for the sampler. A trial's draw depends on the seed, its number and, with bayes, the trials finished or
            running by then; never on how often the sweep was stopped.
        retry_failed: run the points of a grid that have failed once more, and draw as many new points otherwise.

    Raises:
        UserError: the folder holds another sweep, or something else, or cannot be written.
    """

    def __init__(self, sweep: Sweep, folder: Path, seed: int = 0, *, retry_failed: bool = False) -> None:
        self.sweep, self.folder = sweep, folder
        self._seed = seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        open_folder(folder)
        with alone_in(folder):
            keep_to(sweep, folder, seed)
            try:
                self.study = self._open()
            except (SQLAlchemyError, StorageInternalError) as error:
                raise UserError(
                    f"--sweep_dir {folder}: study.db cannot be read ({in_one_line(error.__cause__ or error)}); "
                    "name a new folder"
                ) from error
        self.id: str = self.study.user_attrs["id"]
        failed = (trial for trial in self.trials() if trial.state == TrialState.FAIL)
        self._retried = {trial.number for trial in failed} if retry_failed else set()

    def run_folder(self, number: int) -> Path:
        """Return the output folder of a trial's run; its log is `<folder>.log`."""
        return self.folder / "runs" / f"{number:04d}"

    def trials(self) -> list[FrozenTrial]:
        """Return all trials so far, in order."""
        return self.study.get_trials(deepcopy=False)

    def claim(self) -> Claim | None:
        """Claim the next trial: an interrupted one, else a new one; None if there is none now.

        None is not final while `unfinished`: the trials of other processes may still be interrupted.
        """
        with alone_in(self.folder):
            trials = self.trials()
            for frozen in trials:
                if frozen.state == TrialState.RUNNING and (lock := self._lock(frozen.number)):
                    return self._taken(Trial(self.study, frozen._trial_id), lock, taken_up=True)
            if not any(frozen.state == TrialState.WAITING for frozen in trials):
                if self._enough(trials):
                    return None
                if self.sweep.method == "grid":
                    # Not Optuna's GridSampler, which shuffles and gives two workers the same point. The queue never
                    # holds more than the one point that `ask` takes next.
                    point = self._next_point(trials)
                    self.study.enqueue_trial(_labels(point), user_attrs={"values": point})
            trial = self.study.ask()
            lock = self._lock(trial.number)
            if lock is None:
                raise UserError(f"--sweep_dir {self.folder}: trial {trial.number} is locked by another sweep")
            return self._taken(trial, lock, taken_up=False)

    def unfinished(self) -> bool:
        """Whether any trial is still running or waiting."""
        return any(frozen.state not in _OVER for frozen in self.trials())

    def held(self) -> set[int]:
        """Return the running trials whose locks are held, by this process or another; the others were interrupted."""
        with alone_in(self.folder):  # `claim` must not find a lock held that is only being looked at
            running = [frozen.number for frozen in self.trials() if frozen.state == TrialState.RUNNING]
            locks = {number: self._lock(number) for number in running}
            for lock in filter(None, locks.values()):
                lock.close()
        return {number for number, lock in locks.items() if lock is None}

    def report(self, claim: Claim, values: list[float]) -> bool:
        """Report all evaluations of a run so far; returns whether the run should be stopped early."""
        if self.sweep.hyperband is None:
            return False
        fresh = range(claim.seen, len(values))
        for index in fresh:
            claim.trial.report(values[index], index + 1)
            claim.seen = index + 1
            if claim.trial.should_prune():
                claim.trial.set_user_attr("stopped_at", index + 1)
                return True
        return False

    def complete(self, claim: Claim, value: float) -> None:
        """Record that the run succeeded with this value of the metric."""
        self._tell(claim, TrialState.COMPLETE, value)

    def stopped_early(self, claim: Claim) -> None:
        """Record that the run was stopped early, as `report` asked."""
        self._tell(claim, TrialState.PRUNED)

    def fail(self, claim: Claim, reason: str, tail: str = "") -> None:
        """Record that the run failed: the reason in one line, and the tail of its log."""
        claim.trial.set_user_attr("error", reason)
        claim.trial.set_user_attr("log_tail", tail)
        self._tell(claim, TrialState.FAIL)

    def release(self, claim: Claim, *, blameless: bool) -> bool:
        """Release an interrupted trial, so that the next process to look resumes it.

        Args:
            blameless: this sweep interrupted it itself, which does not count towards the limit.

        Returns:
            False if it has been interrupted too often; nothing is done then.
        """
        times = claim.trial.user_attrs.get("cut_off", 0) + (not blameless)
        if times > _CUT_OFF_LIMIT:
            return False
        claim.trial.set_user_attr("cut_off", times)
        claim.lock.close()
        return True

    def ranked(self) -> list[FrozenTrial]:
        """Return the ended trials: finished ones first, then those stopped early, then failed ones; best first.

        A failed one whose point was tried again is left out.
        """
        order = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        sign = -1 if self.sweep.maximize else 1

        def place(trial: FrozenTrial) -> tuple[int, float, int]:
            return order.index(trial.state), sign * (trial.value if trial.value is not None else 0.0), trial.number

        trials = self.trials()
        latest = {_spelled(trial.user_attrs.get("values", {})): trial.number for trial in trials}.values()
        over = (trial for trial in trials if trial.state in _OVER)
        return sorted((one for one in over if one.state != TrialState.FAIL or one.number in latest), key=place)

    def failures(self) -> int:
        """Count the failed trials."""
        return sum(trial.state == TrialState.FAIL for trial in self.trials())

    def any_ended_well(self) -> bool:
        """Whether any ended trial has a score."""
        return any(trial.value is not None for trial in self.trials() if trial.state in _OVER)

    def _open(self) -> optuna.Study:
        path = self.folder.absolute() / "study.db"
        # The file's name as it is: in a URL, a % or ? in it would stand for something else.
        connect = partial(sqlite3.connect, path, timeout=60, check_same_thread=False)
        storage = RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})
        study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            direction="maximize" if self.sweep.maximize else "minimize",
            load_if_exists=True,
            pruner=self._pruner(),
            sampler=self._sampler(0),
        )
        if "id" not in study.user_attrs:
            study.set_user_attr("id", f"{self.sweep.name}-{uuid.uuid4().hex[:8]}")
        return study

    def _taken(self, trial: Trial, lock: TextIO, *, taken_up: bool) -> Claim:
        if self.sweep.method == "grid":
            values = self._point(self.trials()[trial.number])
            self._show_to_optuna(trial, values)
        else:
            values = {}
            for place, parameter in enumerate(self.sweep.parameters):
                self.study.sampler = self._sampler(trial.number, place)
                values[parameter.name] = parameter.suggest(trial)
        if "values" not in trial.user_attrs:
            trial.set_user_attr("values", values)
        seen = max(self.trials()[trial.number].intermediate_values, default=0)
        return Claim(trial, values, lock, taken_up, seen)

    def _next_point(self, trials: list[FrozenTrial]) -> dict[str, Any]:
        """The first grid point without a trial; the grid may have grown since the first trial."""
        taken = {_spelled(self._point(trial)) for trial in trials if trial.number not in self._retried}
        points = (self.sweep.grid_point(index) for index in range(self.sweep.points))
        return next(point for point in points if _spelled(point) not in taken)

    def _point(self, trial: FrozenTrial) -> dict[str, Any]:
        if "values" in trial.user_attrs:
            return dict(trial.user_attrs["values"])
        # Queued by an earlier version, which did not store the values.
        points = (self.sweep.grid_point(index) for index in range(self.sweep.points))
        return next(point for point in points if _labels(point) == trial.system_attrs["fixed_params"])

    def _show_to_optuna(self, trial: Trial, values: dict[str, Any]) -> None:
        """Record the values for Optuna's own tools. Its choices are fixed: values added to a grid later are missing."""
        known = {name: kind for earlier in self.trials() for name, kind in earlier.distributions.items()}
        for parameter in self.sweep.parameters:
            if parameter.varies:
                choices = known.get(parameter.name) or CategoricalDistribution([label(v) for v in parameter.grid()])
                if isinstance(choices, CategoricalDistribution) and label(values[parameter.name]) in choices.choices:
                    trial.suggest_categorical(parameter.name, choices.choices)

    def _enough(self, trials: list[FrozenTrial]) -> bool:
        size, target = self.sweep.size, self.sweep.target
        if size is not None and len(trials) - len(self._retried) >= size:
            return True
        values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
        return target is not None and any(
            value >= target if self.sweep.maximize else value <= target for value in values
        )

    def _tell(self, claim: Claim, state: TrialState, value: float | None = None) -> None:
        self.study.tell(claim.trial, value, state=state)
        claim.lock.close()

    def _sampler(self, number: int, place: int = 0) -> BaseSampler:
        # A new sampler for each draw: a long-lived one would repeat its draws after every restart.
        seed = int(np.random.SeedSequence([self._seed, number, place]).generate_state(1)[0])
        if self.sweep.method == "bayes":
            # It avoids the points that other runs are trying, here or in another shell; without any it changes nothing.
            return TPESampler(seed=seed, constant_liar=True)
        return RandomSampler(seed=seed)

    def _pruner(self) -> BasePruner:
        settings = self.sweep.hyperband
        if settings is None:
            return NopPruner()
        return HyperbandPruner(settings.first, settings.last or "auto", settings.factor)

    def _lock(self, number: int) -> TextIO | None:
        return try_lock(self.folder / "locks" / f"{number:04d}")


def _spelled(point: dict[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((name, spelled(value)) for name, value in point.items())


def _labels(point: dict[str, Any]) -> dict[str, Any]:
    return {name: label(value) for name, value in point.items()}
