"""Choose the checkpoint to resume from: intact by its hashes, and of this run by its arguments."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from peftlib.distributed import on_main, refuse_differences
from peftlib.errors import UserError
from peftlib.flags import NOT_SHAPING, WHERE_ABSENT, name_own_data
from peftlib.run_files import CHECKPOINT, CHECKPOINTS, record_in
from peftlib.tracking.reporter import Reporter

FORMAT = 4  # raise it when the meaning of a checkpoint's files, or of a position in an epoch, changes
_READ = (3, FORMAT)  # in format 3, every evaluation up to its step is done

#: Flags that `--extend_training` lets grow.
_LENGTHS = ("num_train_epochs", "max_train_steps")
#: Flags that cut a process's share of an update. Which examples an update sees depends on the effective batch alone.
_CUTS = ("per_device_train_batch_size", "gradient_accumulation_steps")
#: Part of a run's identity -> what to say if it is another one.
_PARTS = {
    "weights": "the base model's weights have changed",
    "labels": "the classes have changed",
    "problem_type": "the kind of task has changed",
}


class Unreadable(Exception):
    """A checkpoint may be intact, but this process cannot read it."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, newest first; not verified."""
    found = [path for path in folder.glob(f"{CHECKPOINT}*") if path.is_dir() and path.name[len(CHECKPOINT) :].isdigit()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[len(CHECKPOINT) :])


