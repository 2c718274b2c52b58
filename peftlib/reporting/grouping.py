"""Group runs into comparisons: runs that may be compared with each other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peftlib.data.own_data import task_in_table
from peftlib.data.tasks import problem_type_of
from peftlib.flags import NOT_SHAPING, WHERE_ABSENT
from peftlib.reporting.runs import Run
from peftlib.reporting.variants import Variant, plain_number, variants_of
from peftlib.run_files import leak_in_words
from peftlib.strategies import STRATEGIES

_NOT_GROUPED_BY = NOT_SHAPING | frozenset({
    # Grouped by in another form: the batch by its effective size, the precision by what `auto` resolved to, the data
    # by its fingerprint.
    "pad_to_max_length", "per_device_train_batch_size", "gradient_accumulation_steps",
    "mixed_precision", "max_train_samples", "max_eval_samples", "model_name_or_path", "task_name",
    # What a comparison varies.
    "method", "seed", "learning_rate", "dropout", "class_weights", "label_smoothing_factor",
    # The warm-up is tuned together with the peak rate, and the best one differs between methods.
    "num_warmup_steps", "warmup_ratio",
})  # fmt: skip
#: Maximum number of methods that are tested, plotted and set beside published scores: plots have as many styles.
MOST_CONTENDERS = 8
#: A name in `Comparison.key`.
_VALIDATION = "validation split"
_METHOD_FLAGS = frozenset(field.name for strategy in STRATEGIES.values() for field in dataclasses.fields(strategy))


@dataclass(frozen=True)
class BaseModel:
    """Identity of a base model, wherever it was loaded from: equal if weights and configuration are equal."""

    hashes: str
    name: str = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name} @ {self.hashes}"


@dataclass(frozen=True)
class Comparison:
    """Runs that differ only in method, dropout, training loss, learning rate, warm-up and seed.

    Attributes:
        key: what the runs have in common: name -> value.
        apart: how they differ from the main comparison of their task, in words; None for the main one.
        variants: sorted by number of trained parameters, then by label.
        notes: caveats for the reader.
    """

    key: dict[str, Any]
    apart: str | None
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]

    @property
    def task(self) -> str:
        return str(self.key["task"])

    @property
    def model(self) -> str:
        return str(self.variants[0].runs[0].record["model"]["name"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that all runs have, first the one that every run's saved state was chosen by."""
        first, *others = map(_metrics_of, self.runs)
        names = [name for name in first if all(name in found for found in others)]
        return tuple(sorted(names, key=lambda name: name != self.key.get("metric_for_best_model")))

    @property
    def runs(self) -> list[Run]:
        """All finished runs."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def settings(self) -> str:
        """The settings that its runs have in common, in one line."""
        parts = []
        for name, value in self.key.items():
            if name.endswith(" split"):
                parts.append(f"{name} {value[1]:,} examples ({value[0]})")
            elif name not in ("task", "kind of task", "classes", "base model", "validation labels"):
                parts.append(f"{name} {value}")
        warmups = {variant.warmup for variant in self.variants}
        if len(warmups) == 1:
            parts.append("{} {}".format(*warmups.pop()))
        return ", ".join(parts)

    def contenders(self, most: int = MOST_CONTENDERS) -> list[Variant]:
        """Pick one variant per strategy, at one learning rate; of more than `most`, the best ones.

        Take the rate with the most seeds that other strategies have too, since only those can be paired; then with
        the most seeds at all; then with the best mean. So a single lucky run at another rate decides nothing.
        """
        metric = self.metrics[0]
        seeds: dict[str, set[int]] = {}
        for variant in self.variants:
            seeds.setdefault(variant.strategy, set()).update(variant.seeds)
        best: dict[str, tuple[tuple[int, int, float], Variant]] = {}
        for variant in self.variants:
            elsewhere = set().union(*(found for name, found in seeds.items() if name != variant.strategy))
            worth = (len(variant.seeds & elsewhere), len(variant.seeds), variant.mean(metric))
            if variant.strategy not in best or worth > best[variant.strategy][0]:
                best[variant.strategy] = worth, variant
        chosen = sorted((variant for _, variant in best.values()), key=self.standing, reverse=True)[:most]
        return [variant for variant in self.variants if variant in chosen]

    def standing(self, variant: Variant) -> tuple[bool, float]:
        """Sort key of a variant: its mean of the first metric, with single runs below variants of several seeds."""
        return len(variant.runs) > 1, variant.mean(self.metrics[0])

    @property
    def best(self) -> list[Variant]:
        """The contender with the highest standing, and those with the same."""
        contenders = self.contenders()
        highest = max(map(self.standing, contenders))
        return [variant for variant in contenders if self.standing(variant) == highest]

    @property
    def passed_over(self) -> str | None:
        """A sentence that names the methods which appear in the table only; None if all are contenders."""
        tested = {variant.strategy for variant in self.contenders()}
        others = list(dict.fromkeys(v.strategy for v in self.variants if v.strategy not in tested))
        if not others:
            return None
        return (
            f"Only the best {len(tested)} of {len(tested) + len(others)} methods are tested, plotted and compared with "
            f"published scores; the others are in the table only: {'; '.join(others)}."
        )


def compare(runs: Iterable[Run]) -> list[Comparison]:
    """Group finished runs into comparisons, sorted by task, then by number of runs, largest first.

    A run with different data, split, base model or settings is not averaged with the rest: it goes into a separate
    comparison, which says how it differs.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    runs = list(runs)
    for run in runs:
        if run.problem is None:
            groups.setdefault(tuple((name, repr(plain_number(value))) for name, value in _key(run).items()), []).append(
                run
            )
    lost = Counter(run.task for run in runs if run.problem is not None)
    parts = [part for group in groups.values() for part in _by_labels(group)]
    largest: dict[str, dict[str, Any]] = {}
    found = []
    for key, group in sorted(parts, key=lambda part: (part[1][0].task, -len(part[1]))):
        main = largest.setdefault(group[0].task, key)
        variants, notes = variants_of(group)
        comparison = Comparison(key, None if main is key else _difference(key, main), variants, ())
        passed_over = comparison.passed_over
        notes = [*([passed_over] if passed_over else []), *notes, *_notes(group, lost[group[0].task])]
        found.append(dataclasses.replace(comparison, notes=tuple(notes)))
    return found


