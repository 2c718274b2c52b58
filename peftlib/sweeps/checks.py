"""Checks of a sweep's YAML, made before its first run starts."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from peftlib.data.tasks import DEFAULT_TASK, LOSS, METRICS_OF_OWN_DATA, MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS
from peftlib.errors import UserError, nearest
from peftlib.flags import TAKES_JSON, as_json

if TYPE_CHECKING:
    from peftlib.sweeps.config import Sweep
    from peftlib.sweeps.parameters import Parameter

# What is better when smaller; every metric is better when larger.
_LOSSES = (f"eval/{LOSS}", f"eval/best_{LOSS}", f"train/{LOSS}")
# Runs of a grid that are checked one by one: the flags of one take 4 ms.
_MOST_RUNS = 500
# Set by the sweep itself: each run has its own output folder, and resumes if it was interrupted.
_OWN_FLAGS = ("output_dir", "resume_from_checkpoint")
# Flags that the runs of a sweep cannot have -> why.
_SINGLE_RUN_FLAGS = {
    "dry_run": "trains nothing, so the run would have no score; use sweep.py's own --dry_run",
    "push_to_hub": "would push every run; push the best one afterwards, with scripts/export.py",
}


def check_plain(value: Any, place: str = "") -> None:
    """Refuse what JSON cannot hold (dates, sets, keys that are no text): the study and W&B's server store JSON.

    Args:
        place: the value's dotted path in the file, for the message.

    Raises:
        UserError: names the path and the value.
    """
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise UserError(f"{place.lstrip('.') or 'the file'}: {key!r} is not a name; put it in quotes")
            check_plain(entry, f"{place}.{key}")
    elif isinstance(value, list):
        for entry in value:
            check_plain(entry, place)
    elif value is not None and not isinstance(value, (str, int, float)):
        what = "a date" if isinstance(value, datetime.date) else f"a {type(value).__name__}"
        raise UserError(f"{place.lstrip('.')}: YAML reads {value} as {what}; put it in quotes")


def check_flags(sweep: Sweep, known: Sequence[str], check: Callable[[list[str]], object]) -> None:
    """Check that train.py accepts the values of every parameter, and that no flag is set twice.

    Args:
        known: train.py's flags, with their dashes.
        check: parses a train.py command line; raises UserError.

    Raises:
        UserError: names the parameter.
    """
    names = [name for name in known if name not in ("--help", "--config", "--_wandb")]
    places: dict[str, str] = {}
    for parameter in sweep.parameters:
        if sweep.method == "grid":
            parameter.grid()
        place, flags = f"parameters.{parameter.name}", set()
        for value in parameter.extremes():
            for flag, single in leaves([(parameter.flag, value)]):
                spelled = f"--{flag.replace('-', '_')}"
                if spelled.strip("-") in _OWN_FLAGS:
                    raise UserError(f"{place}: {spelled} is set by the sweep itself; leave it out, see --sweep_dir")
                if spelled.strip("-") in _SINGLE_RUN_FLAGS:
                    raise UserError(f"{place}: {spelled} {_SINGLE_RUN_FLAGS[spelled.strip('-')]}")
                if spelled not in known:
                    _try(check, spelled, single, place)  # it says what the flag is called there
                if spelled not in names:
                    raise UserError(f"{place}: {spelled} cannot be set in a sweep; leave it out")
                flags.add(spelled)
                if single is None or isinstance(single, list):
                    way = "leave it out" if single is None else "write it as one string, separated by commas"
                    raise UserError(f"{place}: {spelled}: {single} is not a valid value of a flag; {way}")
                _try(check, spelled, single, place)
        for flag in flags:
            if flag in places:
                raise UserError(f"{place}: {flag} is also set by {places[flag]}; keep one")
            places[flag] = place


def _try(check: Callable[[list[str]], object], flag: str, value: Any, place: str) -> None:
    """Whether train.py takes the flag with this value."""
    try:
        check([f"{flag}={value}"])
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def check_metric(sweep: Sweep) -> None:
    """Refuse a metric that the task does not log, which would otherwise show only after a whole run.

    And a metric to choose the best state by that the task is not scored by: each of its runs would fail at its start.

    And a goal that looks for the worst score: without one, W&B minimises.

    Raises:
        UserError: names the metrics that it logs, or the other goal.
    """
    own = _is_own_data(sweep)
    pairs = set(_together(sweep, "task_name", "metric_for_best_model"))
    for name in sorted({name for name, _ in pairs}, key=str):
        task = TASKS[name or DEFAULT_TASK]
        metrics = _metrics(sweep, name)
        known = (*metrics, LOSS)
        by = {metric for other, metric in pairs if other == name}
        whose = f"task {task.name}" + ("" if name else " (the default: no task_name)")
        whose = "a task of your own data" if own else whose
        for metric in sorted(by - {None, *known}, key=str):
            place = next(one.name for one in sweep.parameters if metric in _values(one, "metric_for_best_model"))
            raise UserError(
                f"parameters.{place}: --metric_for_best_model {metric}: {whose} does not have it"
                f"{nearest(str(metric), known)} (known: {', '.join(known)})"
            )
        if sweep.metric.startswith(("train/", "perf/")):
            continue
        best = {metric or metrics[0] for metric in by}  # a run logs one of them
        logged = {f"eval/{metric}" for metric in (*known, *(f"best_{one}" for one in best if len(best) == 1))}
        if sweep.metric not in logged:
            hint = nearest(sweep.metric, sorted(logged))
            raise UserError(
                f"metric.name: {whose} does not log {sweep.metric}{hint} (known: {', '.join(sorted(logged))})"
            )
    is_loss = sweep.metric in _LOSSES
    if (is_loss or sweep.metric.startswith("eval/")) and sweep.maximize == is_loss:
        better, goal = ("smaller", "minimize") if sweep.maximize else ("larger", "maximize")
        raise UserError(f"metric.goal: {sweep.metric} is better when {better}; write goal: {goal}")


def ranked_by_last(sweep: Sweep) -> str | None:
    """Return a line if the sweep ranks runs by their last evaluation, not that of what they save; else None."""
    name = sweep.metric.removeprefix("eval/")
    if name == sweep.metric or name.startswith("best_"):
        return None
    pairs = _together(sweep, "task_name", "metric_for_best_model")
    best = {metric or _metrics(sweep, task)[0] for task, metric in pairs}
    way = "" if best == {name} else f", with metric_for_best_model: {name}"
    return (
        f"metric.name: {sweep.metric} is that of a run's last evaluation, while it saves its best state; "
        f"eval/best_{name} ranks by that{way}"
    )


def check_runs(sweep: Sweep, check_run: Callable[[list[str]], object]) -> None:
    """Check that the flags of a grid's runs fit together, of the first ones if there are very many.

    Args:
        check_run: parses all flags of a run; raises UserError.

    Raises:
        UserError: names the run.
    """
    after = sweep.command[sweep.command.index("${program}") + 1 :] if "${program}" in sweep.command else ("?",)
    if sweep.method != "grid" or any(not word.startswith("${args") for word in after):
        return  # the command itself may hold flags that belong to them
    for number, point in enumerate(itertools.islice(sweep.grid(), _MOST_RUNS)):
        try:
            check_run([f"--{flag}={value}" for flag, value in sweep.flags(point).items()])
        except UserError as error:
            raise UserError(f"run {number}: {error}") from error


def _is_own_data(sweep: Sweep) -> bool:
    return any(_given(sweep, "train_file")) or any(_given(sweep, "dataset_name"))


def _metrics(sweep: Sweep, task_name: str | None) -> tuple[str, ...]:
    """Metrics that a run on this task may log; of the user's own data, only the rows tell whether it is multi-label."""
    if not _is_own_data(sweep):
        return TASKS[task_name or DEFAULT_TASK].metrics
    if any(_given(sweep, "do_regression")):
        return METRICS_OF_OWN_DATA[REGRESSION]
    return tuple(dict.fromkeys(METRICS_OF_OWN_DATA[SINGLE_LABEL] + METRICS_OF_OWN_DATA[MULTI_LABEL]))


