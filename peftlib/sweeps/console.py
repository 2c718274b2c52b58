"""Console output of a sweep: a live table on a terminal, a line per event in a pipe, and the final ranking."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState
from rich.live import Live
from rich.table import Table
from rich.text import Text

from peftlib.console import Console
from peftlib.sweeps.checks import ranked_by_last
from peftlib.sweeps.config import Sweep
from peftlib.sweeps.folder import of_other_data

if TYPE_CHECKING:
    from peftlib.sweeps.run import TrialRun
    from peftlib.sweeps.search import Claim, Search

_SHOWN = 12  # trials in the live table
_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "interrupted",
    TrialState.WAITING: "waiting",
}


class SweepConsole(Console):
    """Standard output of a sweep."""

    def __init__(self) -> None:
        super().__init__()
        self._live: Live | None = None
        self._workers = 1
        self._varying: list[str] = []
        self._durations: list[float] = []
        self._began: dict[int, float] = {}

    def __enter__(self) -> SweepConsole:
        if self._pretty:
            # Only `show` refreshes it: forking the runs is safe as long as there is no second thread.
            self._live = Live(console=self._rich, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, search: Search, workers: int) -> None:
        """Print what the sweep is going to run, and how much of it is already done."""
        sweep, self._workers = search.sweep, workers
        self._varying = varying(sweep)
        over = sum(trial.state.is_finished() for trial in search.trials())
        size = f"{sweep.size} runs" if sweep.size is not None else "no run_cap: runs until it is stopped"
        goal = "maximize" if sweep.maximize else "minimize"
        self.note(f"sweep {search.id}: {sweep.method}, {size}, {goal} {sweep.metric}, in {search.folder}")
        early = sweep.hyperband
        if early is not None and early.factor != early.eta:
            self.note(f"early_terminate.eta: {early.eta:g} is rounded to {early.factor}; Optuna needs a whole number")
        if by_last := ranked_by_last(sweep):
            self.note(by_last)
        if unused := [key for key in ("impute", "impute_while_running") if key in sweep.content["metric"]]:
            self.note(f"metric.{unused[0]}: has no effect here; runs without a score are left out of the search")
        if over:
            self.note(f"continuing: {over} runs have already ended")

    def started(self, claim: Claim, run: TrialRun) -> None:
        """Print that a run has started or resumed."""
        self._began[claim.number] = time.monotonic()
        verb = "resumed" if claim.taken_up else "started"
        values = ", ".join(f"{name} {_shown(claim.values[name])}" for name in self._varying)
        self.note(f"run {claim.number} {verb}" + (f": {values}" if values else ""))

    def ended(self, trial: FrozenTrial) -> None:
        """Print that a run has ended, for good or until it is resumed."""
        began = self._began.pop(trial.number, None)
        if began is not None and trial.state == TrialState.COMPLETE:
            self._durations.append(time.monotonic() - began)
        took = f" in {time.monotonic() - began:.0f} s" if began is not None else ""
        self.note(f"run {trial.number} {_STATES[trial.state]}{took}{_outcome(trial)}")

    def show(self, search: Search, active: dict[int, TrialRun]) -> None:
        """Redraw the live table; in a pipe there is none, and the events have been printed."""
        if self._live is None:
            return
        sweep, trials, held = search.sweep, search.trials(), search.held()
        over = [trial for trial in trials if trial.state.is_finished()]
        best = next((trial for trial in search.ranked() if trial.value is not None), None)
        parts = [f"{len(over)} of {sweep.size if sweep.size is not None else '∞'} runs ended"]
        if best is not None:
            parts.append(f"best {sweep.metric} {best.value:.4f} (run {best.number})")
        if self._durations and sweep.size is not None:
            mean = sum(self._durations) / len(self._durations)
            parts.append(f"about {(sweep.size - len(over)) * mean / max(self._workers, len(held)) / 60:.0f} min left")
        table = Table(title=" · ".join(parts), title_justify="left")
        for name in ("run", "state", sweep.metric, "step", *varying(sweep)):
            table.add_column(name)
        for trial in trials[-_SHOWN:]:
            run = active.get(trial.number)
            value = run.values[-1] if run is not None and run.values else trial.value
            elsewhere = "running elsewhere" if trial.number in held else _STATES[trial.state]
            table.add_row(
                str(trial.number),
                "running" if run is not None else elsewhere,
                "" if value is None else f"{value:.4f}",
                "" if run is None else str(run.steps),
                *map(Text, _values(sweep, trial)),
            )
        self._live.update(table, refresh=True)

    def finish(self, search: Search) -> None:
        """Print the ranking, the failures, and the best run's folder."""
        sweep, ranked = search.sweep, search.ranked()
        names = ("rank", "run", "state", sweep.metric, *varying(sweep))
        rows = []
        for rank, trial in enumerate(ranked, start=1):
            value = "" if trial.value is None else f"{trial.value:.4f}"
            rows.append([str(rank), str(trial.number), _STATES[trial.state], value, *_values(sweep, trial)])
        self.table(names, rows, title="ranking")
        failed = [trial for trial in ranked if trial.state == TrialState.FAIL]
        for trial in failed:
            self.note(f"run {trial.number} failed{_outcome(trial)}; {search.run_folder(trial.number)}.log")
        if failed:
            self.note("once that is mended, the same command with --retry_failed runs what has failed again")
        for line in of_other_data({trial.number: search.run_folder(trial.number) for trial in ranked}):
            self.note(line)
        if ranked and ranked[0].state == TrialState.COMPLETE:
            if (scored := sum(trial.state == TrialState.COMPLETE for trial in ranked)) > 1:
                self.note(f"the first is the best of {scored} on the same examples: on others, expect somewhat worse")
            self.note(f"best: {sweep.metric} {ranked[0].value:.4f}, in {search.run_folder(ranked[0].number)}")


def varying(sweep: Sweep) -> list[str]:
    """List the names of the parameters that vary between runs."""
    return [parameter.name for parameter in sweep.parameters if parameter.varies]


def _values(sweep: Sweep, trial: FrozenTrial) -> list[str]:
    values = trial.user_attrs.get("values", {})
    return [_shown(values.get(name, "")) for name in varying(sweep)]


def _shown(value: Any) -> str:
    """Format a parameter's value; a mapping as the flags that it sets."""
    if isinstance(value, dict):
        return " ".join(f"{name}={_shown(entry)}" for name, entry in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _outcome(trial: FrozenTrial) -> str:
    if "error" in trial.user_attrs:
        return f": {trial.user_attrs['error']}"
    if trial.value is not None:
        return f": {trial.value:.4f}"
    if "stopped_at" in trial.user_attrs:
        return f" after {trial.user_attrs['stopped_at']} evaluations"
    return ""
