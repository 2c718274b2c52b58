"""Which runs may be compared, and which of them are the same thing under another seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peftlib.data.tasks import TASKS
from peftlib.reporting.runs import Run
from peftlib.strategies import STRATEGIES

#: Flags that say where, how often and how fast, or that stand in the record in another form (the batch as its
#: effective size, the precision as what `auto` became, the data as its fingerprint).
_NO_SETTING = frozenset({
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "extend_training", "checkpointing_steps",
    "checkpoints_total_limit", "report_to", "project_name", "run_name", "logging_steps", "dataloader_num_workers",
    "num_cpu_threads", "per_device_eval_batch_size", "auto_find_batch_size", "data_dir", "config",
    "trust_remote_code", "pad_to_max_length", "per_device_train_batch_size", "gradient_accumulation_steps",
    "mixed_precision", "max_train_samples", "max_eval_samples", "model_name_or_path", "task_name",
    # What a comparison is about.
    "method", "seed", "learning_rate",
})  # fmt: skip
_METHOD_FLAGS = frozenset(field.name for strategy in STRATEGIES.values() for field in dataclasses.fields(strategy))


@dataclass(frozen=True)
class Variant:
    """One way to train: a method with its flags, at one learning rate, under one or more seeds.

    Attributes:
        flags: the method's own.
        label: names it among the others of its comparison.
        runs: finished ones, by seed, each seed once.
    """

    method: str
    flags: dict[str, Any]
    rate: float
    label: str
    runs: tuple[Run, ...]

    def scores(self, metric: str) -> list[float]:
        """One per run."""
        return [run.score(metric) for run in self.runs]

    def mean(self, metric: str) -> float:
        """Over the runs."""
        return sum(self.scores(metric)) / len(self.runs)

    @property
    def trainable(self) -> int:
        """Trained parameters."""
        return int(self.runs[0].record["parameters"]["trainable"])

    @property
    def strategy(self) -> str:
        """The label without the rate."""
        return _strategy_label(self.method, self.flags)


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in method, rate and seed only.

    Attributes:
        key: what they have in common: name -> value.
        apart: why they do not stand with the main comparison of their task, in words; None for that one itself.
        variants: by the number of trained parameters, then by label.
        notes: what a reader has to know of them.
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
        return str(self.key["base model"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's; the first one chose every run's saved state."""
        if self.task in TASKS:
            return TASKS[self.task].metrics
        results = self.variants[0].runs[0].results
        names = [name.removeprefix("best_eval_") for name in results if name.startswith("best_eval_")]
        return tuple(name for name in names if name not in ("loss", "step"))

    @property
    def runs(self) -> list[Run]:
        """All of its finished runs."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def settings(self) -> str:
        """What its runs have in common, in one line."""
        parts = []
        for name, value in self.key.items():
            if name.endswith(" split"):
                parts.append(f"{name} {value[1]:,} examples ({value[0]})")
            elif name not in ("task", "base model"):
                parts.append(f"{name} {value}")
        return ", ".join(parts)

    def contenders(self, most: int = 8) -> list[Variant]:
        """Per strategy the rate with the best mean score; the best of these where there are more than `most`."""
        metric = self.metrics[0]
        best: dict[str, Variant] = {}
        for variant in self.variants:
            rival = best.get(variant.strategy)
            if rival is None or variant.mean(metric) > rival.mean(metric):
                best[variant.strategy] = variant
        chosen = sorted(best.values(), key=lambda variant: variant.mean(metric), reverse=True)[:most]
        return [variant for variant in self.variants if variant in chosen]


def compare(runs: Iterable[Run]) -> list[Comparison]:
    """Group finished runs into comparisons: by task, the one with the most runs first.

    A run with other data, another split, base model or setting is not averaged with the rest: it stands in a
    comparison of its own, which says how it differs.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        if run.problem is None:
            groups.setdefault(tuple((name, repr(value)) for name, value in _key(run).items()), []).append(run)
    largest: dict[str, dict[str, Any]] = {}
    found = []
    for group in sorted(groups.values(), key=lambda group: (group[0].task, -len(group))):
        key = _key(group[0])
        main = largest.setdefault(group[0].task, key)
        variants, notes = _variants(group)
        apart = None if main is key else _difference(key, main)
        found.append(Comparison(key, apart, variants, (*notes, *_notes(group))))
    return found


