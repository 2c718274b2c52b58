"""A sweep's YAML in W&B's format: read, checked against that format and against train.py's flags."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftlib.data.tasks import TASKS
from peftlib.errors import UserError, nearest
from peftlib.sweeps.parameters import Parameter, parse_parameter

# Top-level keys of https://docs.wandb.ai/models/sweeps/sweep-config-keys. The first group says what to run; the
# second says where W&B shows it; the third hands the choice of runs to W&B's server or to a program of the user's.
_KEYS = ("program", "method", "metric", "parameters", "early_terminate", "command", "run_cap")
_LABELS = ("apiVersion", "kind", "name", "description", "entity", "project")
_SERVER = ("controller", "scheduler", "metrics", "job", "image_uri")
_METHODS = ("grid", "random", "bayes")
# Given by the sweep itself: each run has its own folder, and a run that was cut off goes on.
OWN_FLAGS = ("output_dir", "resume_from_checkpoint")
_DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
_ARGS_MACROS = ("${args}", "${args_no_equals}", "${args_no_boolean_flags}", "${args_no_hyphens}", "${args_json}",
                "${args_json_file}", "${args_append_hydra}", "${args_override_hydra}")  # fmt: skip


@dataclass(frozen=True)
class Hyperband:
    """When to stop a run early; iterations are evaluations that logged the metric.

    Attributes:
        first: iterations before a run may be stopped.
        last: iterations of a whole run; None learns it from the first finished one.
        factor: a bracket's next look comes after so many times the iterations; W&B's `eta`.
    """

    first: int
    last: int | None
    factor: int


@dataclass(frozen=True)
class Sweep:
    """What a YAML file asks for.

    Attributes:
        name: of the sweep, else the file's.
        program: the script, as the file names it.
        command: words and W&B's macros.
        parameters: in W&B's order, which is that of their names.
        metric: the key in a run's `metrics.jsonl`; its last value counts, as in W&B.
        target: no new runs once one has reached it.
        content: the file as read.
    """

    name: str
    program: str
    command: tuple[str, ...]
    method: str
    parameters: tuple[Parameter, ...]
    metric: str
    maximize: bool
    target: float | None
    run_cap: int | None
    hyperband: Hyperband | None
    project: str | None
    content: dict[str, Any]

    @property
    def default_folder(self) -> Path:
        """Where the sweep lives when nobody says otherwise."""
        return Path("outputs") / "sweeps" / re.sub(r"[^\w.-]+", "-", self.name).strip("-.")

    @property
    def size(self) -> int | None:
        """How many runs there will be; None for a search without an end."""
        if self.method != "grid":
            return self.run_cap
        points = math.prod(len(parameter.grid()) for parameter in self.parameters)
        return min(points, self.run_cap or points)

    def grid_point(self, index: int) -> dict[str, Any]:
        """Parameter's name -> its value in the grid's run of this index, from 0.

        W&B sorts the parameters by name, nested ones within their group, and varies the last one fastest (source:
        `grid_search_next_runs` of W&B's `sweeps` package, with which the tests compare).
        """
        point = {}
        for parameter in reversed(self.parameters):
            values = parameter.grid()
            index, place = divmod(index, len(values))
            point[parameter.name] = values[place]
        return {parameter.name: point[parameter.name] for parameter in self.parameters}

    def grid(self) -> Iterator[dict[str, Any]]:
        """All points in order, up to `run_cap`."""
        return (self.grid_point(index) for index in range(self.size or 0))

    def flags(self, values: dict[str, Any]) -> dict[str, Any]:
        """Flag -> value: nested names lose their group, and a value that is a mapping is several flags."""
        return dict(_leaves((name.rpartition(".")[2], value) for name, value in values.items()))


def load_sweep(
    path: Path, known: Sequence[str], check: Callable[[list[str]], object], changes: Sequence[str] = ()
) -> Sweep:
    """Read and check a sweep before anything of it starts.

    Args:
        known: train.py's flags, with their dashes.
        check: parses a command line of train.py's; raises UserError.
        changes: `name=value` or `name=[value, value]`, in YAML: parameters that are put in place of the file's.

    Raises:
        UserError: one line that names the key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid YAML ({' '.join(str(error).split())})") from error
    try:
        if changes and isinstance(content, dict) and isinstance(content.get("parameters"), dict):
            content["parameters"] |= dict(_change(change) for change in changes)
        sweep = _parse(path, content)
        _check_flags(sweep, known, check)
        if "--task_name" in known:
            _check_metric(sweep)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return sweep


def _change(text: str) -> tuple[str, dict[str, Any]]:
    """`seed=[1, 2]` as an entry of `parameters`."""
    name, sign, written = text.partition("=")
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: no valid YAML ({' '.join(str(error).split())})") from error
    if not sign or not name:
        raise UserError(f"--set {text}: must be name=value, or name=[value, value]")
    return name, {"values": value} if isinstance(value, list) else {"value": value}


def _parse(path: Path, content: Any) -> Sweep:
    if not isinstance(content, dict):
        raise UserError("must hold W&B's keys: program, method, metric, parameters")
    for key in content:
        if key in _SERVER:
            raise UserError(f"{key}: is for W&B's server alone; give the file to wandb sweep")
        if key not in (*_KEYS, *_LABELS):
            raise UserError(f"{key}: no key of a sweep{nearest(str(key), (*_KEYS, *_LABELS, *_SERVER))}")
    for key in ("program", "method", "metric", "parameters"):
        if key not in content:
            raise UserError(f"{key}: missing")
    method = _one_of(content, "method", _METHODS)
    run_cap = content.get("run_cap")
    if run_cap is not None:
        _whole("run_cap", run_cap)
    metric = _mapping(content, "metric", ("name", "goal", "target", "impute", "impute_while_running"))
    if not isinstance(metric.get("name"), str):
        raise UserError("metric.name: missing; such as eval/best_accuracy")
    maximize = _one_of({"goal": "minimize", **metric}, "goal", ("minimize", "maximize"), "metric.") == "maximize"
    target = metric.get("target")
    if target is not None and (isinstance(target, bool) or not isinstance(target, (int, float))):
        raise UserError(f"metric.target: {target!r} is no number")
    return Sweep(
        name=_text(content, "name") or path.stem,
        program=_text(content, "program") or "",
        command=_command(content.get("command")),
        method=method,
        parameters=tuple(_parameters(content["parameters"])),
        metric=metric["name"],
        maximize=maximize,
        target=target,
        run_cap=run_cap,
        hyperband=_hyperband(content) if "early_terminate" in content else None,
        project=_text(content, "project"),
        content=content,
    )


def _parameters(content: Any, prefix: str = "") -> Iterator[Parameter]:
    place = f"parameters.{prefix}".rstrip(".")
    if not isinstance(content, dict) or not content:
        raise UserError(f"{place}: must be a mapping of names to values or distributions")
    for key, entry in sorted(content.items(), key=lambda item: str(item[0])):
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key):
            raise UserError(f"{place}.{key}: a name begins with a letter and has no spaces")
        if not isinstance(entry, dict):
            raise UserError(f"{place}.{key}: must be a mapping such as {{value: {entry}}}")
        if "parameters" in entry:
            if len(entry) > 1:
                raise UserError(f"{place}.{key}: parameters stands alone")
            yield from _parameters(entry["parameters"], f"{prefix}{key}.")
        else:
            yield parse_parameter(f"{prefix}{key}", entry)


