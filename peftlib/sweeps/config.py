"""Read a sweep's YAML in W&B's format, and check it against that format and train.py's flags."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from peftlib.errors import UserError, in_one_line, nearest
from peftlib.files import load_yaml, plain_name
from peftlib.sweeps.checks import check_flags, check_metric, check_plain, check_runs, leaves
from peftlib.sweeps.command import parse_command
from peftlib.sweeps.parameters import Parameter, parse_parameter, spelled

# Top-level keys of https://docs.wandb.ai/models/sweeps/sweep-config-keys. The first group says what to run; the
# second where W&B shows it; the third leaves the choice of runs to W&B's server or to a program of the user's.
_KEYS = ("program", "method", "metric", "parameters", "early_terminate", "command", "run_cap")
_LABELS = ("apiVersion", "kind", "name", "description", "entity", "project")
_SERVER = ("controller", "scheduler", "metrics", "job", "image_uri")
_METHODS = ("grid", "random", "bayes")


@dataclass(frozen=True)
class Hyperband:
    """Early stopping by Hyperband; an iteration is an evaluation that logged the metric.

    Attributes:
        first: iterations before a run may be stopped.
        last: iterations of a full run; None infers it from the first finished one.
        eta: factor by which the iterations grow from one rung of a bracket to the next.
    """

    first: int
    last: int | None
    eta: float

    @property
    def factor(self) -> int:
        """`eta` as the integer that Optuna's pruner needs."""
        return max(2, round(self.eta))


@dataclass(frozen=True)
class Sweep:
    """A parsed and checked sweep.

    Attributes:
        name: the file's `name`, else its stem.
        program: path of the script, as written in the file.
        command: words and W&B's macros.
        parameters: sorted by name, as in W&B.
        metric: key in a run's `metrics.jsonl`; the last value counts, as in W&B.
        target: no new runs start once one has reached this value.
        content: the parsed YAML.
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
        """The sweep's folder unless --sweep_dir names one."""
        return Path("outputs") / "sweeps" / plain_name(self.name, otherwise="sweep")

    @property
    def size(self) -> int | None:
        """Number of runs; None for an unbounded search."""
        if self.method != "grid":
            return self.run_cap
        return min(self.points, self.run_cap or self.points)

    @property
    def points(self) -> int:
        """Number of points in the whole grid, regardless of `run_cap`."""
        return math.prod(len(values) for values in self._values)

    @cached_property
    def _values(self) -> list[list[Any]]:
        """Each parameter's grid, listed once: a grid has far more points than parameters."""
        return [parameter.grid() for parameter in self.parameters]

    def grid_point(self, index: int) -> dict[str, Any]:
        """Return the grid point at `index`, from 0, as parameter name -> value.

        W&B sorts the parameters by name, nested ones within their group, and varies the last one fastest (source:
        `grid_search_next_runs` of W&B's `sweeps` package, against which the tests compare).
        """
        point = {}
        for parameter, values in reversed(list(zip(self.parameters, self._values, strict=True))):
            index, place = divmod(index, len(values))
            point[parameter.name] = values[place]
        return {parameter.name: point[parameter.name] for parameter in self.parameters}

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield the grid points in order, at most `run_cap` of them."""
        return (self.grid_point(index) for index in range(self.size or 0))

    def covers(self, parameters: dict[str, Any]) -> bool:
        """Whether this grid contains every point of the grid over `parameters`, which are as in a YAML file."""
        earlier = {parameter.name: parameter.grid() for parameter in _parameters(parameters)}
        now = {parameter.name: set(map(spelled, parameter.grid())) for parameter in self.parameters}
        return earlier.keys() == now.keys() and all(set(map(spelled, earlier[name])) <= now[name] for name in now)

    def flags(self, values: dict[str, Any]) -> dict[str, Any]:
        """Map values to flags, in snake case: nested names lose their group, a mapping becomes several flags."""
        flags = leaves((name.rpartition(".")[2], value) for name, value in values.items())
        return {name.replace("-", "_"): value for name, value in flags}


def load_sweep(
    path: Path,
    known: Sequence[str],
    check: Callable[[list[str]], object],
    changes: Sequence[str] = (),
    check_run: Callable[[list[str]], object] = lambda words: None,
) -> Sweep:
    """Read and check a sweep before any run starts.

    Args:
        known: train.py's flags, with their dashes.
        check: parses single flags of train.py; raises UserError.
        changes: `name=value` or `name=[value, value]`, in YAML; these parameters replace the file's.
        check_run: parses all flags of a run, and whether they fit together; raises UserError.

    Raises:
        UserError: one line that names the file, or the change, and the key.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({in_one_line(error)})") from error
    try:
        if changes and isinstance(content, dict) and isinstance(content.get("parameters"), dict):
            for change in changes:
                _replace(content["parameters"], *_change(change))
        sweep = _parse(path, content)
        check_flags(sweep, known, check)
        check_metric(sweep)
        check_runs(sweep, check_run)
    except UserError as error:
        raise UserError(_with_origin(str(error), path, changes)) from error
    return sweep


