"""A run's output folder: which one to use, what to resume from there, and the lock on it."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TextIO

from peftlib.errors import UserError
from peftlib.files import SAVING, TEMPORARY, obstacle, try_lock
from peftlib.run_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CHECKPOINTS,
    LOCK,
    METRICS,
    PREDICTIONS,
    RECORD,
    RESULTS,
    UNFINISHED,
    record_in,
)

#: Files that a run writes into its folder.
RUN_FILES = (
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, RESULTS, "config.json", METRICS,
    "model.safetensors", PREDICTIONS, "README.md", RECORD, "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.txt",
)  # fmt: skip


def choose_folder(
    task: str, method: str, wanted: str | None, resume: str | None, overwrite: bool
) -> tuple[Path, str | None]:
    """Where the run will write, as `choose_output_dir`, and what it goes on from, as `choose_resume`.

    To be asked on one process: the folder's name may hold the time, and nodes need not share what is in it.

    Args:
        wanted: --output_dir.
        resume: --resume_from_checkpoint.

    Raises:
        UserError: as `choose_output_dir`.
    """
    resume = choose_resume(resume, wanted, overwrite)
    return choose_output_dir(wanted, task, method, overwrite, resume=resume), resume


def choose_output_dir(
    wanted: str | None, task: str, method: str, overwrite: bool, *, resume: str | None = None
) -> Path:
    """Choose the run's output folder; creates nothing.

    Args:
        resume: what to resume from, from `choose_resume`; None starts afresh.

    Raises:
        UserError: the folder holds something that is not this run's, is a file, or is read-only.
    """
    sweep = sweep_of_run()
    if wanted is not None:
        path = Path(wanted)
    elif sweep is not None:
        # No time in the name: agents may start two runs in the same second, and a requeued run keeps its folder.
        path = Path("outputs") / "sweeps" / sweep["id"] / sweep["trial"]
    else:
        # Runs on several GPUs may start in the same second; as W&B's folders end.
        now, chance = datetime.datetime.now().strftime("%Y%m%d-%H%M%S"), uuid.uuid4().hex[:4]
        path = Path("outputs") / f"{task}-{method}-{now}-{chance}"
    try:
        problem = obstacle(path)
    except OSError as error:  # a name too long for the file system
        raise UserError(f"--output_dir {str(path)[:60]}…: {error.strerror}; name another folder") from error
    if problem is not None:
        raise UserError(f"--output_dir {path}: {problem}; name another folder")
    if path.is_dir() and _holds_others(path):
        raise UserError(f"--output_dir {path}: holds files, and none of a run; name another folder")
    if path.is_dir() and not overwrite and (problem := _taken(path, resume, in_sweep=sweep is not None)):
        raise UserError(f"--output_dir {path}: {problem}, or replace it with --overwrite_output_dir")
    return path


def writable_folder(path: Path, *, empty: bool = False) -> Path:
    """Create the folder for a script's result if it is missing, before the result is computed.

    Args:
        empty: refuse a folder that holds files.

    Raises:
        UserError: it holds files, or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if empty and any(path.iterdir()):
            raise UserError(f"--output_dir {path}: holds files already; name another folder")
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise UserError(f"--output_dir {path}: cannot be written ({error.strerror}); name another folder") from error


def _taken(path: Path, resume: str | None, *, in_sweep: bool) -> str | None:
    """Why a run must not write into an existing folder, and what to do instead; None if it may.

    A resumed run replaces the records of its earlier parts, so the folder has to be its own.
    """
    if not any(path.iterdir()):
        return None
    if resume is None:
        return "contains a run; choose another folder, or continue with --resume_from_checkpoint auto"
    if resume != "auto" and not _is_of(Path(resume), path):
        # The command that has started such a branch may start it again, after a kill.
        record = record_in(path)
        repeated = record.get("arguments", {}).get("resume_from_checkpoint") == resume
        if record.get("status") == "finished" or not repeated:
            return f"contains a run, and {resume} is not of it; choose another folder for the branch"
    # A sweep requeues a finished run only if it did not learn that it had finished.
    done = record_in(path).get("status") == "finished"
    if resume == "auto" and not in_sweep and done and not (path / CHECKPOINTS).is_dir():
        return "holds a finished run that kept no checkpoint to go on from; name another folder"
    return None


