"""The folder that a run writes into: which one it may take, what it goes on from there, and the lock on it."""

from __future__ import annotations

import datetime
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TextIO

from peftlib.errors import UserError
from peftlib.run_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, record_in

#: What a run writes into its folder itself.
RUN_FILES = (
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, "all_results.json", "config.json", "metrics.jsonl",
    "model.safetensors", "predictions.safetensors", "README.md", "run.json", "special_tokens_map.json",
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
    """Where the run will write; nothing is created yet.

    Args:
        resume: what to go on from, as `choose_resume` has it; None starts afresh.

    Raises:
        UserError: the folder holds something that is not this run's, is no folder, or is read-only.
    """
    sweep = sweep_of_run()
    if wanted is not None:
        path = Path(wanted)
    elif sweep is not None:
        # Agents may start two runs in the same second, and a run that is queued again belongs where it was.
        path = Path("outputs") / "sweeps" / sweep["id"] / sweep["trial"]
    else:
        path = Path("outputs") / f"{task}-{method}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}"
    try:
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    except OSError as error:  # a name longer than the system's longest
        raise UserError(f"--output_dir {str(path)[:60]}…: {error.strerror}; name another folder") from error
    if not existing.is_dir():
        raise UserError(f"--output_dir {path}: {existing} is a file; name a folder")
    if path.is_dir() and _holds_others(path):
        raise UserError(f"--output_dir {path}: holds files, and none of a run; name another folder")
    if path.is_dir() and not overwrite and (problem := _taken(path, resume, in_sweep=sweep is not None)):
        raise UserError(f"--output_dir {path}: {problem}, or replace it with --overwrite_output_dir")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir {path}: {existing} is read-only; name another folder")
    return path


def writable_folder(path: Path, *, empty: bool = False) -> Path:
    """The folder for a script's result, made if it is missing, before that result is worked out.

    Args:
        empty: refuse one that holds files.

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
    """Why a run must not write into an existing folder, and what else to do; None when it may.

    A run that goes on replaces the records of its earlier lives, so the folder has to be its own.
    """
    if not any(path.iterdir()):
        return None
    if resume is None:
        return "holds a run; name another folder, go on with --resume_from_checkpoint auto"
    # A sweep hands a run out again only when it has not heard of its end.
    done = record_in(path).get("status") == "finished"
    if resume == "auto" and not in_sweep and done and not (path / "checkpoints").is_dir():
        return "holds a finished run that kept no checkpoint to go on from; name another folder"
    return None


def _holds_others(path: Path) -> bool:
    """Whether there are files and no run: nor what is left of one that was killed at its very start."""
    present = {entry.name for entry in path.iterdir()}
    return "run.json" not in present and any(name != "metrics.jsonl" and not name.startswith(".") for name in present)


def refuse_finished(folder: Path) -> None:
    """Called with the folder's lock held, before a run that starts afresh clears what an earlier one has left.

    Its checkpoints may be gone, or none of them whole; or another run has come and gone since the folder was chosen. A
    sweep hands a run out again only when it has not heard of its end.

    Raises:
        UserError: there is a finished run.
    """
    if sweep_of_run() is None and record_in(folder).get("status") == "finished":
        raise UserError(
            f"--output_dir {folder}: holds a finished run and no whole checkpoint to go on from; name another folder, "
            "or replace it with --overwrite_output_dir"
        )


def refuse_busy(folder: Path) -> None:
    """`lock_folder`, for a look: the folder stays free, and as it is.

    Raises:
        UserError: another run has it.
        OSError: it cannot be written.
    """
    if (folder / ".lock").exists():
        lock_folder(folder).close()


def choose_resume(wanted: str | None, output_dir: str | None, overwrite: bool) -> str | None:
    """What to go on from: as asked, else "auto" inside a sweep.

    A sweep that was preempted hands the run out again. Its folder is named after it, so that a checkpoint there is
    its own; one that the user named may be another run's.
    """
    if wanted is None and output_dir is None and not overwrite and sweep_of_run() is not None:
        return "auto"
    return wanted


def clear_results(folder: Path) -> None:
    """Remove what `--overwrite_output_dir` gives up beside `RUN_FILES`: whatever was made of the run that was here.

    Curves too, which TensorBoard would show as one with the new run's; W&B's runs have ids of their own, and stay.
    """
    for name in ("checkpoints", "predictions", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for curves in folder.glob("*/events.out.tfevents.*"):
        curves.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run was writing when it died; called with the folder's lock held."""
    for pattern in (".saving-*", "checkpoints/.writing-*", ".*.tmp"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def lock_folder(folder: Path) -> TextIO:
    """Take the folder for this process; the lock goes with the file object, or with the process.

    Raises:
        UserError: another run has it.
        OSError: it cannot be written.
    """
    file = (folder / ".lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"--output_dir {folder}: another run is writing there; name another folder") from error
    return file


def sweep_of_run() -> dict[str, str] | None:
    """The sweep that this run is part of and its number or name there, from the environment; None outside one.

    Set by `scripts/sweep.py` (PEFTLIB_SWEEP_ID, PEFTLIB_TRIAL) or by a W&B agent (WANDB_SWEEP_ID, WANDB_RUN_ID).
    """
    for sweep, trial in (("PEFTLIB_SWEEP_ID", "PEFTLIB_TRIAL"), ("WANDB_SWEEP_ID", "WANDB_RUN_ID")):
        if os.environ.get(sweep):
            return {"id": os.environ[sweep], "trial": os.environ.get(trial, "")}
    return None
