"""Format measurements as Markdown for RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any


def markdown(found: dict[str, Any]) -> str:
    """Format all tables of `speed.py`'s result, without what was not measured."""
    speeds = {
        work: measured
        for work, by_name in found["speeds"].items()
        if (measured := {name: rounds for name, rounds in by_name.items() if rounds})
    }
    parts = [ratios(speeds), details(speeds, found["ceilings"])]
    tables: dict[str, Callable[[Any], str]] = {
        "memory": memory,
        "start": start,
        "processes": processes,
        "long": long_runs,
    }
    parts += [describe(found[name]) for name, describe in tables.items() if found.get(name)]
    return "\n\n".join(parts)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rate(speed: dict[str, Any]) -> float:
    """Return samples per second."""
    return float(speed["examples"] / speed["seconds"])


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Format the median of the rounds' ratios, with the smallest and largest."""
    each = [rate(our) / rate(their) for our, their in zip(ours, theirs, strict=False)]  # the last round may be cut off
    return f"{median(each):.2f} × ({min(each):.2f}–{max(each):.2f})"


def ratios(speeds: dict[str, dict[str, list[Any]]]) -> str:
    """Tabulate samples per second, and their ratio to Trainer's: medians of the rounds."""
    names = list(dict.fromkeys(name for by_name in speeds.values() for name in by_name))
    pairs = [(ours, theirs) for ours in names for theirs in names if _compare(ours, theirs)]
    rows = []
    for work, by_name in speeds.items():
        medians = [f"{median(map(rate, by_name[name])):.1f}" if name in by_name else "" for name in names]
        ratios = [ratio(by_name[a], by_name[b]) if {a, b} <= by_name.keys() else "" for a, b in pairs]
        rows.append([work, *medians, *ratios])
    head = ["samples/s", *(_with_precision(name, speeds) for name in names), *(f"{a} / {b}" for a, b in pairs)]
    return "## Speed\n\n" + table(head, rows)


def _compare(ours: str, theirs: str) -> bool:
    """Return whether to compare two systems: ours with each Trainer; on a GPU only in the same precision."""
    if not (ours.startswith("ours") and theirs.startswith("Trainer")):
        return False
    return ours == "ours" or ours.split()[1] == theirs.split()[1]


def _with_precision(name: str, speeds: dict[str, dict[str, list[Any]]]) -> str:
    """Return the column's name, with the precision that "ours" has chosen."""
    chosen = next(by_name[name][0]["precision"] for by_name in speeds.values() if name in by_name)
    return f"ours ({'fp32' if chosen == 'no' else chosen})" if name == "ours" else name


def details(speeds: dict[str, dict[str, list[Any]]], ceilings: list[dict[str, float]]) -> str:
    """Tabulate tokens, padding, share of the ceiling, memory and time to the first update for every contender."""
    ceiling = {precision: max(round_[precision] for round_ in ceilings) for precision in ceilings[0]}
    rows = []
    for work, by_name in speeds.items():
        for name, rounds in by_name.items():
            first = rounds[0]
            share = [speed["operations"] / speed["seconds"] / ceiling[speed["precision"]] for speed in rounds]
            waits = [speed["first_update"] for speed in rounds if speed["first_update"] is not None]
            rows.append(
                [
                    work,
                    name,
                    f"{median(speed['tokens'] / speed['seconds'] for speed in rounds):,.0f}",
                    f"{first['tokens'] / first['computed']:.2f}",
                    f"{median(share):.0%}",
                    _megabytes(median(_peak(speed) for speed in rounds)),
                    f"{median(waits):.1f}" if waits else "",
                ]
            )
    head = ["work", "system", "real tokens/s", "real share of tokens", "share of the ceiling", "peak (MB)"]
    measured = ", ".join(f"{name if name != 'no' else 'fp32'} {rate / 1e9:,.0f}" for name, rate in ceiling.items())
    text = (
        f"The ceiling is the fastest matrix product of this run, in GFLOP/s: {measured}. The work is what the plain "
        "algorithm needs for the real tokens, the same for every system, so what ours leaves out of the last layer "
        "counts as done: 4 operations per weight and token for frozen weights (forward, and the gradient of the "
        "input), 6 for trained ones, and attention's products (`benchmarks/ceiling.py`). Peak memory is the process's, "
        "on a GPU its tensors'; the first update is timed from the start of the worker's process."
    )
    return f"{table([*head, 'first update (s)'], rows)}\n\n{text}"


def memory(speeds: dict[str, dict[str, Any]]) -> str:
    """Tabulate peak memory of BitFit and full fine-tuning: of the process and above its imports, or of GPU tensors."""
    kinds = {"whole process": _peak_of_process, "above the imports": _peak_above_imports}
    if "cuda_peak" in speeds["full"]["memory"]:
        kinds = {"tensors on the GPU": _peak}
    rows = []
    for kind, take in kinds.items():
        bitfit, full = take(speeds["bitfit"]), take(speeds["full"])
        rows.append([kind, _megabytes(bitfit), _megabytes(full), f"{bitfit / full:.2f}"])
    return "## Peak memory\n\n" + table(["MB", "BitFit", "full", "BitFit / full"], rows)


def _peak_of_process(speed: dict[str, Any]) -> float:
    return float(speed["memory"]["peak"])


def _peak_above_imports(speed: dict[str, Any]) -> float:
    return float(speed["memory"]["peak"] - speed["memory"]["after_imports"])


def _peak(speed: dict[str, Any]) -> float:
    return float(speed["memory"].get("cuda_peak", speed["memory"]["peak"]))


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f}"


def start(waits: dict[str, list[float]]) -> str:
    """Tabulate start-up times in seconds."""
    rows = [
        [
            "`accelerate launch scripts/train.py`, to the end of the first update",
            f"{median(waits['first_update']):.1f}",
        ],
        ["`python scripts/train.py --help`", f"{median(waits['help']):.1f}"],
    ]
    return "## Start-up\n\n" + table(["command", "seconds"], rows)


def processes(found: dict[str, list[Any]]) -> str:
    """Tabulate the speed of two processes and of one."""
    one, two = (median(map(rate, found[name])) for name in ("one", "two"))
    row = [f"{one:.1f}", f"{two:.1f}", ratio(found["two"], found["one"])]
    threads = {name: found[name][0]["threads"] for name in found}
    head = [f"samples/s: 1 process × {threads['one']} threads", f"2 processes × {threads['two']}", "ratio"]
    return "## Processes\n\n" + table(head, [row])


def long_runs(found: dict[str, Any]) -> str:
    """Tabulate the seconds of whole epochs."""
    rows = [[name, f"{speed['seconds']:.1f}", f"{rate(speed):,.0f}"] for name, speed in found.items()]
    return "## Whole epochs\n\n" + table(["work (micro-batch free)", "seconds", "samples/s"], rows)
