"""One parameter of a sweep: its distribution in W&B's terms, and how Optuna samples from it.

Source of names, defaults and quantile functions: https://docs.wandb.ai/models/sweeps/sweep-config-keys and the JSON
schema of W&B's own `sweeps` package, against which the tests compare.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlib.errors import UserError, nearest

if TYPE_CHECKING:
    from optuna.trial import Trial

#: Distribution -> its required settings.
REQUIRED = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    **dict.fromkeys(("int_uniform", "uniform", "q_uniform", "log_uniform", "log_uniform_values", "q_log_uniform",
                     "q_log_uniform_values", "inv_log_uniform", "inv_log_uniform_values"), ("min", "max")),
    **dict.fromkeys(("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"), ()),
}  # fmt: skip
_DEFAULTS: dict[str, float] = {"q": 1.0, "mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0}
_GRID = ("constant", "categorical", "int_uniform", "q_uniform")
# Probability cut from either tail of an unbounded distribution, whose quantiles at 0 and 1 are infinite.
_TAIL = 1e-6
_ENDS = (_TAIL, 1 - _TAIL)
_EXPONENT = math.log(sys.float_info.max)
_MOST_VALUES = 1_000_000  # of a range in a grid: it would be listed


def optional_settings(distribution: str) -> tuple[str, ...]:
    """List the settings for which W&B has a default."""
    shape: tuple[str, ...] = ()
    if distribution.endswith("normal"):
        shape = ("mu", "sigma")
    elif distribution.endswith("beta"):
        shape = ("a", "b")
    return (*shape, "q") if distribution.startswith("q_") else shape


@dataclass(frozen=True)
class Parameter:
    """A named distribution.

    Attributes:
        name: dotted, with its groups: `optimizer.learning_rate`.
        distribution: a key of `REQUIRED`.
        settings: `min`, `max`, `values`, ..., with defaults filled in.
    """

    name: str
    distribution: str
    settings: dict[str, Any]

    @property
    def flag(self) -> str:
        """The name without its groups."""
        return self.name.rpartition(".")[2]

    @property
    def varies(self) -> bool:
        """Whether its value can differ between runs."""
        return self.distribution != "constant"

    def grid(self) -> list[Any]:
        """List the distinct values, in W&B's order.

        Raises:
            UserError: the distribution has no finite list of values; W&B's grid search refuses it too.
        """
        settings = self.settings
        if self.distribution in ("int_uniform", "q_uniform"):
            count = (settings["max"] - settings["min"]) / settings.get("q", 1)
            if count > _MOST_VALUES:
                raise UserError(
                    f"parameters.{self.name}: {count:,.0f} values are too many for method grid; use random or bayes"
                )
        if self.distribution == "int_uniform":
            return list(range(settings["min"], settings["max"] + 1))
        if self.distribution == "q_uniform":
            import numpy as np

            return np.arange(settings["min"], settings["max"], settings["q"]).tolist()  # excludes max, as in W&B
        if self.distribution not in _GRID:
            raise UserError(
                f"parameters.{self.name}: {self.distribution} is not allowed with method grid (use {', '.join(_GRID)})"
            )
        values = settings["values"] if self.varies else [settings["value"]]
        return list({spelled(value): value for value in values}.values())

    def quantile(self, share: float) -> Any:
        """Return the quantile (inverse CDF) at `share`, 0..1; W&B's sampler draws the share uniformly."""
        from scipy import stats

        settings, kind = self.settings, self.distribution.removeprefix("q_")
        if kind == "constant":
            return settings["value"]
        if kind.startswith("categorical"):
            values, shares = settings["values"], settings.get("probabilities")
            reached = 0.0
            for index, value in enumerate(values):
                reached += shares[index] if shares else 1 / len(values)
                if share < reached:
                    return value
            # Rounding may leave the sum of the probabilities below 1: take the last value with a nonzero one.
            return next(values[i] for i in reversed(range(len(values))) if not shares or shares[i] > 0)
        if kind == "int_uniform":
            return min(settings["max"], settings["min"] + int(share * (settings["max"] - settings["min"] + 1)))
        if settings.get("sigma") == 0:  # of which scipy makes NaN
            value = settings["mu"] if kind == "normal" else math.exp(settings["mu"])
        elif kind == "normal":
            value = stats.norm.ppf(share, loc=settings["mu"], scale=settings["sigma"])
        elif kind == "log_normal":
            value = stats.lognorm.ppf(share, s=settings["sigma"], scale=math.exp(settings["mu"]))
        elif kind == "beta":
            value = stats.beta.ppf(share, a=settings["a"], b=settings["b"])
        else:
            value = _bounded_quantile(kind, settings["min"], settings["max"], share)
        return _rounded(float(value), settings["q"]) if self.distribution.startswith("q_") else float(value)

    def check_range(self) -> None:
        """Refuse settings whose values overflow a float.

        Raises:
            UserError: names the setting; says how to give values where exponents are expected.
        """
        settings, place = self.settings, f"parameters.{self.name}"
        if self.distribution == "constant" or self.distribution.startswith("categorical"):
            return
        import numpy as np

        try:
            with np.errstate(all="ignore"):  # a NumPy warning would print a second line
                ends = [float(self.quantile(share)) for share in (0.5, *((0.0, 1.0) if "min" in settings else _ENDS))]
        except OverflowError:
            ends = [math.inf]
        if all(map(math.isfinite, ends)):
            return
        if "log_uniform" in self.distribution and not self.distribution.endswith("_values"):
            key = "min" if self.distribution.startswith("inv_") and settings["min"] < -_EXPONENT else "max"
            given = f"{place}.{key}: {settings[key]}"
            raise UserError(
                f"{given} is an exponent of e in {self.distribution}, and too large; "
                f"to give the values themselves, write distribution: {self.distribution}_values"
            )
        if "min" in settings:
            raise UserError(f"{place}.max: values between min and max are too large for a floating-point number")
        keys = "mu and sigma" if "mu" in settings else "a and b"
        natural = "; they apply to the value's natural logarithm" if "log_normal" in self.distribution else ""
        raise UserError(f"{place}.{keys.partition(' ')[0]}: these {keys} give values that are not finite{natural}")

    def extremes(self) -> list[Any]:
        """Return values that test whether train.py accepts this parameter: listed ones, else bounds, else median."""
        if self.distribution in ("categorical", "categorical_w_probabilities"):
            return list(self.settings["values"])
        ends = (0.0, 1.0) if "min" in self.settings else (0.5,)
        return [self.quantile(share) for share in (ends if self.varies else ends[:1])]

    def suggest(self, trial: Trial) -> Any:
        """Draw a value with the study's sampler. If Optuna lacks the distribution, draw the quantile's share, 0..1."""
        settings = self.settings
        match self.distribution:
            case "constant":
                return settings["value"]
            case "categorical":
                values = {label(value): value for value in settings["values"]}
                if len(values) == len(settings["values"]):
                    return values[trial.suggest_categorical(self.name, list(values))]
                # A duplicate is drawn twice as often, as in W&B. Optuna's categories are distinct: draw the index.
                places = range(len(settings["values"]))
                return settings["values"][trial.suggest_categorical(f"{self.name} (place)", places)]
            case "int_uniform":
                return trial.suggest_int(self.name, settings["min"], settings["max"])
            case "uniform":
                return trial.suggest_float(self.name, settings["min"], settings["max"])
            case "log_uniform_values":
                return trial.suggest_float(self.name, settings["min"], settings["max"], log=True)
            case _:
                return self.quantile(trial.suggest_float(f"{self.name} (share)", *_ENDS))


