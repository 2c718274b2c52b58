"""What is measured: works (task, method and kind) and contenders (system and precision)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.jobs import Job, Kind, System

EFFECTIVE_BATCH = 64
_BITFIT = ("--method", "bitfit")
_LORA = ("--method", "lora", "--lora_r", "16")


@dataclass(frozen=True)
class Work:
    """One row of the tables.

    Attributes:
        method: the flags that select it.
        micro_batch: examples per forward pass; gradients are accumulated over `EFFECTIVE_BATCH`.
    """

    name: str
    task: str
    method: tuple[str, ...] = _BITFIT
    kind: Kind = "train"
    micro_batch: int = 16


@dataclass(frozen=True)
class Contender:
    """A system in a precision ("auto", "no", "bf16", "fp16")."""

    name: str
    system: System
    precision: str


@dataclass(frozen=True)
class Setting:
    """Settings that all works of one benchmark share.

    Attributes:
        data_dir: a folder in GLUE's layout; None for the packaged data.
        model: value of `--model_name_or_path`.
        threads: per process; 0 takes all cores.
        updates: number of timed updates; 0 takes the whole training split.
        of_trainer: most timed updates of Trainer, on the first examples only; None for as many as ours.
        warmup: updates before timing starts.
        warm_epochs: whole epochs before timing starts, for ours only (see `Job`).
    """

    data_dir: Path | None
    model: str
    threads: int
    updates: int
    warmup: int = 2
    warm_epochs: int = 0
    of_trainer: int | None = None

    def job(self, work: Work, system: System = "ours", precision: str = "auto", *, processes: int = 1) -> Job:
        """Return the job that measures this work; several processes share the effective batch."""
        fewer = self.of_trainer if system == "trainer" else None
        if fewer is not None and self.updates:
            fewer = min(fewer, self.updates)
        setting = self if fewer is None else replace(self, updates=fewer)
        warm_epochs = self.warm_epochs if system == "ours" else 0
        # On a GPU, the first batch of each shape also allocates and loads kernels, for Trainer as for ours.
        warmup = self.warmup if fewer is None else max(self.warmup, fewer)
        return Job(work.kind, system, setting.flags(work, precision, processes), warmup, warm_epochs)

    def flags(self, work: Work, precision: str = "auto", processes: int = 1) -> tuple[str, ...]:
        """Return the flags of `scripts/train.py`."""
        data = ("--data_dir", str(self.data_dir)) if self.data_dir else ()
        limit = ("--max_train_samples", str(self.updates * EFFECTIVE_BATCH)) if self.updates else ()
        accumulation = EFFECTIVE_BATCH // (work.micro_batch * processes)
        return (
            *("--task_name", work.task, *data, *limit),
            *("--model_name_or_path", self.model, *work.method, "--mixed_precision", precision),
            *("--per_device_train_batch_size", str(work.micro_batch)),
            *("--gradient_accumulation_steps", str(accumulation)),
            *("--num_cpu_threads", str(self.threads)),
            *("--dropout", "0.1"),  # BERT's, for every method and system
            *("--logging_steps", "500"),  # Trainer's default
        )


def works(glue: bool) -> list[Work]:
    """Return the works on MRPC and SST-2, or similar ones on the packaged data."""
    if not glue:
        task = "rotten_tomatoes"
        return [
            Work("rotten_tomatoes BitFit", task),
            Work("rotten_tomatoes LoRA r=16", task, _LORA),
            Work("rotten_tomatoes evaluation", task, kind="evaluate"),
        ]
    return [
        Work("MRPC BitFit", "mrpc"),
        Work("MRPC LoRA r=16", "mrpc", _LORA),
        Work("SST-2 BitFit", "sst2"),
        Work("MRPC evaluation", "mrpc", kind="evaluate"),
    ]


def free_micro_batch(work: Work) -> Work:
    """Return the same work with the whole effective batch in one forward pass."""
    return replace(work, name=f"{work.name}, {EFFECTIVE_BATCH}×1", micro_batch=EFFECTIVE_BATCH)


def contenders(cuda: bool, work: Work) -> list[Contender]:
    """Return the contenders: Trainer in fp32, its default, and in bf16; ours in the precision that it chooses.

    On a GPU, both run in fp16 and in bf16. With the whole effective batch in one forward pass only ours runs, to be
    compared with the card's ceiling.
    """
    if cuda:
        halves = ("fp16", "bf16")
        theirs = [Contender(f"Trainer {half}", "trainer", half) for half in halves]
        ours = [Contender(f"ours {half}", "ours", half) for half in halves]
        return ours if work.micro_batch == EFFECTIVE_BATCH else theirs + ours
    return [
        Contender("Trainer fp32", "trainer", "no"),
        Contender("Trainer bf16", "trainer", "bf16"),
        Contender("ours", "ours", "auto"),
    ]
