"""Which checkpoint a run goes on from: one that is whole, by its hashes, and of this run, by its arguments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftlib.errors import UserError

FORMAT = 1  # raise it when a checkpoint's files mean something else
PREFIX = "step_"

#: Flags that a resumed run may change: they say where, how often and how fast, not what is computed.
_FREE = frozenset({
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "extend_training", "checkpointing_steps",
    "checkpoints_total_limit", "report_to", "project_name", "run_name", "logging_steps", "dataloader_num_workers",
    "num_cpu_threads", "per_device_eval_batch_size", "auto_find_batch_size", "data_dir", "config",
})  # fmt: skip
#: Flags that `--extend_training` lets grow.
_LENGTHS = ("num_train_epochs", "max_train_steps")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, newest first; not verified."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.is_dir() and path.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]), reverse=True)


def verify(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint.

    Raises:
        ValueError: with what is wrong with it.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        if manifest.pop("sha256") != digest(manifest):
            raise ValueError("manifest.json is damaged")
        if manifest["format"] != FORMAT:
            raise ValueError(f"written in format {manifest['format']}, this version reads {FORMAT}")
        for name, expected in manifest["files"].items():
            if Path(name).name != name:
                raise ValueError(f"manifest.json names a file elsewhere ({name})")
            if sha256(checkpoint / name) != expected:
                raise ValueError(f"{name} is damaged")
    except FileNotFoundError as error:
        raise ValueError(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError("manifest.json is damaged") from error
    return manifest


def find_checkpoint(wanted: str | None, output_dir: Path, say: Callable[[str], None]) -> Path | None:
    """Resolve `--resume_from_checkpoint`.

    Args:
        wanted: "auto", a checkpoint's folder, a run's folder, or None.
        say: told which checkpoints were passed over, and why.

    Returns:
        A checkpoint that verifies; None to start afresh.

    Raises:
        UserError: a named checkpoint is missing or damaged.
    """
    if wanted is None:
        return None
    named = None if wanted == "auto" else Path(wanted)
    if named is not None and not named.is_dir():
        raise UserError(f"--resume_from_checkpoint {wanted}: no such folder; name a checkpoint's folder, or say auto")
    if named is not None and (named.name.startswith(PREFIX) or (named / "manifest.json").exists()):
        try:
            verify(named)
        except ValueError as error:
            raise UserError(f"--resume_from_checkpoint {wanted}: {error}; use another one, or auto") from error
        return named
    folder = (output_dir if named is None else named) / "checkpoints"
    for checkpoint in checkpoints(folder):
        try:
            verify(checkpoint)
        except ValueError as error:
            say(f"skipped {checkpoint}: {error}")
            continue
        return checkpoint
    if named is not None:
        raise UserError(f"--resume_from_checkpoint {wanted}: has no whole checkpoint; say auto to start afresh")
    say(f"no checkpoint in {folder}: starting afresh")
    return None


def matching_manifest(checkpoint: Path | None, identity: dict[str, Any], *, extend: bool) -> dict[str, Any] | None:
    """The manifest of a checkpoint that this run can go on from; None for none.

    Args:
        identity: {"arguments": flag -> value, "data": split -> facts with a fingerprint, "processes": count}.
        extend: let the run become longer.

    Raises:
        UserError: what shapes the result has changed since the checkpoint was written; with the differences.
    """
    if checkpoint is None:
        return None
    manifest = verify(checkpoint)
    before, now = manifest["identity"], identity
    allowed = _FREE | (set(_LENGTHS) if extend else set())
    old, new = before["arguments"], now["arguments"]
    differences = [
        f"--{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if name not in allowed and old.get(name) != new.get(name)
    ]
    differences += [
        f"the {split} data have changed"
        for split in now["data"]
        if before["data"].get(split, {}).get("fingerprint") != now["data"][split]["fingerprint"]
    ]
    if before["processes"] != now["processes"]:
        differences.append(f"it ran in {before['processes']} processes, this is {now['processes']}")
    if differences:
        longer = any(line.startswith(f"--{name} ") for name in _LENGTHS for line in differences)
        hint = "; to train longer add --extend_training" if longer else ""
        raise UserError(f"--resume_from_checkpoint: {checkpoint} is of another run: {'; '.join(differences)}{hint}")
    return manifest


def digest(manifest: dict[str, Any]) -> str:
    """Of the manifest's own content: a flipped bit in an argument is noticed as well."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        state = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            state.update(block)
        return state.hexdigest()