def parse_parameter(name: str, content: dict[str, Any]) -> Parameter:
    """Check one entry of a sweep's `parameters` and fill in W&B's defaults.

    Raises:
        UserError: names the wrong setting.
    """
    place = f"parameters.{name}"
    distribution = content.get("distribution")
    if distribution is None:
        distribution = _implied(place, content)
    if not isinstance(distribution, str) or distribution not in REQUIRED:
        raise UserError(f"{place}.distribution: {distribution} is unknown{nearest(str(distribution), REQUIRED)}")
    settings = {key: value for key, value in content.items() if key != "distribution"}
    known = (*REQUIRED[distribution], *optional_settings(distribution))
    for key in settings:
        if key not in known:
            raise UserError(f"{place}.{key}: {distribution} has no such setting{nearest(str(key), known)}")
    for key in REQUIRED[distribution]:
        if key not in settings:
            raise UserError(f"{place}.{key}: missing; {distribution} needs {' and '.join(REQUIRED[distribution])}")
    settings = {key: _DEFAULTS[key] for key in optional_settings(distribution)} | settings
    _check(place, distribution, settings)
    parameter = Parameter(name, distribution, settings)
    parameter.check_range()
    return parameter


def _implied(place: str, content: dict[str, Any]) -> str:
    if "value" in content:
        return "constant"
    if "values" in content:
        return "categorical_w_probabilities" if "probabilities" in content else "categorical"
    if "min" in content and "max" in content:
        low, high = content["min"], content["max"]
        if _is_integer(low) and _is_integer(high):
            return "int_uniform"
        if _is_integer(low) or _is_integer(high):
            # W&B's client refuses this too: it fits neither int_uniform nor uniform.
            raise UserError(f"{place}: min and max must both be whole numbers or both have a decimal point")
        return "uniform"
    raise UserError(f"{place}: needs value, values, min and max, or a distribution")


