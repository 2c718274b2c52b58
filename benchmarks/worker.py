"""Run measurements in their own process: `python -m benchmarks.worker FOLDER` (see `jobs.run_all`).

Reads FOLDER/jobs.json, writes FOLDER/results.json.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job
from peftlib.cli import importing_torch
from peftlib.processes import end_with_parent


def measure(job: Job) -> dict[str, Any]:
    """Run a job. Each branch imports only what it needs, as memory and start-up are measured too."""
    if job.kind == "ceiling":
        return _ceilings(job)
    if job.kind == "profile":
        from benchmarks.profile_step import profile

        return profile(job)
    if job.kind == "quality":
        from benchmarks.quality import final_scores

        return final_scores(job)
    if job.system == "trainer":
        system = importlib.import_module("benchmarks.stock")
    else:
        with importing_torch():  # as our scripts do
            system = importlib.import_module("benchmarks.ours")
    return asdict(system.measure_training(job) if job.kind == "train" else system.measure_evaluation(job))


def _ceilings(job: Job) -> dict[str, Any]:
    import torch

    from benchmarks.ceiling import matmul_ceiling
    from peftlib.arguments import parse_train_arguments

    if threads := parse_train_arguments(job.argv()).training.num_cpu_threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precisions = ("no", "bf16", "fp16") if device.type == "cuda" else ("no", "bf16")
    return {precision: matmul_ceiling(device, precision) for precision in precisions}


def _start_afresh() -> None:
    """Keep the last measurement from affecting the next one, as far as that is possible within a process."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    end_with_parent()  # the parent may be a launcher, itself ended with its own parent
    folder = Path(sys.argv[1])
    results: list[dict[str, Any]] = []
    for raw in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        if results:
            _start_afresh()
        results.append(measure(Job(**{**raw, "flags": tuple(raw["flags"])})))
    for later in results[1:]:
        if "first_update" in later:
            later["first_update"] = None  # timed from the start of the process
    if os.environ.get("RANK", "0") == "0":
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