def _given(sweep: Sweep, name: str) -> list[str | None]:
    """The values that runs of the sweep give a flag, None for runs that omit it; empty if all do."""
    for parameter in sweep.parameters:
        if any(values := _values(parameter, name)):
            return values
    return []


def _together(sweep: Sweep, *names: str) -> Iterator[tuple[str | None, ...]]:
    """The values of flags in the sweep's runs, None where a run leaves one out.

    Those of one mapping stand together as they do there; others in every way.
    """
    columns = [[tuple(flags.get(name) for name in names) for flags in _flags(each)] for each in sweep.parameters]
    for rows in itertools.product(*(dict.fromkeys(rows) for rows in columns)):
        yield tuple(next((value for value in values if value is not None), None) for values in zip(*rows, strict=True))


def _values(parameter: Parameter, name: str) -> list[str | None]:
    """Those of a flag in a parameter's values, None where it is not in one."""
    return [flags.get(name) for flags in _flags(parameter)]


def _flags(parameter: Parameter) -> list[dict[str, Any]]:
    """Flag -> value, of each of a parameter's values."""
    settings = [leaves([(parameter.flag, value)]) for value in parameter.extremes()]
    return [{flag.replace("-", "_"): value for flag, value in setting} for setting in settings]


def leaves(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield (flag, value) pairs; a mapping expands to several flags, or to JSON for a flag that takes it."""
    for name, value in items:
        if isinstance(value, dict) and name.replace("-", "_").endswith(TAKES_JSON):
            yield name, as_json(value)
        elif isinstance(value, dict):
            yield from leaves(value.items())
        else:
            yield name, value