def _check(place: str, distribution: str, settings: dict[str, Any]) -> None:
    for key in ("min", "max", *_DEFAULTS):
        value = settings.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            hint = " (YAML reads 1e-4 as text; write 1.0e-4)" if isinstance(value, str) else ""
            raise UserError(f"{place}.{key}: {value!r} is not a number{hint}")
        if distribution == "int_uniform" and not _is_integer(value):
            raise UserError(f"{place}.{key}: {value!r} is not a whole number")
    if "min" in settings and settings["min"] >= settings["max"]:
        raise UserError(f"{place}.min: {settings['min']} is not less than max {settings['max']}")
    if distribution.endswith("_values") and settings["min"] <= 0:
        raise UserError(f"{place}.min: {settings['min']} must be greater than 0")
    for key, lowest in (
        ("q", "greater than 0"),
        ("sigma", "at least 0"),
        ("a", "greater than 0"),
        ("b", "greater than 0"),
    ):
        if settings.get(key, 1) < 0 or (settings.get(key, 1) == 0 and key != "sigma"):
            raise UserError(f"{place}.{key}: {settings[key]} must be {lowest}")
    for key in ("values", "probabilities"):
        if key in settings and (not isinstance(settings[key], list) or not settings[key]):
            raise UserError(f"{place}.{key}: must be a list with at least one entry")
    if "probabilities" in settings:
        shares = settings["probabilities"]
        if len(shares) != len(settings["values"]):
            raise UserError(f"{place}.probabilities: {len(shares)} for {len(settings['values'])} values")
        if any(isinstance(share, bool) or not isinstance(share, (int, float)) or share < 0 for share in shares):
            raise UserError(f"{place}.probabilities: must be numbers of at least 0")
        if not math.isclose(sum(shares), 1, rel_tol=1e-5, abs_tol=1e-8):
            raise UserError(f"{place}.probabilities: add up to {sum(shares):g}, but must add up to 1")


def _bounded_quantile(kind: str, low: float, high: float, share: float) -> float:
    """The bounds of `log_uniform` are exponents of e, those of `log_uniform_values` are values."""
    if kind == "uniform":
        return low + share * (high - low)
    exponents: Callable[[float], float] = math.log if kind.endswith("_values") else float
    first, last = exponents(low), exponents(high)
    if kind == "inv_log_uniform":  # log(1 / x) is uniform between min and max
        first, last = -last, -first
    value = math.exp(first + share * (last - first))
    return min(max(value, low), high) if kind.endswith("_values") else value  # rounding of exp(log(x))


def _rounded(value: float, q: float) -> float:
    """Round to the nearest multiple of q; an int if q is one."""
    multiple = round(value / q) * q
    return int(multiple) if isinstance(q, int) else multiple


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the range of float
        return False


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def spelled(value: Any) -> str:
    """Return the value as canonical JSON, by which the study recognises it.

    3.0 and 3 are the same value to W&B, True and 1 are not.
    """
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, sort_keys=True)


def label(value: Any) -> str | int | float | None:
    """Return the study's name for a value: itself, or JSON for lists, mappings and booleans (in Python True == 1)."""
    if isinstance(value, bool) or not (value is None or isinstance(value, (str, int, float))):
        return json.dumps(value, sort_keys=True)
    return value
