"""What a run says before its first update: what it is, and what may surprise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from peftlib.data.class_weights import BALANCED
from peftlib.data.tasks import MULTI_LABEL, REGRESSION, in_a_list, problem_type_of
from peftlib.run_files import leak_in_words
from peftlib.strategies import STRATEGIES

#: Scores beyond this are hard to learn at usual learning rates.
_LARGE = 100.0
#: What other programs write for a missing value; but "none" may well be a class.
_LIKE_MISSING = {"nan", "null", "none", "na", "n/a", "#n/a", "<na>", "nil"}


def facts_of(
    facts: dict[str, Any], arguments: dict[str, Any], steps: int, step: int | None, folder: Path
) -> dict[str, dict[str, str]]:
    """Return the tables of names and values that describe a run, by their titles.

    Args:
        facts: the content of `run.json`.
        arguments: flag -> value.
        steps: updates of the whole run.
        step: the update that it resumes after; None for a new run.
        folder: the output folder.
    """
    parameters, data = facts["parameters"], facts["data"]
    threads, on_cpu = facts["machine"]["threads"], facts["machine"]["device_type"] == "cpu"
    examples = min(facts["effective_batch_size"], data["train"]["examples"])
    run = {
        "task": f"{arguments['task_name']}, {data['train']['examples']:,} training and "
        f"{data['validation']['examples']:,} validation examples ({data['train']['source']})",
        **_outputs(facts),
        "model": facts["model"]["name"],
        "method": f"{_named(arguments)}, learning rate {facts['learning_rate']:g}",
        **changes_of_loss(facts, arguments),
        "updates": f"{steps:,} of {examples} examples, {_counted(facts['processes'], 'process')}",
        **({} if step is None else {"resumed": _resumed(step, steps)}),
        "precision": f"{facts['precision']['name']} ({facts['precision']['reason']})",
        "device": f"{facts['machine']['device']}" + (f", {_counted(threads, 'thread')}" if on_cpu else ""),
        "output": "none, since this is a dry run" if arguments["dry_run"] else str(folder),
    }
    counts = {
        "trainable": f"{parameters['trainable']:,}",
        "total": f"{parameters['total']:,}",
        "ratio": f"{parameters['trainable_ratio']:.4%}",
    }
    return {"run": run, "parameters": counts}


def notes_of(facts: dict[str, Any], arguments: dict[str, Any], steps: int, busy_cores: float) -> Iterator[str]:
    """Yield a line for each thing that may make the run worse or slower than expected.

    Args:
        facts, arguments, steps: as in `facts_of`.
        busy_cores: cores that other processes keep busy, see `Neighbours`.
    """
    data, machine = facts["data"], facts["machine"]
    for split, name in (("train", "training"), ("validation", "validation")):
        if cut := data[split]["truncated"]:
            yield (
                f"{cut:,} of {data[split]['examples']:,} {name} examples are longer than --max_length "
                f"{arguments['max_length']} tokens, and were truncated"
            )
    if leak := leak_in_words(data["validation"]):
        yield leak
    if (largest := data["train"].get("largest", 0.0)) > _LARGE:
        yield (
            f"the numbers to predict reach {largest:g}; the model starts near 0, and learns numbers of the "
            "order of 1 fastest: rescale them"
        )
    yield from _classes_without(data, facts.get("labels", []))
    for label in facts.get("labels", ()):
        if label.lower() in _LIKE_MISSING:
            yield f"{label!r} is taken for a class; if it marks rows without a label, remove them"
    warmup = arguments["num_warmup_steps"] or 0
    if warmup > steps and arguments["lr_scheduler_type"] != "constant":
        yield f"--num_warmup_steps {warmup}: the run is shorter, so the learning rate rises over all {steps} updates"
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()) not in ("", "no"):
        yield f"torch.compile, which accelerate's dynamo_backend {backend} asks for, is not used"
    free = max(1, min(machine["threads"], os.cpu_count() or 1) - round(busy_cores))
    if machine["device_type"] == "cpu" and facts["processes"] == 1 and busy_cores >= 0.5 and free < machine["threads"]:
        yield (
            f"other processes keep {busy_cores:.1f} cores busy, and threads that wait for each other can be many "
            f"times slower: try --num_cpu_threads {free}"
        )


def _classes_without(data: dict[str, Any], labels: list[str]) -> Iterator[str]:
    """Yield a line about the classes without training examples, and one about those without validation examples."""
    for split, name, so in (
        ("train", "training", "the model cannot learn them"),
        ("validation", "validation", "no score tells how well they are recognised"),
    ):
        counts = data[split].get("class_counts")
        missing = [label for label, count in zip_longest(labels, counts or [], fillvalue=0) if not count]
        if counts is not None and missing:
            shown = _first_of([_shortened(str(label)) for label in missing])
            yield f"no {name} example of {len(missing):,} of {len(labels):,} classes ({shown}): {so}"


def _resumed(step: int, steps: int) -> str:
    return f"after step {step:,}" if step < steps else f"after step {step:,}, the last: nothing is left to train"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "es" if name.endswith("s") else "s")


def _named(arguments: dict[str, Any]) -> str:
    """The method's name, and its options if it is one of PEFT's other methods."""
    name = STRATEGIES[arguments["method"]].named(arguments)
    return name if arguments.get("peft_kwargs", "{}") == "{}" else f"{name} {arguments['peft_kwargs']}"


def _outputs(facts: dict[str, Any]) -> dict[str, str]:
    """A title and the model's outputs: the score range, or the number of classes and the first ones.

    Printing them reveals typos in the user's own labels, which become classes.
    """
    kind = problem_type_of(facts)
    if kind == REGRESSION:
        return {"scores": "{:g} to {:g}".format(*facts["score_range"]) if "score_range" in facts else "any number"}
    labels = facts["labels"]
    title = "classes, any number of them" if kind == MULTI_LABEL else "classes"
    return {title: f"{len(labels)}: {_first_of([_shortened(label) for label in labels])}"}


def changes_of_loss(facts: dict[str, Any], arguments: dict[str, Any]) -> dict[str, str]:
    """Describe how the training loss differs from the plain mean; empty if it does not. Evaluations keep that.

    Args:
        facts: the content of `run.json`.
        arguments: flag -> value; those of 0.1.0 lack the flags for it.
    """
    weights = facts["data"].get("train", {}).get("class_weights", {})
    parts = []
    if weights:
        shown = _first_of([f"{_shortened(name)} {weight:.4g}" for name, weight in weights.items()])
        parts.append(f"class weights {shown}" + (" (balanced)" if arguments["class_weights"] == BALANCED else ""))
    if smoothing := arguments.get("label_smoothing_factor"):
        parts.append(f"label smoothing {smoothing:g}")
    return {"training loss": "; ".join(parts)} if parts else {}


def _shortened(label: str) -> str:
    return in_a_list(label if len(label) <= 30 else f"{label[:30]}…")


def _first_of(parts: list[str]) -> str:
    return ", ".join(parts[:8]) + (", …" if len(parts) > 8 else "")
