"""Flags of `scripts/train.py` for outputs, checkpoints and tracking."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from peftlib.arguments.bounds import at_least
from peftlib.errors import UserError


@dataclass(frozen=True)
class OutputArguments:
    """Flags for outputs, checkpoints and tracking."""

    _argument_group_name: ClassVar[str] = "output and checkpoints"

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "report what would be trained, and how much memory and time it would take, by measuring a few "
            "updates; write nothing"
        },
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "folder for the results; None means outputs/<task>-<method>-<time>, or "
            "outputs/sweeps/<sweep>/<run> inside a sweep"
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "replace the results of an earlier run in output_dir"}
    )
    checkpointing_steps: str | None = field(
        default=None,
        metadata={
            "help": "save a checkpoint every N updates, or 'epoch' for one per epoch; None saves one only when a "
            "signal stops the run"
        },
    )
    checkpoints_total_limit: int | None = field(
        default=None, metadata={"help": "keep only the newest N checkpoints; None keeps all"}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "auto resumes from the newest intact checkpoint in output_dir, or starts from scratch if there "
            "is none; or the folder of a checkpoint; None starts from scratch, or means auto where a sweep "
            "sets the folder"
        },
    )
    extend_training: bool = field(
        default=False, metadata={"help": "allow a resumed run more epochs or steps than it was started with"}
    )
    report_to: str = field(
        default="auto",
        metadata={
            "help": "comma-separated list of trackers that accelerate knows (wandb, tensorboard, ...), all, or none; "
            "auto means wandb inside a W&B sweep or if WANDB_API_KEY or WANDB_MODE is set, otherwise none"
        },
    )
    project_name: str | None = field(
        default=None,
        metadata={"help": "the project in the trackers; None uses $WANDB_PROJECT, or else peft-text-classification"},
    )
    run_name: str | None = field(
        default=None, metadata={"help": "the run's name in the trackers; None uses the output folder's name"}
    )
    logging_steps: int = field(default=10, metadata={"help": "log the training loss every N updates"})

    @property
    def place(self) -> tuple[str | None, str | None, bool]:
        """The output folder, the checkpoint to resume from, and whether earlier results may be overwritten."""
        return self.output_dir, self.resume_from_checkpoint, self.overwrite_output_dir

    @property
    def checkpointing(self) -> tuple[str | None, int | None]:
        """When checkpoints are written, and how many are kept."""
        return self.checkpointing_steps, self.checkpoints_total_limit

    def __post_init__(self) -> None:
        at_least(self, 1, "logging_steps", "checkpoints_total_limit")
        if self.checkpointing_steps is not None and self.checkpointing_steps != "epoch":
            try:
                valid = int(self.checkpointing_steps) >= 1
            except ValueError:
                valid = False
            if not valid:
                raise UserError(
                    f"--checkpointing_steps {self.checkpointing_steps}: must be 'epoch' or a whole number from 1 on"
                )
        if self.resume_from_checkpoint == "auto" and self.output_dir is None:
            raise UserError("--resume_from_checkpoint auto: needs the run's folder; add --output_dir")
