"""Group runs that differ only in their seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from peftlib.flags import WHERE_ABSENT
from peftlib.reporting.runs import Run
from peftlib.strategies import STRATEGIES

#: Flags of every method by whose values variants differ -> the value for runs from before the flag. They used the
#: model's own dropout, which None stands for.
_SHARED = {"dropout": None, **WHERE_ABSENT}


@dataclass(frozen=True)
class Variant:
    """A method with its flags, at one learning rate and warm-up, trained with one or more seeds.

    Attributes:
        flags: the method's own flags, and those of `_SHARED`.
        rate: peak learning rate.
        warmup: the flag that sets the warm-up, and its value.
        label: unique name within its comparison.
        runs: finished runs sorted by seed, each seed once.
    """

    method: str
    flags: dict[str, Any]
    rate: float
    warmup: tuple[str, Any]
    label: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> set[int]:
        """Seeds of the runs."""
        return {run.seed for run in self.runs}

    def scores(self, metric: str) -> list[float]:
        """Return the score of each run."""
        return [run.score(metric) for run in self.runs]

    def mean(self, metric: str) -> float:
        """Return the mean score of the runs, to 12 digits: equal means are equal, however their sums were rounded."""
        return float(plain_number(fmean(self.scores(metric))))

    @property
    def trainable(self) -> int:
        """Number of trained parameters."""
        return int(self.runs[0].record["parameters"]["trainable"])

    @property
    def strategy(self) -> str:
        """Label of the method and its flags, without rate and warm-up."""
        return _strategy_label(self.method, self.flags)


def variants_of(group: list[Run]) -> tuple[tuple[Variant, ...], list[str]]:
    """Group the runs into variants; also return a note for each run left out because a newer one has its seed."""
    found: dict[tuple[str, str, float, tuple[str, Any]], dict[int, Run]] = {}
    notes = []
    for run in sorted(group, key=lambda run: str(run.record.get("started", "")), reverse=True):
        rate, warmup = plain_number(run.record["learning_rate"]), _warmup(run)
        flags = repr({name: plain_number(value) for name, value in _flags(run).items()})
        seeds = found.setdefault((run.method, flags, rate, warmup), {})
        if run.seed in seeds:
            # A repeated seed is no new observation: counting it would narrow the interval without cause.
            newer = seeds[run.seed].name
            notes.append(f"{run.name} is left out: {newer} is newer and has the same seed ({run.seed}).")
        else:
            seeds[run.seed] = run
    rates: dict[tuple[str, str], set[float]] = {}
    warmups: dict[tuple[str, str], set[tuple[str, Any]]] = {}
    for method, flags, rate, warmup in found:
        rates.setdefault((method, flags), set()).add(rate)
        warmups.setdefault((method, flags), set()).add(warmup)
    variants = []
    for (method, flags, rate, warmup), seeds in found.items():
        first = next(iter(seeds.values()))
        label = _strategy_label(method, _flags(first))
        label += f", lr {rate:g}" if len(rates[method, flags]) > 1 else ""
        label += f", {warmup[0]} {_number(warmup[1])}" if len(warmups[method, flags]) > 1 else ""
        ordered = tuple(seeds[seed] for seed in sorted(seeds))
        variants.append(Variant(method, _flags(first), rate, warmup, label, ordered))
    return tuple(sorted(variants, key=lambda variant: (variant.trainable, variant.label))), notes


def _warmup(run: Run) -> tuple[str, Any]:
    """The flag that sets the run's warm-up, and its value; a number of updates overrides a ratio."""
    steps = run.arguments.get("num_warmup_steps")
    if steps is None:
        return "warmup_ratio", plain_number(run.arguments.get("warmup_ratio"))
    return "num_warmup_steps", steps


def plain_number(value: Any) -> Any:
    """Return a number's canonical form, so that 32 == 32.0 and 0.06 == 3 * 0.02; other values are unchanged."""
    return value if isinstance(value, bool) or not isinstance(value, int | float) else float(f"{value:.12g}")


def _number(value: Any) -> str:
    """Format a number without rounding errors such as those of a sweep's multiples of 0.02."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _flags(run: Run) -> dict[str, Any]:
    """The flags of the run's method, as far as its record has them, and those of `_SHARED`."""
    if run.method not in STRATEGIES:
        return {}
    names = [field.name for field in dataclasses.fields(STRATEGIES[run.method])]
    arguments = _SHARED | run.arguments
    return {name: arguments[name] for name in (*names, *_SHARED) if name in arguments}


def _strategy_label(method: str, flags: dict[str, Any]) -> str:
    """`LoRA r=8`, `BitFit, train_head=False`: the method's name and its non-default flags."""
    if method not in STRATEGIES:
        return method
    kind = STRATEGIES[method]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    defaults |= {**WHERE_ABSENT, "dropout": kind.default_dropout}
    others = {name: value for name, value in flags.items() if name not in kind.named_by}
    changed = [f"{name}={value}" for name, value in others.items() if value != defaults.get(name, value)]
    return ", ".join([kind.named(flags), *changed])