def _hyperband(content: dict[str, Any]) -> Hyperband:
    given = _mapping(content, "early_terminate", ("type", "min_iter", "max_iter", "s", "eta", "strict"))
    _one_of(given, "type", ("hyperband",), "early_terminate.")
    factor = given.get("eta", 3)
    _whole("early_terminate.eta", factor, lowest=2)
    if "max_iter" in given:
        if "s" not in given:
            raise UserError("early_terminate.s: missing; max_iter needs it")
        _whole("early_terminate.max_iter", given["max_iter"])
        _whole("early_terminate.s", given["s"])
        return Hyperband(max(1, int(given["max_iter"] / factor ** given["s"])), given["max_iter"], factor)
    if "min_iter" not in given:
        raise UserError("early_terminate.min_iter: missing; or give max_iter and s")
    _whole("early_terminate.min_iter", given["min_iter"])
    return Hyperband(given["min_iter"], None, factor)


def _command(words: Any) -> tuple[str, ...]:
    if words is None:
        return _DEFAULT_COMMAND
    if not isinstance(words, list) or not words:
        raise UserError("command: must be a list of words and macros")
    if not any(word in _ARGS_MACROS for word in words):
        raise UserError("command: has no ${args}, so no run would be given its values")
    return tuple(str(word) for word in words)


