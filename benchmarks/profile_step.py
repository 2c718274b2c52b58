"""Profile of a training step: the operators' shares of its time, before (our plain loop) and after acceleration.

    python -m benchmarks.profile_step --data_dir glue

"Before" is our loop without acceleration and without length grouping. Writes profile.json and profile.md.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import jobs
from benchmarks.jobs import Job
from benchmarks.options import common_parser, describe, write
from benchmarks.report import table
from benchmarks.works import EFFECTIVE_BATCH, Setting, works

_WARMUP = 2


def profile(job: Job) -> dict[str, Any]:
    """Measure each operator's self time in seconds, over whole epochs; runs in a worker."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    from benchmarks.ours import ONLY_AT_THE_END, prepared, start_late
    from peftlib.training.loop import train

    cuda = torch.cuda.is_available()
    with prepared(job, 1 + job.epochs, ONLY_AT_THE_END) as (run, reporter):
        first = start_late(run, job.warmup)
        recording = record(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])

        def listen(step: int) -> None:
            if step == first:
                recording.start()
            elif step == run.plan.steps:
                recording.stop()

        reporter.listener = listen
        train(run)
        spent = {event.key: _own_seconds(event, cuda) for event in recording.key_averages()}
        return {"operators": {name: seconds for name, seconds in spent.items() if seconds > 0}}


def _own_seconds(event: Any, cuda: bool) -> float:
    return float(event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6


def shares(before: dict[str, float], after: dict[str, float], top: int) -> str:
    """Format the operators that take most time before or after, with seconds and shares, as Markdown."""
    totals = sum(before.values()), sum(after.values())
    leading = sorted({*before, *after}, key=lambda name: -max(before.get(name, 0), after.get(name, 0)))[:top]
    rows = [
        [f"`{name}`", *_cells(before.get(name, 0.0), totals[0]), *_cells(after.get(name, 0.0), totals[1])]
        for name in leading
    ]
    rows.append(["all operators", *_cells(totals[0], totals[0]), *_cells(totals[1], totals[1])])
    return table(["operator", "before (s)", "share", "after (s)", "share"], rows)


def _cells(seconds: float, total: float) -> list[str]:
    return [f"{seconds:.2f}", f"{seconds / total:.1%}"]


def main() -> None:
    parser = common_parser(__doc__, "outputs/profile")
    parser.add_argument("--updates", type=int, default=16, help=f"of {EFFECTIVE_BATCH} examples; 0 takes all data")
    parser.add_argument("--top", type=int, default=20, help="rows of the table")
    options = parser.parse_args()
    setting = Setting(options.data_dir, options.model_name_or_path, options.num_cpu_threads, options.updates)
    work = works(glue=options.data_dir is not None)[0]
    operators = {
        system: jobs.run(Job("profile", system, setting.flags(work), _WARMUP))["operators"]
        for system in ("plain", "ours")
    }
    found = describe("profile_step") | {"operators": operators}
    write(options.output_dir, "profile", found, shares(operators["plain"], operators["ours"], options.top))


if __name__ == "__main__":
    main()
