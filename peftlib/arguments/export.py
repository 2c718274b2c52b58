"""The command line of `scripts/export.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

from peftlib.arguments.hub import HubArguments
from peftlib.arguments.parser import parse_one_run
from peftlib.errors import UserError


@dataclass(frozen=True)
class ExportArguments:
    """Where to export a finished run's model, and in which form."""

    _argument_group_name: ClassVar[str] = "checkpoint"

    output_dir: str | None = field(
        default=None, metadata={"help": "folder for the new model; None means model in the run's folder"}
    )
    dtype: Literal["fp32", "fp16", "bf16"] = field(default="fp32", metadata={"help": "precision of the saved weights"})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "where the base model is now; None uses the run's"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "allow code that comes with the model to run on this machine"}
    )
    adapter: bool = field(
        default=False,
        metadata={"help": "with push_to_hub: push the run's adapter as it is, without making a full checkpoint"},
    )

    def name_for(self, run: Path) -> str:
        """Return the exported model's name, which is that of its folder; an adapter has the run's."""
        name = run.resolve().name
        if self.adapter:
            return name
        return f"{name}-model" if self.output_dir is None else Path(self.output_dir).resolve().name


def parse_export_arguments(argv: Sequence[str] | None = None) -> tuple[str, ExportArguments, HubArguments]:
    """Parse the command line of `scripts/export.py`: the run's folder, the options, and whether to push.

    Raises:
        UserError: an unknown flag, a wrong value, a missing or contradictory flag, or not exactly one run.
        SystemExit: after `--help`.
    """
    about = "Make a plain checkpoint of a finished run, or push the run to the Hub."
    run, (options, hub) = parse_one_run([ExportArguments, HubArguments], "export.py", about, argv)
    given = [
        entry.name for group in (options, hub) for entry in fields(group) if getattr(group, entry.name) != entry.default
    ]
    hub_flags = ("adapter", "hub_model_id", "hub_private_repo")
    if not hub.push_to_hub and (alone := [name for name in hub_flags if name in given]):
        raise UserError(f"--{alone[0]} requires --push_to_hub")
    others = [name for name in given if name != "adapter" and hasattr(options, name)]
    if options.adapter and others:
        raise UserError(f"--{others[0]} applies to a full checkpoint and cannot be combined with --adapter")
    return run, options, hub