def _by_labels(group: list[Run]) -> list[tuple[dict[str, Any], list[Run]]]:
    """Split a group by the labels in its runs' predictions, which reveal examples other than the recorded ones.

    Answers to different examples cannot be paired, and a score that was not measured on the recorded split is no
    observation of it. Runs without predictions are trusted: they go with the most common labels.
    """
    found = [(run, None if run.answers is None else _digest(run.answers[1])) for run in group]
    counted = Counter(labels for _, labels in found if labels is not None)
    if not counted:
        return [(_key(group[0]), group)]
    usual = counted.most_common(1)[0][0]
    return [
        (_key(group[0]) | {"validation labels": labels}, [run for run, mine in found if (mine or usual) == labels])
        for labels in counted
    ]


def _digest(labels: np.ndarray) -> str:
    return f"{hashlib.sha256(labels.tobytes()).hexdigest()[:12]} ({len(labels):,} examples)"


def _key(run: Run) -> dict[str, Any]:
    record, arguments = run.record, WHERE_ABSENT | run.arguments
    data = {f"{split} split": (facts["fingerprint"][:12], facts["examples"]) for split, facts in record["data"].items()}
    # Flags that are None are left out below, like flags that an older version did not have.
    names = arguments.keys() - _NOT_GROUPED_BY - _METHOD_FLAGS
    hashes = [record["model"].get(name) for name in ("fingerprint", "configuration")]
    if None in hashes:  # runs up to 0.1.0: a name, such as a folder's, may refer to another model later
        total = record["parameters"]["total"]
        base: dict[str, Any] = {"base model": record["model"]["name"], "size of the base model": total}
    else:
        base = {"base model": BaseModel(f"{hashes[0][:8]}-{hashes[1][:4]}", record["model"]["name"])}
        names -= {"model_revision"}
    settings = {name: arguments[name] for name in sorted(names) if arguments[name] is not None}
    if settings.get("metric_for_best_model") in _metrics_of(run)[:1]:  # the default, spelled out
        del settings["metric_for_best_model"]
    return {
        "task": run.task,
        "kind of task": problem_type_of(record),
        "classes": tuple(record.get("labels", ())),
        **base,
        **data,
        "precision": record["precision"]["name"],
        "effective_batch_size": record["effective_batch_size"],
        **settings,
    }


