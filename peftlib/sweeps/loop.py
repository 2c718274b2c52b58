"""The sweep's main loop: keep `workers` runs going and report them to the study, until nothing is left to try."""

from __future__ import annotations

import math
import signal
import time

from peftlib.errors import Interrupted, RunError, nearest
from peftlib.processes import CaughtSignals
from peftlib.run_files import record_in
from peftlib.sweeps.console import SweepConsole
from peftlib.sweeps.run import TrialRun, end_early, in_use, reason_of, tail_of, values_in
from peftlib.sweeps.search import Claim, Search

_PAUSE = 0.5  # seconds between polls
#: Give up after this many failures in one call while no run of the sweep has succeeded; W&B's agent has the same limit.
_MOST_FAILURES = 5


def run_sweep(search: Search, console: SweepConsole, workers: int = 1, count: int | None = None) -> None:
    """Run the trials that the study asks for, then print the ranking.

    Args:
        workers: number of concurrent runs.
        count: maximum number of runs to start in this call; None for no limit.

    Raises:
        Interrupted: a signal was received; the next call resumes the unfinished runs.
        RunError: every run of the sweep has failed, or the first ones have and the rest were not tried.
    """
    active: dict[int, tuple[Claim, TrialRun | None]] = {}  # the run is None until it is started
    started, stopped, idle, failed = 0, 0, False, search.failures()
    with CaughtSignals(signal.SIGINT, signal.SIGTERM) as signals, console:
        console.begin(search, workers)
        while True:
            hopeless = search.failures() - failed >= _MOST_FAILURES and not search.any_ended_well()
            while not (hopeless or signals.received) and len(active) < workers and (count is None or started < count):
                claim = search.claim()
                idle = claim is None
                if claim is None:
                    break
                active[claim.number] = (claim, None)
                started += 1
            for number, (claim, run) in list(active.items()):
                if run is not None:
                    if _poll(search, console, claim, run, cut_off=bool(signals.received)):
                        del active[number]
                elif signals.received:
                    search.release(claim, blameless=True)
                    del active[number]
                elif claim.taken_up and in_use(search.run_folder(number)):
                    continue  # only its launcher was killed; the training is about to exit
                elif claim.taken_up and _settled(search, console, claim):
                    del active[number]
                    started -= 1
                else:
                    active[number] = (claim, _start(search, console, claim, workers))
            running = {number: run for number, (_, run) in active.items() if run is not None}
            if len(signals.received) > stopped:
                stopped = len(signals.received)
                _stop(console, list(running.values()), at_once=stopped > 1)
            console.show(search, running)
            enough = hopeless or bool(signals.received) or (count is not None and started >= count)
            # Runs of other processes may still be interrupted, and are resumed here then.
            if not active and (enough or (idle and not search.unfinished())):
                break
            time.sleep(_PAUSE)
    if signals.received:
        number = signals.received[0]
        message = f"stopped by {number.name}; the same command continues from here"
        raise Interrupted(message, 128 + number, by_hand=number is signal.SIGINT)
    console.finish(search)
    logs = f"see the logs in {search.folder / 'runs'}"
    if hopeless:
        raise RunError(f"gave up after {_MOST_FAILURES} failed runs, since none has succeeded; {logs}")
    if not search.unfinished() and not search.any_ended_well():
        raise RunError(f"no run has succeeded; {logs}")


def _stop(console: SweepConsole, runs: list[TrialRun], *, at_once: bool) -> None:
    if runs and not at_once:
        console.note("stopping: the runs are writing checkpoints; interrupt again to kill them at once")
    for run in runs:
        run.stop(signal.SIGKILL if at_once else signal.SIGTERM)


def _settled(search: Search, console: SweepConsole, claim: Claim, status: int = 0, *, told: bool = False) -> bool:
    """Tell the study of a trial whose run has come to its end; returns whether it has, rather than been interrupted.

    Args:
        status: the run's exit status; 0 also if another process waited for it.
        told: whether this process has told it to stop: it may have finished before the signal arrived, which then
            ended its launcher alone.
    """
    folder = search.run_folder(claim.number)
    record = record_in(folder)
    if (told or not status) and record.get("status") == "finished":
        _finished(search, claim)
    elif "stopped_at" in claim.trial.user_attrs:
        end_early(folder, claim.trial.user_attrs["stopped_at"])
        search.stopped_early(claim)
    elif record.get("status") == "failed":
        search.fail(claim, reason_of(folder, status or None), tail_of(folder))
    else:
        return False
    console.ended(search.trials()[claim.number])
    return True


def _start(search: Search, console: SweepConsole, claim: Claim, workers: int) -> TrialRun:
    flags, folder = search.sweep.flags(claim.values), search.run_folder(claim.number)
    at_once = min(workers, search.sweep.size or workers)
    run = TrialRun(search.sweep, flags, folder, claim.lock, (search.id, claim.number), at_once)
    console.started(claim, run)
    return run


def _poll(search: Search, console: SweepConsole, claim: Claim, run: TrialRun, *, cut_off: bool) -> bool:
    """Report a run's progress to the study; returns whether the run has ended.

    Args:
        cut_off: the sweep is being stopped, which may be why the run ended.

    Raises:
        RunError: a run that was to go on has refused to. It stays interrupted: what it lacks may be there again later.
    """
    status = run.poll()
    if status is None:
        if run.stopping is None and search.report(claim, run.values):
            run.stop()
        return False
    if (run.has_begun or run.stopping is not None) and _settled(
        search, console, claim, status, told=run.stopping is not None
    ):
        return True
    reason = reason_of(run.folder, status)
    if cut_off or (run.has_begun and record_in(run.folder).get("status") == "interrupted"):
        # Interrupted from outside: it will be resumed, by this process unless that is being stopped too.
        if not search.release(claim, blameless=cut_off):
            search.fail(claim, f"interrupted too often: {reason}", tail_of(run.folder))
    elif claim.taken_up and not run.has_begun and record_in(run.folder):
        search.release(claim, blameless=True)
        raise RunError(f"run {claim.number} cannot go on: {reason}; once that is mended, the same command continues")
    else:
        search.fail(claim, reason, tail_of(run.folder))
    console.ended(search.trials()[claim.number])
    return True


def _finished(search: Search, claim: Claim) -> None:
    metric = search.sweep.metric
    logged = values_in(search.run_folder(claim.number))
    if metric in logged and math.isfinite(logged[metric][-1]):
        search.complete(claim, logged[metric][-1])
    elif metric in logged:
        search.fail(claim, f"{metric} is not finite at the end of the run")
    else:
        names = ", ".join(sorted(name for name in logged if name.startswith("eval/")))
        hint = nearest(metric, logged)
        search.fail(claim, f"metric.name: the run did not log {metric}{hint} (it logged {names})")
