"""Profile of a training step: the operators' shares of its time, before (our plain loop) and after acceleration.

    python -m benchmarks.profile_step --data_dir glue
    python -m benchmarks.profile_step --data_dir glue --only "MRPC BitFit, 64×1" --precision bf16    # on a GPU

"Before" is our loop without acceleration and without length grouping. On a GPU the operators are kernels and copies,
and a second table divides the GPU's time between them and the gaps. Writes profile.json and profile.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from benchmarks import jobs
from benchmarks.jobs import Job
from benchmarks.options import BERT_BASE_SHAPE, common_parser, describe, model_at_hand, write
from benchmarks.report import table
from benchmarks.works import EFFECTIVE_BATCH, Setting, free_micro_batch, works
from peftlib.modeling import DEFAULT_MODEL

_WARMUP = 2
#: Most µs of a gap between two kernels of a CUDA graph, or of those that the host has launched ahead of the GPU.
_SHORT_GAP = 3.0


def profile(job: Job) -> dict[str, Any]:
    """Measure each operator's self time in seconds, over whole epochs; on a GPU its timeline too. Runs in a worker."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    from benchmarks.ours import ONLY_AT_THE_END, prepared, start_late
    from peftlib.training.loop import train

    cuda = torch.cuda.is_available()
    with prepared(job, 1 + job.warm_epochs + job.epochs, ONLY_AT_THE_END) as (run, reporter):
        first = (1 + job.warm_epochs) * start_late(run, job.warmup)
        recording = record(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])

        def listen(step: int) -> None:
            if step == first:
                recording.start()
            elif step == run.plan.steps:
                recording.stop()

        reporter.listener = listen
        train(run)
        spent = {event.key: _own_seconds(event, cuda) for event in recording.key_averages()}
        found: dict[str, Any] = {"operators": {name: seconds for name, seconds in spent.items() if seconds > 0}}
        if cuda:
            spans = [
                (event.time_range.start, event.time_range.end)
                for event in recording.events()
                if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
            ]
            found["timeline"] = timeline(spans, run.plan.steps - first)
        return found


def _own_seconds(event: Any, cuda: bool) -> float:
    return float(event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6


def timeline(spans: Iterable[tuple[float, float]], updates: int) -> dict[str, float]:
    """Divide a GPU's time, in µs per update, from the start and end of every kernel and copy, in µs.

    Returns:
        `busy`; `launches`; `short gaps`, of up to `_SHORT_GAP`, and `longer gaps`, in which the GPU waits for the host;
        and `all`, from the first start to the last end.
    """
    ordered = sorted(spans)
    begin, end = ordered[0][0], ordered[0][0]
    gaps = {"short gaps": 0.0, "longer gaps": 0.0}
    for start, stop in ordered:
        gap = max(0.0, start - end)
        gaps["short gaps" if gap <= _SHORT_GAP else "longer gaps"] += gap
        end = max(end, stop)
    found = {"busy": end - begin - sum(gaps.values()), **gaps, "all": end - begin, "launches": float(len(ordered))}
    return {name: value / updates for name, value in found.items()}


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


def timelines(by_system: dict[str, dict[str, float]]) -> str:
    """Format the systems' timelines as Markdown."""
    names = ["busy", "short gaps", "longer gaps", "all", "launches"]
    rows = [[system, *(f"{found[name]:,.0f}" for name in names)] for system, found in by_system.items()]
    return table(["µs per update", *names], rows)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = common_parser(__doc__, "outputs/profile", BERT_BASE_SHAPE if cuda else DEFAULT_MODEL)
    parser.add_argument("--updates", type=int, default=16, help=f"of {EFFECTIVE_BATCH} examples; 0 takes all data")
    parser.add_argument("--top", type=int, default=20, help="rows of the table")
    parser.add_argument("--precision", default="auto", help="no, fp16, bf16 or auto (the default)")
    parser.add_argument("--only", help="the work, as named by benchmarks.speed (default: BitFit, 16×4)")
    options = parser.parse_args()
    known = [work for work in works(glue=options.data_dir is not None) if work.kind == "train"]
    known += [free_micro_batch(work) for work in known]
    chosen = {work.name: work for work in known}.get(options.only or known[0].name)
    if chosen is None:
        parser.error(f"--only {options.only}: unknown (known: {', '.join(work.name for work in known)})")
    with model_at_hand(options.model_name_or_path) as model:
        setting = Setting(options.data_dir, model, options.num_cpu_threads, options.updates)
        flags = setting.flags(chosen, options.precision)
        # On a GPU, ours records its graphs in the first epochs.
        found = {
            system: jobs.run(Job("profile", system, flags, _WARMUP, warm_epochs=2 if cuda else 0))
            for system in ("plain", "ours")
        }
    text = shares(found["plain"]["operators"], found["ours"]["operators"], options.top)
    if cuda:
        text += "\n\n" + timelines({system: measured["timeline"] for system, measured in found.items()})
    write(options.output_dir, "profile", describe("profile_step") | found, text)


if __name__ == "__main__":
    main()