def _key(run: Run) -> dict[str, Any]:
    record, arguments = run.record, run.arguments
    data = {f"{split} split": (facts["fingerprint"][:12], facts["examples"]) for split, facts in record["data"].items()}
    settings = {name: arguments[name] for name in sorted(arguments.keys() - _NO_SETTING - _METHOD_FLAGS)}
    return {
        "task": run.task,
        "base model": record["model"]["name"],
        **data,
        "precision": record["precision"]["name"],
        "effective_batch_size": record["effective_batch_size"],
        **settings,
    }


def _difference(key: dict[str, Any], main: dict[str, Any]) -> str:
    parts = []
    for name in dict.fromkeys((*key, *main)):
        here, there = key.get(name), main.get(name)
        if here == there:
            continue
        if name.endswith(" split") and here and there:
            parts.append(f"another {name} ({here[1]:,} examples {here[0]}, not {there[1]:,} examples {there[0]})")
        else:
            parts.append(f"another {name} ({here}, not {there})")
    return "; ".join(parts)


def _variants(group: list[Run]) -> tuple[tuple[Variant, ...], list[str]]:
    """The group's variants, and a note for every run that repeats another one's seed."""
    found: dict[tuple[str, str, float], dict[int, Run]] = {}
    notes = []
    for run in sorted(group, key=lambda run: str(run.record.get("started", "")), reverse=True):
        seeds = found.setdefault((run.method, repr(_flags(run)), run.record["learning_rate"]), {})
        if run.seed in seeds:
            # Twice the same seed is one observation: counted twice it would narrow the interval for nothing.
            notes.append(f"{run.name} repeats {seeds[run.seed].name} (seed {run.seed}) and is left out, being older.")
        else:
            seeds[run.seed] = run
    rates: dict[tuple[str, str], set[float]] = {}
    for method, flags, rate in found:
        rates.setdefault((method, flags), set()).add(rate)
    variants = []
    for (method, flags, rate), seeds in found.items():
        first = next(iter(seeds.values()))
        label = _strategy_label(method, _flags(first)) + (f", lr {rate:g}" if len(rates[method, flags]) > 1 else "")
        ordered = tuple(seeds[seed] for seed in sorted(seeds))
        variants.append(Variant(method, _flags(first), rate, label, ordered))
    return tuple(sorted(variants, key=lambda variant: (variant.trainable, variant.label))), notes


def _flags(run: Run) -> dict[str, Any]:
    """The flags of the run's own method, those of its record."""
    if run.method not in STRATEGIES:
        return {}
    names = [field.name for field in dataclasses.fields(STRATEGIES[run.method])]
    return {name: run.arguments[name] for name in names if name in run.arguments}


def _strategy_label(method: str, flags: dict[str, Any]) -> str:
    """`LoRA r=8`, `BitFit, train_head=False`: the rank always, other flags where they are not the default."""
    if method not in STRATEGIES:
        return method
    kind = STRATEGIES[method]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    parts = [f"{kind.__name__} r={flags['lora_r']}" if "lora_r" in flags else kind.__name__]
    parts += [
        f"{name}={value}" for name, value in flags.items() if name != "lora_r" and value != defaults.get(name, value)
    ]
    return ", ".join(parts)


def _notes(group: list[Run]) -> list[str]:
    machines = {str(run.record.get("machine", {}).get("device", "unknown")) for run in group}
    threads = {str(run.record.get("machine", {}).get("threads")) for run in group}
    notes = []
    if len(machines) > 1:
        notes.append(f"Runs of different machines ({', '.join(sorted(machines))}): times and memory do not compare.")
    elif len(threads) > 1:
        notes.append(f"Runs on different numbers of threads ({', '.join(sorted(threads))}): times do not compare.")
    if any(run.answers is None for run in group):
        notes.append("Some runs have left no predictions, so their examples cannot be paired; train them again.")
    return notes
