"""Does speed cost quality? Dev accuracy of ours and of the plain path over several seeds, with paired differences.

    python -m benchmarks.quality --data_dir glue --seeds 5
    python -m benchmarks.quality --data_dir glue --only "MRPC LoRA r=16" --num_train_epochs 5

"Plain" is the same loop with the model as transformers makes it (no acceleration, fp32 frozen weights) and updates of
uniformly drawn examples. Everything else is equal, seed by seed. Writes quality.json and quality.md.
"""

from __future__ import annotations

import shlex
from statistics import mean, stdev
from typing import Any

from benchmarks import jobs
from benchmarks.jobs import Job, System
from benchmarks.options import common_parser, describe, say, write
from benchmarks.report import table
from benchmarks.works import Setting, works
from peftlib.evaluation.statistics import mean_interval

SYSTEMS: tuple[System, ...] = ("plain", "ours")


def final_scores(job: Job) -> dict[str, Any]:
    """Return the metrics of every evaluation of a whole run; runs in a worker."""
    from benchmarks.ours import prepared
    from peftlib.training.loop import train

    with prepared(job, job.epochs, None) as (run, _):
        return {"history": train(run).history}


def summary(accuracies: dict[str, dict[str, list[float]]]) -> str:
    """Format accuracies (work -> system -> one per seed) as a Markdown table."""
    rows = []
    for work, by_system in accuracies.items():
        gain = mean_interval([ours - plain for ours, plain in zip(by_system["ours"], by_system["plain"], strict=True)])
        rows.append(
            [
                work,
                str(len(by_system["ours"])),
                *(f"{mean(by_system[system]):.4f} ± {stdev(by_system[system]):.4f}" for system in SYSTEMS),
                f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})",
            ]
        )
    head = ["dev accuracy", "seeds", "plain", "ours", "ours - plain (95 % interval)"]
    note = "After the last update; mean ± standard deviation over the seeds."
    return f"{table(head, rows)}\n\n{note}"


def main() -> None:
    parser = common_parser(__doc__, "outputs/quality")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each system, at least two")
    parser.add_argument("--num_train_epochs", type=int, default=3, help="of each run")
    parser.add_argument("--updates", type=int, default=0, help="an epoch's, of 64 examples; 0 takes all data")
    parser.add_argument("--only", action="append", help="a work's name (MRPC BitFit); may be repeated")
    parser.add_argument("--ours", default="", help="more flags for ours, in quotes, such as '--group_by_length false'")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: an interval needs at least two")
    setting = Setting(options.data_dir, options.model_name_or_path, options.num_cpu_threads, options.updates)
    chosen = [work for work in works(glue=options.data_dir is not None) if work.kind == "train"]
    if unknown := {*(options.only or ())} - {work.name for work in chosen}:
        parser.error(f"--only {min(unknown)}: unknown (known: {', '.join(work.name for work in chosen)})")
    found: dict[str, dict[str, list[float]]] = {}
    for work in chosen:
        if options.only and work.name not in options.only:
            continue
        found[work.name] = {system: [] for system in SYSTEMS}
        for seed in range(1, options.seeds + 1):
            for system in SYSTEMS:
                more = shlex.split(options.ours) if system == "ours" else []
                flags = (*setting.flags(work), "--seed", str(seed), *more)
                result = jobs.run(Job("quality", system, flags, epochs=options.num_train_epochs))
                found[work.name][system].append(result["history"][-1]["accuracy"])
                say(f"{work.name}, seed {seed}, {system}: {found[work.name][system][-1]:.4f}")
    write(options.output_dir, "quality", describe("quality") | {"accuracy": found}, summary(found))


if __name__ == "__main__":
    main()
