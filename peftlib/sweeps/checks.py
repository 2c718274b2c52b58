"""Checks of a sweep's YAML, made before its first run starts."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from peftlib.data.tasks import DEFAULT_TASK, METRICS_OF_OWN_DATA, MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS
from peftlib.errors import UserError, nearest
from peftlib.flags import TAKES_JSON, as_json

if TYPE_CHECKING:
    from peftlib.sweeps.config import Sweep

# Set by the sweep itself: each run has its own output folder, and resumes if it was interrupted.
_OWN_FLAGS = ("output_dir", "resume_from_checkpoint")
# Flags that the runs of a sweep cannot have -> why.
_SINGLE_RUN_FLAGS = {
    "dry_run": "trains nothing, and such a run has no score; see sweep.py's own --dry_run",
    "push_to_hub": "would push every run; push the best one in the end, with scripts/export.py",
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
                raise UserError(f"{place.lstrip('.') or 'the file'}: {key!r} is no name; put it in quotes")
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
                    raise UserError(f"{place}: {spelled} is given by the sweep itself; see --sweep_dir")
                if spelled.strip("-") in _SINGLE_RUN_FLAGS:
                    raise UserError(f"{place}: {spelled} {_SINGLE_RUN_FLAGS[spelled.strip('-')]}")
                if spelled not in names:
                    raise UserError(f"{place}: train.py has no {spelled}{nearest(spelled, names)}")
                flags.add(spelled)
                if single is None or isinstance(single, list):
                    way = "leave it out" if single is None else "write its parts as one text, with commas"
                    raise UserError(f"{place}: {spelled}: {single} is no flag's value; {way}")
                try:
                    check([f"{spelled}={single}"])
                except UserError as error:
                    raise UserError(f"{place}: {error}") from error
        for flag in flags:
            if flag in places:
                raise UserError(f"{place}: {flag} is set by {places[flag]} too")
            places[flag] = place


def check_metric(sweep: Sweep) -> None:
    """Refuse a metric that the task does not log, which would otherwise show only after a whole run.

    Raises:
        UserError: names the metrics that it logs.
    """
    if sweep.metric.startswith(("train/", "perf/")):
        return
    own = any(_given(sweep, "train_file")) or any(_given(sweep, "dataset_name"))
    chosen_by = _given(sweep, "metric_for_best_model") or [None]
    for name in _given(sweep, "task_name") or [None]:
        task = TASKS[name or DEFAULT_TASK]
        metrics = _own_data_metrics(sweep) if own else task.metrics
        best = {metric or metrics[0] for metric in chosen_by}  # each run logs one of these
        names = ("loss", *metrics, *(f"best_{metric}" for metric in best if len(best) == 1))
        logged = {f"eval/{metric}" for metric in names}
        if sweep.metric not in logged:
            whose = f"task {task.name}" + ("" if name else " (the default: no task_name)")
            if own:
                whose = "a task of one's own data"
            hint = nearest(sweep.metric, logged)
            raise UserError(
                f"metric.name: {whose} does not log {sweep.metric}{hint} (known: {', '.join(sorted(logged))})"
            )


def _own_data_metrics(sweep: Sweep) -> tuple[str, ...]:
    """Metrics that a run on the user's own data may log; only its rows tell whether it is multi-label."""
    if any(_given(sweep, "do_regression")):
        return METRICS_OF_OWN_DATA[REGRESSION]
    return tuple(dict.fromkeys(METRICS_OF_OWN_DATA[SINGLE_LABEL] + METRICS_OF_OWN_DATA[MULTI_LABEL]))


def _given(sweep: Sweep, name: str) -> list[str | None]:
    """The values that runs of the sweep give a flag, None for runs that omit it; empty if all do."""
    for parameter in sweep.parameters:
        flags = [leaves([(parameter.flag.replace("-", "_"), value)]) for value in parameter.extremes()]
        values = [dict(given).get(name) for given in flags]
        if any(values):
            return values
    return []


def leaves(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield (flag, value) pairs; a mapping expands to several flags, or to JSON for a flag that takes it."""
    for name, value in items:
        if isinstance(value, dict) and name.replace("-", "_").endswith(TAKES_JSON):
            yield name, as_json(value)
        elif isinstance(value, dict):
            yield from leaves(value.items())
        else:
            yield name, value
