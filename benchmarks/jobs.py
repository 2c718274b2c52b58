"""Measurements to be made in worker processes, and how those are started."""

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
#: Timed passes over the validation split.
EVALUATIONS = 2
#: Flags that switch off what "plain" goes without.
_PLAIN = ("--group_by_length", "false", "--acceleration", "off")
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
        warmup: updates before timing starts.
        warm_epochs: untimed passes over the training data after that, in which ours records its CUDA graphs.
        epochs: timed passes over the training data.
    """

    kind: Kind
    system: System
    flags: tuple[str, ...]
    warmup: int = 2
    warm_epochs: int = 0
    epochs: int = 1

    def argv(self) -> list[str]:
        """Return the flags, with those that make the system "plain"."""
        return [*self.flags, *(_PLAIN if self.system == "plain" else ()), "--report_to", "none"]


def run(job: Job, config: str | None = None) -> dict[str, Any]:
    """Run one job in a fresh process; see `run_all`."""
    return run_all([job], config)[0]


def run_all(jobs: Sequence[Job], config: str | None = None, timeout: int = 3600) -> list[dict[str, Any]]:
    """Run jobs one after the other in a fresh process.

    Args:
        config: a file of `accelerate_configs/` to launch the process with; None starts plain Python.
        timeout: seconds after which the process is ended.

    Raises:
        RuntimeError: the worker failed; the message ends with its output.
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
            preexec_fn=end_with_parent,  # safe here, with a single thread
        )
        if done.returncode != 0:
            raise RuntimeError(f"{jobs} failed:\n{done.stderr[-3000:]}")
        results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return results


def launch_options(config: str) -> list[str]:
    """Return `accelerate launch`'s options for one of the project's configurations; multi-process ones use a free port.

    The file is `accelerate_configs/<config>.yaml`.
    """
    port = ["--main_process_port", "0"] if config.startswith("multi") else []
    return ["-q", "--config_file", str(ROOT / "accelerate_configs" / f"{config}.yaml"), *port]


def environment() -> dict[str, str]:
    """Return this process's environment without launchers' and trackers' variables, and without a number of threads."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ACCELERATE_", "WANDB_")) and name != "OMP_NUM_THREADS"
    }
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
