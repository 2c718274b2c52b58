"""One measurement in a process of its own: `python -m benchmarks.worker FOLDER` (see `jobs.run`).

Reads FOLDER/job.json, writes FOLDER/result.json.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job


def measure(job: Job) -> dict[str, Any]:
    """Do what the job says. Each branch imports what it needs, for memory and start-up are measured too."""
    if job.kind == "ceiling":
        return _ceilings()
    if job.kind == "profile":
        from benchmarks.profile_step import profile

        return profile(job)
    if job.kind == "quality":
        from benchmarks.quality import final_scores

        return final_scores(job)
    system = importlib.import_module("benchmarks.stock" if job.system == "trainer" else "benchmarks.ours")
    return asdict(system.measure_training(job) if job.kind == "train" else system.measure_evaluation(job))


def _ceilings() -> dict[str, Any]:
    import torch

    from benchmarks.ceiling import matmul_ceiling

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precisions = ("no", "bf16", "fp16") if device.type == "cuda" else ("no", "bf16")
    return {precision: matmul_ceiling(device, precision) for precision in precisions}


def main() -> None:
    folder = Path(sys.argv[1])
    raw = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    result = measure(Job(**{**raw, "flags": tuple(raw["flags"])}))
    if os.environ.get("RANK", "0") == "0":
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
