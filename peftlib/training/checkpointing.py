"""Checkpoints that are whole or absent, as small as what was trained, and exact.

A checkpoint is a folder `checkpoints/step_XXXXXXXX` of safetensors and JSON, no pickle:

    trained.safetensors    the trained parameters
    best.safetensors       those of the best evaluation so far
    optimizer.safetensors  AdamW's moments
    random.safetensors     the generators of every process, as they were at the start of the next window
    state.json             progress, schedule, loss scale, the losses not logged yet
    manifest.json          what made it, and a SHA-256 of each file above

It is written into a temporary sibling, synced to the disk, and renamed; older ones are removed after that. A run
that is killed at any moment leaves the previous checkpoint whole; `find_checkpoint` passes over what does not verify.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from peftlib.errors import UserError
from peftlib.files import share, strict, sync, write_json
from peftlib.strategies.parameters import load_trained_state, trained_state
from peftlib.tracking.reporter import Reporter
from peftlib.training import randomness
from peftlib.training.loop import Progress, Recent, Training, losses_since_log
from peftlib.training.memory import set_micro_batch

FORMAT = 1
_PREFIX = "step_"
_TEMPORARY = ".writing-"  # a killed run's are removed by tracking/record.py

#: Flags that a resumed run may change: they say where, how often and how fast, not what is computed.
_FREE = frozenset({
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "extend_training", "checkpointing_steps",
    "checkpoints_total_limit", "report_to", "project_name", "run_name", "logging_steps", "dataloader_num_workers",
    "num_cpu_threads", "per_device_eval_batch_size", "auto_find_batch_size", "data_dir", "config",
})  # fmt: skip
#: Flags that `--extend_training` lets grow.
_LENGTHS = ("num_train_epochs", "max_train_steps")


class CheckpointKeeper:
    """Writes a run's checkpoints, on the main process.

    Args:
        folder: the run's output folder.
        every: a number of updates, "epoch", or None for signals only; as the flag gives it.
        limit: how many to keep; None keeps all.
        identity: what made the run, see `matching_manifest`.
        reporter: is warned when one could not be written, and knows the trackers' ids.
    """

    def __init__(
        self, folder: Path, every: str | None, limit: int | None, identity: dict[str, Any], reporter: Reporter
    ) -> None:
        self.folder = folder / "checkpoints"
        self.limit = limit
        self._every = int(every) if every is not None and every != "epoch" else every
        self._identity = identity
        self._reporter = reporter
        self._latest = -1

    def is_due(self, step: int, epoch_ends: bool) -> bool:
        """Whether a checkpoint is wanted after this update."""
        return epoch_ends if self._every == "epoch" else isinstance(self._every, int) and step % self._every == 0

    def save(self, training: Training) -> bool:
        """Write a checkpoint of the last whole update; called on every process.

        Returns:
            False when the disk refused: the run goes on, and the previous checkpoint stays.
        """
        step = training.progress.step
        if step == self._latest:
            return True
        losses = losses_since_log(training)  # also refuses to keep weights that a non-finite loss has spoilt
        generators = gather_object([training.random])
        problem: list[str | None] = [None]
        if training.accelerator.is_main_process:
            try:
                self._write(training, losses, generators)
            except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own
                problem = [f"{type(error).__name__}: {error}"]
        broadcast_object_list(problem)
        if problem[0] is not None:
            self._reporter.warn(f"WARNING: no checkpoint at step {step}, the run goes on without it: {problem[0]}")
            return False
        self._latest = step
        return True

    def _write(self, training: Training, losses: list[float], generators: list[dict[str, Any]]) -> None:
        step = training.progress.step
        target = self.folder / f"{_PREFIX}{step:08d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=_TEMPORARY))
        try:
            _write_state(training, losses, generators, temporary)
            manifest = strict(
                {
                    "format": FORMAT,
                    "step": step,
                    "identity": self._identity,
                    "trackers": self._reporter.tracker_ids,
                    "files": {path.name: _sha256(path) for path in sorted(temporary.iterdir())},
                }
            )
            write_json(temporary / "manifest.json", {**manifest, "sha256": _digest(manifest)})
            for path in (*temporary.iterdir(), temporary):
                share(path)
                sync(path)
            if target.exists():  # an earlier life of this run came as far, and was killed before it noted so
                shutil.rmtree(target)
            temporary.rename(target)
            sync(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self.limit is not None:
            # Of the older ones only: a newer one is damaged, since this life of the run did not start from it, and
            # must not take the place of this one.
            older = [path for path in checkpoints(self.folder) if path.name < target.name]
            for old in older[self.limit - 1 :]:
                shutil.rmtree(old, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in `folder`, newest first; not verified."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.is_dir() and path.name[len(_PREFIX) :].isdigit()]
    return sorted(found, key=lambda path: int(path.name[len(_PREFIX) :]), reverse=True)


def verify(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint.

    Raises:
        ValueError: with what is wrong with it.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        if manifest.pop("sha256") != _digest(manifest):
            raise ValueError("manifest.json is damaged")
        if manifest["format"] != FORMAT:
            raise ValueError(f"written in format {manifest['format']}, this version reads {FORMAT}")
        for name, digest in manifest["files"].items():
            if Path(name).name != name:
                raise ValueError(f"manifest.json names a file elsewhere ({name})")
            if _sha256(checkpoint / name) != digest:
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
    if named is not None and (named.name.startswith(_PREFIX) or (named / "manifest.json").exists()):
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


def restore(training: Training, checkpoint: Path) -> None:
    """Put a verified checkpoint's state into a freshly prepared `training`, on every process.

    Raises:
        UserError: the model does not have the parameters that the checkpoint holds.
    """
    accelerator = training.accelerator
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    try:
        load_trained_state(accelerator.unwrap_model(training.model), load_file(checkpoint / "trained.safetensors"))
    except KeyError as error:
        raise UserError(f"--resume_from_checkpoint {checkpoint}: {error.args[0]}") from error
    if (checkpoint / "best.safetensors").exists():
        training.best_state = load_file(checkpoint / "best.safetensors")
    tensors = load_file(checkpoint / "optimizer.safetensors")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    training.optimizer.load_state_dict({"state": moments, "param_groups": state["optimizer"]})
    # The rate's shape comes from the plan, which may have been extended: only the position is taken over.
    scheduler = training.scheduler
    assert isinstance(scheduler, LambdaLR)
    scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None] * len(scheduler.lr_lambdas)})
    for group, base, shape in zip(
        training.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base * shape(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in training.optimizer.param_groups]
    set_micro_batch(training, state["micro_batch"]["size"], state["micro_batch"]["accumulation_steps"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    training.progress = Progress(**state["progress"])
    recent = state["recent"]
    # The losses were summed over the processes: the main one brings them back, the others add nothing.
    share = 1.0 if accelerator.is_main_process else 0.0
    training.recent = Recent(
        losses=[torch.tensor(loss * share, device=accelerator.device) for loss in recent["losses"]],
        rates=recent["rates"],
        examples=recent["examples"],
        seconds=recent["seconds"],
    )
    rank = accelerator.process_index
    generators = load_file(checkpoint / "random.safetensors")
    training.random = randomness.from_tensors(generators, state["random"][rank], f"process{rank}")


def _write_state(training: Training, losses: list[float], generators: list[dict[str, Any]], folder: Path) -> None:
    save_file(trained_state(training.accelerator.unwrap_model(training.model)), folder / "trained.safetensors")
    if training.best_state:
        save_file(training.best_state, folder / "best.safetensors")
    optimizer = training.optimizer.state_dict()
    moments = {
        f"{index}.{key}": value.detach().to("cpu", copy=True)
        for index, values in optimizer["state"].items()
        for key, value in values.items()
    }
    save_file(moments, folder / "optimizer.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    scalars = []
    for rank, state in enumerate(generators):
        part, rest = randomness.to_tensors(state, f"process{rank}")
        tensors |= part
        scalars.append(rest)
    save_file(tensors, folder / "random.safetensors")
    scaler = training.accelerator.scaler
    recent = training.recent
    write_json(folder / "state.json", {
        "progress": dataclasses.asdict(training.progress),
        "optimizer": optimizer["param_groups"],
        "scheduler": _plain(training.scheduler),
        "scaler": None if scaler is None else scaler.state_dict(),
        "recent": {"losses": losses, "rates": recent.rates, "examples": recent.examples, "seconds": recent.seconds},
        "random": scalars,
        "micro_batch": {
            "size": training.batches.micro_batch_size,
            "accumulation_steps": training.batches.accumulation_steps,
        },
    })  # fmt: skip


def _plain(scheduler: LRScheduler) -> dict[str, Any]:
    """The schedule's position. Its lambdas are made anew from the plan."""
    return {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}


def _digest(manifest: dict[str, Any]) -> str:
    """Of the manifest's own content: a flipped bit in an argument is noticed as well."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
        return digest.hexdigest()
