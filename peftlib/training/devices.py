"""The Accelerator of a run: its device, precision and threads."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, ProjectConfiguration

from peftlib.distributed import everywhere, has_accelerator, join
from peftlib.processes import RUNS_AT_ONCE
from peftlib.training.precision import Precision, choose_precision


def build_accelerator(
    mixed_precision: str, accumulation_steps: int, trackers: list[str], folder: Path, cpu_threads: int, *,
    accelerated: bool = True,
) -> tuple[Accelerator, Precision]:  # fmt: skip
    """Set up the device and, under a launcher, the process group.

    Args:
        mixed_precision: "auto", "no", "fp16" or "bf16".
        accumulation_steps: micro-batches per update; ACCELERATE_GRADIENT_ACCUMULATION_STEPS does not override it.
        trackers: accelerate's names for them.
        folder: for trackers that write files.
        cpu_threads: per process; 0 divides the cores among processes, see `_fair_share`.
        accelerated: whether the model will be, by `accelerate_model`.

    Raises:
        UserError: the device does not support this precision.
    """
    state = join()
    with everywhere():  # nodes may have different devices
        precision = choose_precision(mixed_precision, state.device, accelerated=accelerated)
    if state.device.type == "cpu":
        keep_order_of_sums()
        torch.set_num_threads(cpu_threads or _fair_share(state))
    accelerator = Accelerator(
        cpu=not has_accelerator(),
        mixed_precision=precision.name,
        dynamo_backend="no",  # a compiled model has other names for its parameters, which adapters and checkpoints hold
        # As a plugin: the environment variable overrides the plain argument.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation_steps),
        # On Apple's GPUs a non-blocking copy may read host memory after it was freed (torch 2.13;
        # https://github.com/pytorch/pytorch/issues/189690).
        dataloader_config=DataLoaderConfiguration(non_blocking=state.device.type != "mps"),
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
    )
    return accelerator, precision


def keep_order_of_sums() -> None:
    """Make MKL, torch's library for fp32 matrix products, sum in the same order for any number of threads.

    On Intel CPUs it does not by default; it reads the variable before the process's first product. Training in fp32
    takes up to 3 % longer. On other CPUs the setting is not needed, and would select MKL's slowest kernels.
    """
    about = Path("/proc/cpuinfo")
    if about.exists() and "GenuineIntel" in about.read_text(encoding="utf-8"):
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def _fair_share(state: PartialState) -> int:
    """Return the threads for this process: OMP_NUM_THREADS if above 1, else its share of the physical cores.

    The cores that it may use are shared among the run's processes on this machine, and among the runs of a sweep.

    `accelerate launch` without a configuration sets OMP_NUM_THREADS=1, which halves the speed on two cores, so a 1
    there does not count as the user's choice (`--num_cpu_threads 1` does).
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP takes a list, one per nesting level
    if first.isdecimal() and int(first) > 1:
        return int(first)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(psutil.cpu_count(logical=False) or usable, usable)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or state.num_processes)
    return max(1, cores // (processes * int(os.environ.get(RUNS_AT_ONCE, "1"))))