def _check_flags(sweep: Sweep, known: Sequence[str], check: Callable[[list[str]], object]) -> None:
    names = [name for name in known if name not in ("--help", "--config", "--_wandb")]
    places: dict[str, str] = {}
    for parameter in sweep.parameters:
        if sweep.method == "grid":
            parameter.grid()
        place, flags = f"parameters.{parameter.name}", set()
        for value in parameter.extremes():
            for flag, single in _leaves([(parameter.flag, value)]):
                spelled = f"--{flag.replace('-', '_')}"
                if spelled.strip("-") in OWN_FLAGS:
                    raise UserError(f"{place}: {spelled} is given by the sweep itself; see --sweep_dir")
                if spelled not in names:
                    raise UserError(f"{place}: train.py has no {spelled}{nearest(spelled, names)}")
                flags.add(spelled)
                try:
                    check([f"{spelled}={single}"])
                except UserError as error:
                    raise UserError(f"{place}: {error}") from error
        for flag in flags:
            if flag in places:
                raise UserError(f"{place}: {flag} is set by {places[flag]} too")
            places[flag] = place


def _check_metric(sweep: Sweep) -> None:
    """A metric that a task does not log would be missed only when a whole run has gone by."""
    if not sweep.metric.startswith("eval/"):
        return
    given = ((parameter.flag, value) for parameter in sweep.parameters for value in parameter.extremes())
    named = [TASKS[task] for flag, task in _leaves(given) if flag == "task_name"]
    for tasks in [[task] for task in named] or [list(TASKS.values())]:
        logged = {f"eval/{name}" for task in tasks for name in ("loss", *task.metrics, f"best_{task.best_metric}")}
        if sweep.metric not in logged:
            whose = f"task {tasks[0].name} does not log" if named else "no task logs"
            hint = nearest(sweep.metric, logged)
            raise UserError(f"metric.name: {whose} {sweep.metric}{hint} (known: {', '.join(sorted(logged))})")


def _leaves(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in items:
        if isinstance(value, dict):
            yield from _leaves(value.items())
        else:
            yield name, value


def _mapping(content: dict[str, Any], key: str, known: tuple[str, ...]) -> dict[str, Any]:
    given = content[key]
    if not isinstance(given, dict):
        raise UserError(f"{key}: must be a mapping with {known[0]}")
    for name in given:
        if name not in known:
            raise UserError(f"{key}.{name}: no such key{nearest(str(name), known)}")
    return given


def _one_of(content: dict[str, Any], key: str, known: tuple[str, ...], prefix: str = "") -> str:
    value = content.get(key)
    if value not in known:
        raise UserError(f"{prefix}{key}: {value} is unknown{nearest(str(value), known)} (known: {', '.join(known)})")
    return str(value)


def _whole(key: str, value: Any, lowest: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise UserError(f"{key}: {value!r} must be a whole number from {lowest} on")


def _text(content: dict[str, Any], key: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{key}: {value!r} must be text")
    return value
