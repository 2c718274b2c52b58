"""What a run leaves behind, and who watches it. Flags of `scripts/train.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from peftlib.arguments.bounds import at_least
from peftlib.errors import UserError


@dataclass(frozen=True)
class OutputArguments:
    """What it leaves behind, and who watches."""

    _argument_group_name: ClassVar[str] = "output and checkpoints"

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "say what would be trained, and how much memory and time it would take, by a few updates that are "
            "measured; write nothing"
        },
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "where the results go; None means outputs/<task>-<method>-<time>, or outputs/sweeps/<sweep>/<run> "
            "inside a sweep"
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "replace the results of an earlier run in output_dir"}
    )
    checkpointing_steps: str | None = field(
        default=None,
        metadata={
            "help": "write a checkpoint every N updates, or at the end of each 'epoch'; None writes one only when a "
            "signal stops the run"
        },
    )
    checkpoints_total_limit: int | None = field(
        default=None, metadata={"help": "keep the newest N checkpoints only; None keeps all"}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "auto goes on from the newest whole checkpoint in output_dir, or starts afresh when there is none; "
            "or a checkpoint's folder; None starts afresh, or means auto where a sweep names the folder"
        },
    )
    extend_training: bool = field(
        default=False, metadata={"help": "let a resumed run have more epochs or steps than it was started with"}
    )
    report_to: str = field(
        default="auto",
        metadata={
            "help": "a comma-separated list of accelerate's trackers (wandb, tensorboard, ...), all, or none; auto "
            "means wandb inside a W&B sweep or with WANDB_API_KEY or WANDB_MODE set, else none"
        },
    )
    project_name: str | None = field(
        default=None,
        metadata={"help": "the trackers' project; None takes $WANDB_PROJECT, else peft-text-classification"},
    )
    run_name: str | None = field(
        default=None, metadata={"help": "the run's name in the trackers; None takes the output folder's name"}
    )
    logging_steps: int = field(default=10, metadata={"help": "log the training loss every N updates"})

    @property
    def place(self) -> tuple[str | None, str | None, bool]:
        """Where it writes, what it goes on from, and whether it may replace what is there."""
        return self.output_dir, self.resume_from_checkpoint, self.overwrite_output_dir

    def __post_init__(self) -> None:
        at_least(self, 1, "logging_steps", "checkpoints_total_limit")
        if self.checkpointing_steps is not None and self.checkpointing_steps != "epoch":
            try:
                valid = int(self.checkpointing_steps) >= 1
            except ValueError:
                valid = False
            if not valid:
                raise UserError(
                    f"--checkpointing_steps {self.checkpointing_steps}: must be epoch, or a number from 1 on"
                )
        if self.resume_from_checkpoint == "auto" and self.output_dir is None:
            raise UserError("--resume_from_checkpoint auto: needs the run's folder; add --output_dir")
