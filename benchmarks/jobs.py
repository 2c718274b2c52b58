"""What a worker process measures, and how the parent starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from peftlib.processes import end_with_parent

ROOT = Path(__file__).resolve().parents[1]
#: Passes over the validation split under the clock.
EVALUATIONS = 2
#: What "plain" goes without.
_PLAIN = ("--group_by_length", "false", "--frozen_dtype", "fp32", "--cuda_graphs", "false")
_LAUNCHER = "accelerate.commands.launch"

System = Literal["ours", "plain", "trainer"]
Kind = Literal["train", "evaluate", "profile", "quality", "ceiling"]


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        kind: what is measured; see `worker.py`.
        system: "ours" as `scripts/train.py` runs it; "plain" is our loop without acceleration and without length
            grouping; "trainer" is transformers.Trainer.
        flags: of `scripts/train.py`, for every system.
        warmup: updates before the clock starts.
        warm_epochs: passes over the training data after that, still before the clock starts: ours records its CUDA
            graphs in them.
        epochs: passes over the training data under the clock.
    """

    kind: Kind
    system: System
    flags: tuple[str, ...]
    warmup: int = 2
    warm_epochs: int = 0
    epochs: int = 1

    def argv(self) -> list[str]:
        """The flags, with those that "plain" stands for."""
        return [*self.flags, *(_PLAIN if self.system == "plain" else ()), "--report_to", "none"]


def run(job: Job, config: str | None = None) -> dict[str, Any]:
    """Measure in a process of its own, see `run_all`."""
    return run_all([job], config)[0]


def run_all(jobs: Sequence[Job], config: str | None = None, timeout: int = 3600) -> list[dict[str, Any]]:
    """Measure one after the other in a fresh process.

    Args:
        config: a file of `accelerate_configs/` to launch it with; None starts plain Python.
        timeout: seconds; what hangs is ended.

    Raises:
        RuntimeError: the worker failed; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]), encoding="utf-8")
        python = [sys.executable, "-m"]
        launcher = [_LAUNCHER, *launch_options(config), "-m"] if config else []
        words = [*python, *launcher, "benchmarks.worker", str(folder)]
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            preexec_fn=end_with_parent,  # safe here: there is one thread
        )
        if done.returncode != 0:
            raise RuntimeError(f"{jobs} failed:\n{done.stderr[-3000:]}")
        results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return results


def launch_options(config: str) -> list[str]:
    """`accelerate launch`'s options for one of the project's configurations; several processes take any free port."""
    port = ["--main_process_port", "0"] if config.startswith("multi") else []
    return ["-q", "--config_file", str(ROOT / "accelerate_configs" / f"{config}.yaml"), *port]


def environment() -> dict[str, str]:
    """This process's, without variables of launchers and trackers, and with every system's own choice of threads."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ACCELERATE_", "WANDB_")) and name != "OMP_NUM_THREADS"
    }
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