def verify(checkpoint: Path, *, files: bool = True) -> dict[str, Any]:
    """Verify a checkpoint and return its manifest.

    Args:
        files: False verifies the manifest alone, which takes no time.

    Raises:
        ValueError: it is damaged or incomplete; the message says how.
        Unreadable: it cannot be read, or has a format of another version.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        if manifest.pop("sha256") != digest(manifest):
            raise ValueError("manifest.json is damaged")
        if manifest["format"] not in _READ:
            reads = " and ".join(map(str, _READ))
            raise Unreadable(f"has format {manifest['format']}, but this version reads format {reads}")
        for name, expected in manifest["files"].items() if files else ():
            if Path(name).name != name:
                raise ValueError(f"manifest.json lists a file in another folder ({name})")
            if sha256(checkpoint / name) != expected:
                raise ValueError(f"{name} is damaged")
    except FileNotFoundError as error:
        raise ValueError(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError("manifest.json is damaged") from error
    return manifest


def choose_checkpoint(wanted: str | None, reporter: Reporter) -> Path | None:
    """Lock the output folder and call `find_checkpoint` on the main process; broadcast the result.

    Raises:
        UserError: see `find_checkpoint`; or another run is writing into the folder.
    """

    def choose() -> Path | None:
        reporter.claim()
        return find_checkpoint(wanted, reporter.folder, reporter.console.note)

    return None if wanted is None else on_main(choose)


def find_checkpoint(wanted: str | None, output_dir: Path, say: Callable[[str], None]) -> Path | None:
    """Resolve `--resume_from_checkpoint`.

    Args:
        wanted: "auto", a checkpoint's folder, a run's folder, or None.
        say: receives a line for each checkpoint that is skipped, with the reason.

    Returns:
        A verified checkpoint; None to start afresh.

    Raises:
        UserError: a named checkpoint is missing or damaged; or one cannot be read, so that resuming from an older one
            or starting afresh might discard its progress.
    """
    try:
        return _find(wanted, output_dir, say)
    except Unreadable as error:
        raise UserError(f"--resume_from_checkpoint {wanted}: {error}; try again, or move it away") from error


def _find(wanted: str | None, output_dir: Path, say: Callable[[str], None]) -> Path | None:
    if wanted is None:
        return None
    named = None if wanted == "auto" else Path(wanted)
    if named is not None and not named.is_dir():
        raise UserError(f"--resume_from_checkpoint {wanted}: no such folder; name a checkpoint's folder, or use auto")
    if named is not None and (
        (named / "manifest.json").exists() or (named.name.startswith(CHECKPOINT) and not (named / CHECKPOINTS).is_dir())
    ):
        try:
            step = int(verify(named)["step"])
        except ValueError as error:
            raise UserError(f"--resume_from_checkpoint {wanted}: {error}; use another checkpoint, or auto") from error
        if named.resolve().parent == (output_dir / CHECKPOINTS).resolve() and _newer(named.parent, step):
            raise UserError(
                f"--resume_from_checkpoint {wanted}: {output_dir} has newer checkpoints, which auto would use; "
                "name another --output_dir to branch off, or remove them"
            )
        return named
    folder = (output_dir if named is None else named) / CHECKPOINTS
    for checkpoint in checkpoints(folder):
        try:
            verify(checkpoint)
        except ValueError as error:
            say(f"skipped {checkpoint}: {error}")
            continue
        return checkpoint
    if named is not None:
        raise UserError(
            f"--resume_from_checkpoint {wanted}: has no intact checkpoint (--checkpointing_steps N writes them); leave "
            "the flag out to start from scratch"
        )
    say(f"no checkpoint in {folder}: starting from scratch")
    return None


def _newer(folder: Path, step: int) -> bool:
    """Return whether the folder holds an intact checkpoint of a later step."""
    for checkpoint in checkpoints(folder):  # the newest first
        if _step_of(checkpoint) <= step:
            break
        with contextlib.suppress(ValueError):
            verify(checkpoint)
            return True
    return False


def identity_of(arguments: dict[str, Any], facts: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """Collect what identifies a run: everything that shapes its result, including the precision that `auto` chose.

    Args:
        arguments: flag -> value.
        facts: from `tracking.record.describe_run`.
    """
    return {
        "arguments": arguments,
        "data": facts["data"],
        "problem_type": facts["problem_type"],
        "labels": facts["labels"],
        "metric": facts["metrics"][0],
        "weights": facts["model"]["fingerprint"],
        "configuration": facts["model"]["configuration"],
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
    }


def matching_manifest(
    checkpoint: Path | None, identity: dict[str, Any], *, extend: bool, folder: Path
) -> dict[str, Any] | None:
    """Return the manifest of `checkpoint` if this run may resume from it; None without one. Call it on every process.

    Its entry `own` says whether the checkpoint is in the run's own folder. The main process reads it: other nodes may
    not have it.

    Args:
        identity: from `identity_of`.
        extend: allow more epochs or steps.
        folder: the run's. From a checkpoint in another folder, trackers start a new run.

    Raises:
        UserError: something that shapes the result has changed since the checkpoint was written (the message lists the
            differences), or differs between processes.
    """
    data = {f"the {split} data": facts["fingerprint"] for split, facts in identity["data"].items()}
    of_each = {"precision": "--mixed_precision", "weights": "the base model's weights", "device": "its device"}
    refuse_differences({name: identity[part] for part, name in of_each.items()} | data)
    return None if checkpoint is None else on_main(lambda: _matching(checkpoint, identity, extend, folder))


def _matching(checkpoint: Path, identity: dict[str, Any], extend: bool, folder: Path) -> dict[str, Any]:
    manifest = verify(checkpoint, files=False)  # `find_checkpoint` has hashed them
    before, now = manifest["identity"], identity
    is_own = checkpoint.resolve().parent == (folder / CHECKPOINTS).resolve()
    manifest["own"] = is_own
    if not is_own:
        manifest["trackers"] = {}
    metrics = before.get("metric", now["metric"]), now["metric"]
    old, new = (_spelled_out(run["arguments"], metric) for run, metric in zip((before, now), metrics, strict=True))
    # Of the precision, what was chosen is compared below: where `auto` would choose another, it has to be named.
    allowed = NOT_SHAPING | {"mixed_precision"} | set(_CUTS) | (set(_LENGTHS) if extend else set())
    if all(map(name_own_data, (old, new))):
        allowed |= {"task_name"}  # derived from the location of the user's data
    if before.get("configuration") == now["configuration"]:  # the weights are compared below
        allowed |= {"model_name_or_path", "model_revision"}
    differences = [
        f"--{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if (name not in allowed and old.get(name) != new.get(name)) or (extend and _shorter(name, old, new, manifest))
    ]
    done = record_in(folder) if is_own else {}
    if not differences and done.get("status") == "finished":  # it may have been extended since
        lasted = {"step": done.get("results", {}).get("global_step", 0)}
        differences += [
            f"{folder} has the result of a longer run (--{name} {done['arguments'].get(name)}, not {new.get(name)})"
            for name in _LENGTHS
            if _shorter(name, done["arguments"], new, lasted)
        ]
    differences += [
        f"the {split} data have changed"
        for split in now["data"]
        if before["data"].get(split, {}).get("fingerprint") != now["data"][split]["fingerprint"]
    ]
    # Checkpoints up to 0.1.0 lack the weights, and those up to 0.4.0 the others.
    differences += [text for part, text in _PARTS.items() if before.get(part, now[part]) != now[part]]
    if math.prod(cut_of(before)) != math.prod(cut_of(now)):
        differences.append(_other_batch(cut_of(before), cut_of(now)))
    if before["precision"] != now["precision"]:
        was = before["precision"]
        differences.append(f"the precision was {was}, is {now['precision']} (--mixed_precision {was} keeps it)")
    if before["device"] != now["device"]:
        differences.append(f"the device was {before['device']}, is {now['device']}")
    if differences:
        lengthened = not extend and any(old.get(name) != new.get(name) for name in _LENGTHS)
        lengthened &= not any(_shorter(name, old, new, manifest) for name in _LENGTHS)
        way = "to train longer add --extend_training" if lengthened else "change that back, or use another --output_dir"
        raise UserError(f"--resume_from_checkpoint: {checkpoint} is from another run: {'; '.join(differences)}; {way}")
    return manifest


def cut_of(identity: dict[str, Any]) -> tuple[int, int, int]:
    """Return how a run cuts its effective batch: examples per micro-batch, accumulation steps, and processes."""
    size, steps = (identity["arguments"][name] for name in _CUTS)
    return size, steps, identity["processes"]


def _other_batch(before: tuple[int, int, int], now: tuple[int, int, int]) -> str:
    share, rest = divmod(math.prod(before), now[2])
    way = f"here {' × '.join(f'--{name}' for name in _CUTS)} must be {share}"
    if rest:
        way = f"{now[2]} processes cannot share that"
    return f"the effective batch was {_written(before)}, is {_written(now)}: {way}"


def _written(cut: tuple[int, int, int]) -> str:
    return f"{math.prod(cut)} ({cut[0]} × {cut[1]} on {cut[2]} process{'' if cut[2] == 1 else 'es'})"


def _spelled_out(arguments: dict[str, Any], metric: str) -> dict[str, Any]:
    """Add what stands for flags of later versions, and for the default metric, which is None."""
    return WHERE_ABSENT | arguments | {"metric_for_best_model": arguments.get("metric_for_best_model") or metric}


def _shorter(name: str, old: dict[str, Any], new: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Return whether a length is below its old value or what is already trained: the schedule would end before here."""
    if name not in _LENGTHS:
        return False
    if new.get(name) is None:  # the number of epochs applies instead, and may be less
        return name == "max_train_steps" and old.get(name) is not None
    trained = int(manifest["step"]) if name == "max_train_steps" else 0
    return bool(new[name] < max(old.get(name) or 0, trained))


def digest(manifest: dict[str, Any]) -> str:
    """Hash the manifest itself, so that a flipped bit in an argument is detected too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