def _metrics_of(run: Run) -> tuple[str, ...]:
    """The run's metrics, in the task's order: the first one chooses the saved state by default."""
    found = [name.removeprefix("best_eval_") for name in run.results if name.startswith("best_eval_")]
    task = task_in_table(run.arguments)
    names = (name for name in found if name not in ("loss", "step")) if task is None else task.metrics
    return tuple(name for name in names if name in found)


def _difference(key: dict[str, Any], main: dict[str, Any]) -> str:
    parts = []
    for name in dict.fromkeys((*key, *main)):
        here, there = key.get(name), main.get(name)
        if here == there:
            continue
        # Missing predictions are no difference, and another split has other labels anyway.
        if name == "validation labels" and (None in (here, there) or key[_VALIDATION] != main[_VALIDATION]):
            continue
        if name.endswith(" split") and here and there:
            as_many = here[1] == there[1]
            which, usual = (f" {hashed}" if as_many else "" for hashed, _ in (here, there))
            parts.append(f"different {name} ({here[1]:,} examples{which}, not {there[1]:,}{usual})")
        elif name == "classes" and here is not None and there is not None:
            names = f"{len(here)}, not {len(there)}" if len(here) != len(there) else "other names"
            parts.append(f"different classes ({names})")
        else:
            # A flag without a value here is None, or one that an older version did not have.
            value, usual = ("the default" if one is None else one for one in (here, there))
            parts.append(f"different {name} ({value}, not {usual})")
    return "; ".join(parts)


def _processes_of(run: Run) -> set[int]:
    """The numbers of processes that it was trained on: a resumed run may have had several."""
    parts = [run.record, *run.record.get("earlier_cuts", [])]
    return {int(part["processes"]) for part in parts if "processes" in part}


def _notes(group: list[Run], without_result: int) -> list[str]:
    """Caveats about a comparison's runs.

    Args:
        without_result: number of further runs of the same task.
    """
    machines = {str(run.record.get("machine", {}).get("device", "unknown")) for run in group}
    threads = {str(run.record.get("machine", {}).get("threads")) for run in group}
    processes = {number for run in group for number in _processes_of(run)}
    notes = []
    # The same for all: their splits are.
    if leak := leak_in_words(group[0].record["data"]["validation"]):
        notes.append(f"{leak[0].upper()}{leak[1:]}.")
    if without_result:
        are = "1 run of this task has" if without_result == 1 else f"{without_result} runs of this task have"
        notes.append(f"{are} no result, and no part in any mean; see the end.")
    apart = len(notes)
    if len(machines) > 1:
        devices = ", ".join(sorted(machines))
        notes.append(f"The runs are from different machines ({devices}): times and memory are not comparable.")
    if len(processes) > 1:
        numbers = ", ".join(map(str, sorted(processes)))
        notes.append(f"The runs used different numbers of processes ({numbers}): times and memory are not comparable.")
    if len(threads) > 1 and len(notes) == apart:
        numbers = ", ".join(sorted(threads))
        notes.append(f"The runs used different numbers of threads ({numbers}): times are not comparable.")
    counts = Counter(name for run in group for name in _metrics_of(run))
    if some := [name for name, count in counts.items() if count < len(group)]:
        notes.append(f"Left out, since only some of the runs have it: {', '.join(sorted(some))}.")
    if any(run.answers is None for run in group):
        notes.append("Some runs saved no predictions, so differences from them are not tested; train them again.")
    return notes