def _with_origin(message: str, path: Path, changes: Sequence[str]) -> str:
    """Put in front of a message whose mistake it is: the file's, or a change's."""
    for change in changes:
        name = re.escape(change.partition("=")[0])
        if place := re.match(rf"parameters\.{name}(\.\w+)?: ", message):  # of it, or of its key such as .values
            return f"--set {change}: {message[place.end() :]}"
    return message if message.startswith("--set ") else f"{path}: {message}"


def _change(text: str) -> tuple[str, dict[str, Any]]:
    """Parse `seed=[1, 2]` into an entry of `parameters`."""
    name, sign, written = text.partition("=")
    try:
        value = load_yaml(written)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: not valid YAML ({in_one_line(error)})") from error
    if not sign or not name:
        raise UserError(f"--set {text}: must be name=value, or name=[value, value]")
    return name, {"values": value} if isinstance(value, list) else {"value": value}


def _replace(parameters: dict[str, Any], name: str, value: dict[str, Any]) -> None:
    """Set a parameter, which a dotted name finds among the nested ones; another becomes a new one."""
    group, dot, rest = name.partition(".")
    inner = parameters.get(group)
    nested = inner.get("parameters") if isinstance(inner, dict) else None
    if dot and isinstance(nested, dict):
        _replace(nested, rest, value)
    else:
        parameters[name] = value


def _parse(path: Path, content: Any) -> Sweep:
    if not isinstance(content, dict):
        raise UserError("must have W&B's keys: program, method, metric, parameters")
    check_plain(content)
    for key in content:
        if key in _SERVER:
            raise UserError(f"{key}: is supported only by W&B's server; use wandb sweep for this file")
        if key not in (*_KEYS, *_LABELS):
            raise UserError(f"{key}: unknown key{nearest(str(key), (*_KEYS, *_LABELS, *_SERVER))}")
    for key in ("program", "method", "metric", "parameters"):
        if key not in content:
            raise UserError(f"{key}: missing, and required")
    method = _one_of(content, "method", _METHODS)
    run_cap = content.get("run_cap")
    if run_cap is not None:
        run_cap = _whole("run_cap", run_cap)
    metric = _mapping(content, "metric", ("name", "goal", "target", "impute", "impute_while_running"))
    if not isinstance(metric.get("name"), str):
        raise UserError("metric.name: missing; give a metric such as eval/best_accuracy")
    maximize = _one_of({"goal": "minimize", **metric}, "goal", ("minimize", "maximize"), "metric.") == "maximize"
    target = metric.get("target")
    if target is not None and (isinstance(target, bool) or not isinstance(target, (int, float))):
        raise UserError(f"metric.target: {target!r} is not a number")
    return Sweep(
        name=_text(content, "name") or path.stem,
        program=_text(content, "program") or "",
        command=parse_command(content.get("command")),
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
            raise UserError(f"{place}.{key}: a name must begin with a letter and contain no spaces")
        if not isinstance(entry, dict):
            raise UserError(f"{place}.{key}: must be a mapping such as {{value: {entry}}}")
        if "parameters" in entry:
            if len(entry) > 1:
                raise UserError(f"{place}.{key}: parameters cannot be combined with other keys")
            yield from _parameters(entry["parameters"], f"{prefix}{key}.")
        else:
            yield parse_parameter(f"{prefix}{key}", entry)


def _hyperband(content: dict[str, Any]) -> Hyperband:
    given = _mapping(content, "early_terminate", ("type", "min_iter", "max_iter", "s", "eta", "strict"))
    _one_of(given, "type", ("hyperband",), "early_terminate.")
    eta = given.get("eta", 3)
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 1 < eta < math.inf:
        raise UserError(f"early_terminate.eta: {eta!r} must be a number greater than 1")
    if "max_iter" in given:
        if "s" not in given:
            raise UserError("early_terminate.s: missing; max_iter requires it")
        last = _whole("early_terminate.max_iter", given["max_iter"])
        first = float(last)
        for _ in range(_whole("early_terminate.s", given["s"])):
            if first <= 1:
                break
            first /= eta
        return Hyperband(max(1, int(first)), last, eta)
    if "min_iter" not in given:
        raise UserError("early_terminate.min_iter: missing; give it, or max_iter and s")
    return Hyperband(_whole("early_terminate.min_iter", given["min_iter"]), None, eta)


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


def _whole(key: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # JSON Schema, and so W&B, takes 3.0 for an integer
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key}: {value!r} must be a whole number from 1 on")
    return value


def _text(content: dict[str, Any], key: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{key}: {value!r} must be text")
    return value
