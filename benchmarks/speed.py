"""Compare speed, memory and start-up with transformers.Trainer, alternating in one run, each in its own process.

    python -m benchmarks.speed --data_dir glue
    python -m benchmarks.speed --updates 4 --rounds 1 --only "rotten_tomatoes BitFit"

Without --data_dir the packaged data is used. On a CPU the model is the packaged MiniLM-L6, on a GPU one of
bert-base-uncased's shape with random weights. Writes speed.json and speed.md into --output_dir; if it is interrupted,
they hold what was measured until then.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from benchmarks import jobs
from benchmarks.jobs import Job
from benchmarks.options import BERT_BASE_SHAPE, common_parser, describe, model_at_hand, say, write
from benchmarks.report import markdown
from benchmarks.startup import seconds_to_first_update, seconds_to_help
from benchmarks.works import EFFECTIVE_BATCH, Contender, Setting, Work, contenders, free_micro_batch, works
from peftlib.modeling import DEFAULT_MODEL

#: Measured beside speed: "processes" on a CPU only, "epochs" on a GPU only.
PARTS = ("memory", "start", "processes", "epochs")
#: Trainer's updates on a GPU, a third of an epoch: all take it the same time, and together longer than our whole epoch.
_TRAINER_UPDATES = 20


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = common_parser(__doc__, "outputs/speed", BERT_BASE_SHAPE if cuda else DEFAULT_MODEL)
    updates = 57 if cuda else 8  # an epoch of MRPC takes a GPU seconds; 8 updates keep a CPU's run near ten minutes
    parser.add_argument("--updates", type=int, default=updates, help=f"of {EFFECTIVE_BATCH} examples; 0 takes all data")
    parser.add_argument("--warmup", type=int, default=2, help="updates before the clock starts")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each number")
    parser.add_argument("--only", action="append", help="a work's name, as in the table; may be repeated")
    parser.add_argument("--contender", action="append", help="a column's name, as in the table; may be repeated")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="beside speed; all by default")
    options = parser.parse_args()
    chosen = works(glue=options.data_dir is not None)
    if cuda:
        chosen += [free_micro_batch(work) for work in chosen if work.kind == "train"]
    known = {"only": [work.name for work in chosen]}
    known["contender"] = list(dict.fromkeys(one.name for work in chosen for one in contenders(cuda, work)))
    for flag, names in known.items():
        for name in getattr(options, flag) or ():
            if name not in names:
                parser.error(f"--{flag} {name}: unknown (known: {', '.join(names)})")
    chosen = [work for work in chosen if not options.only or work.name in options.only]
    with model_at_hand(options.model_name_or_path) as model:
        setting = Setting(
            options.data_dir, model, options.num_cpu_threads, options.updates, options.warmup, 2 if cuda else 0,
            _TRAINER_UPDATES if cuda else None,
        )  # fmt: skip
        found = describe("speed") | {"speeds": {}, "ceilings": []}
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            measure(found, setting, chosen, options.rounds, set(options.parts), options.contender, cuda=cuda)
        finally:  # also if interrupted
            if any(rounds for by_name in found["speeds"].values() for rounds in by_name.values()):
                write(options.output_dir, "speed", found, markdown(found))


def measure(
    found: dict[str, Any], setting: Setting, chosen: list[Work], rounds: int, parts: set[str],
    names: Collection[str] | None = None, *, cuda: bool,
) -> None:  # fmt: skip
    """Measure everything into `found`, round by round; every other round reverses the order of the contenders.

    Args:
        names: the contenders to measure; None for all.
    """
    speeds: dict[str, dict[str, list[Any]]] = found["speeds"]
    ceilings: list[Any] = found["ceilings"]
    speeds |= {work.name: {one.name: [] for one in contenders(cuda, work)} for work in chosen}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        ceilings.append(jobs.run(Job("ceiling", "ours", ("--num_cpu_threads", str(setting.threads)))))
        for group in groups(chosen, names, cuda=cuda, backwards=number % 2 == 1):
            measured = jobs.run_all([setting.job(work, one.system, one.precision) for work, one in group])
            for (work, one), speed in zip(group, measured, strict=True):
                speeds[work.name][one.name].append(speed)
                say(f"  {work.name}: {one.name} {speed['examples'] / speed['seconds']:.1f} samples/s")
    trained = next((work for work in chosen if work.kind == "train"), None)
    if trained is None:
        return
    say(f"then: {', '.join(sorted(parts))}")
    if "memory" in parts:
        found["memory"] = {method: measure_memory(setting, trained, method) for method in ("bitfit", "full")}
    if "start" in parts:
        config = "single_gpu" if cuda else "cpu"
        waits = [seconds_to_first_update(setting.flags(trained), config) for _ in range(rounds)]
        found["start"] = {"first_update": waits, "help": [seconds_to_help() for _ in range(rounds)]}
    if "epochs" in parts and cuda:
        found["long"] = measure_long_runs(setting, chosen)
    if "processes" in parts and not cuda:
        found["processes"] = measure_processes(setting, trained, rounds)


def groups(
    chosen: list[Work], names: Collection[str] | None = None, *, cuda: bool, backwards: bool
) -> list[list[tuple[Work, Contender]]]:
    """Group the measurements by process.

    On a CPU every measurement has its own process, as memory is measured per process. On a GPU, where an epoch takes
    less time than a process needs to start and memory statistics can be reset, a contender does all its works in one
    process; ours has one process per method, as `acceleration.gpus.leave_out_workspace` affects the whole process.
    """
    step = -1 if backwards else 1
    pairs = [(work, one) for work in chosen for one in contenders(cuda, work)[::step] if not names or one.name in names]
    if not cuda:
        return [[pair] for pair in pairs]
    shared: dict[tuple[str, tuple[str, ...]], list[tuple[Work, Contender]]] = {}
    for work, one in pairs:
        shared.setdefault((one.name, work.method if one.system == "ours" else ()), []).append((work, one))
    return list(shared.values())


def measure_memory(setting: Setting, work: Work, method: str) -> dict[str, Any]:
    """Run ours with another method, for its memory."""
    return jobs.run(setting.job(replace(work, method=("--method", method))))


def measure_processes(setting: Setting, work: Work, rounds: int) -> dict[str, list[Any]]:
    """Measure one process with all threads and two that share them, with the same effective batch."""
    found: dict[str, list[Any]] = {"one": [], "two": []}
    for _ in range(rounds):
        found["one"].append(jobs.run(setting.job(work), "cpu"))
        found["two"].append(jobs.run(setting.job(work, processes=2), "multi_cpu"))
    return found


def measure_long_runs(setting: Setting, chosen: list[Work]) -> dict[str, Any]:
    """Measure whole epochs over all data, one micro-batch per update: ten of MRPC, one of SST-2."""
    whole = replace(setting, updates=0, warm_epochs=0)
    runs: dict[tuple[str, ...], dict[str, Job]] = {}  # by method, see `groups`
    for work in chosen:
        if work.kind == "train" and work.micro_batch == EFFECTIVE_BATCH:
            epochs = 1 if work.task == "sst2" else 10
            name = f"{work.name}, {epochs} epoch{'s' * (epochs > 1)}"
            runs.setdefault(work.method, {})[name] = replace(whole.job(work), epochs=epochs)
    return {
        name: speed
        for named in runs.values()
        for name, speed in zip(named, jobs.run_all(list(named.values())), strict=True)
    }


if __name__ == "__main__":
    main()