def _is_of(resume: Path, folder: Path) -> bool:
    """Whether this is the folder, or a checkpoint in it."""
    return folder.resolve() in (resume.resolve(), resume.resolve().parent.parent)


def _holds_others(path: Path) -> bool:
    """True if the folder holds files that are not a run's; leftovers of a run killed at start-up do not count."""
    present = {entry.name for entry in path.iterdir()}
    return RECORD not in present and any(name != METRICS and not name.startswith(".") for name in present)


def refuse_finished(folder: Path) -> None:
    """Refuse to overwrite a finished run; call this with the folder's lock held, before a new run clears the folder.

    The finished run may have no whole checkpoint to resume from, or may have finished since the folder was chosen. A
    sweep is exempt: it requeues a finished run only if it did not learn that it had finished.

    Raises:
        UserError: there is a finished run.
    """
    if sweep_of_run() is None and record_in(folder).get("status") == "finished":
        raise UserError(
            f"--output_dir {folder}: holds a finished run and no whole checkpoint to go on from; name another folder, "
            "or replace it with --overwrite_output_dir"
        )


def refuse_busy(folder: Path) -> None:
    """Refuse a folder that another run is using, without keeping the lock or creating anything.

    Raises:
        UserError: another run holds the lock.
        OSError: the lock file cannot be written.
    """
    if (folder / LOCK).exists():
        lock_folder(folder).close()


def choose_resume(wanted: str | None, output_dir: str | None, overwrite: bool) -> str | None:
    """Return what to resume from: what the user asked for, else "auto" inside a sweep.

    A sweep requeues a preempted run. The default folder is named after the run, so a checkpoint there is its own; a
    folder that the user named may hold another run's.
    """
    if wanted is None and output_dir is None and not overwrite and sweep_of_run() is not None:
        return "auto"
    return wanted


def clear_results(folder: Path) -> None:
    """Remove what `--overwrite_output_dir` discards besides `RUN_FILES`: all else that came from the earlier run.

    This includes TensorBoard's curves, which would be merged with the new run's. W&B's runs have their own ids, and
    stay.
    """
    for name in (CHECKPOINTS, "predictions", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for curves in folder.glob("*/events.out.tfevents.*"):
        curves.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of a killed run; call this with the folder's lock held."""
    for pattern in (f"{SAVING}*", f"{CHECKPOINTS}/{UNFINISHED}*", f".*{TEMPORARY}"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def lock_folder(folder: Path) -> TextIO:
    """Lock the folder for this process; closing the file, or the end of the process, releases the lock.

    Raises:
        UserError: another run holds the lock.
        OSError: the lock file cannot be written.
    """
    file = try_lock(folder / LOCK)
    if file is None:
        raise UserError(f"--output_dir {folder}: another run is writing there; name another folder")
    return file


def sweep_of_run() -> dict[str, str] | None:
    """Return the sweep's id and this run's number or name in it, from the environment; None outside a sweep.

    Set by `scripts/sweep.py` (PEFTLIB_SWEEP_ID, PEFTLIB_TRIAL) or by a W&B agent (WANDB_SWEEP_ID, WANDB_RUN_ID).
    """
    for sweep, trial in (("PEFTLIB_SWEEP_ID", "PEFTLIB_TRIAL"), ("WANDB_SWEEP_ID", "WANDB_RUN_ID")):
        if os.environ.get(sweep):
            return {"id": os.environ[sweep], "trial": os.environ.get(trial, "")}
    return None
