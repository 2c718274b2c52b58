"""Atomic checkpoints for exact resumption that hold only what was trained.

A checkpoint is a folder `checkpoints/step_XXXXXXXX` of safetensors and JSON, no pickle:

    trained.safetensors    the trained parameters
    best.safetensors       the trained parameters at the best evaluation so far
    optimizer.safetensors  AdamW's moments
    method.safetensors     what the method's hook keeps from update to update, if it has one
    random.safetensors     random generator states of every process at the start of the next window
    state.json             progress, schedule, loss scale, losses not logged yet, and whether an evaluation is due
    manifest.json          the run's identity, and a SHA-256 of each file above

It is written to a temporary sibling folder, synced to disk and renamed; only then are older ones removed. A run that
is killed at any moment leaves the previous checkpoint intact; manifest.py skips those that fail verification.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from peftlib.distributed import join, on_main
from peftlib.errors import RunError, UserError
from peftlib.files import share, strict, sync, write_json
from peftlib.run_files import CHECKPOINT, CHECKPOINTS, UNFINISHED
from peftlib.strategies.parameters import load_trained_state, trained, trained_state
from peftlib.tracking.reporter import Reporter
from peftlib.training import randomness
from peftlib.training.manifest import FORMAT, checkpoints, cut_of, digest, sha256, verify
from peftlib.training.state import IF_NOT_FINITE, Progress, Recent, Training


class CheckpointKeeper:
    """Write a run's checkpoints, on the main process.

    Args:
        folder: the run's output folder.
        every: number of updates or "epoch", as the flag gives it; None writes one only when the run is cut short.
        limit: how many to keep; None keeps all.
        identity: the run's, from `identity_of`; also an attribute.
        reporter: shows a warning when writing fails, and supplies the trackers' ids.
    """

    def __init__(
        self, folder: Path, every: str | None, limit: int | None, identity: dict[str, Any], reporter: Reporter
    ) -> None:
        self.folder = folder / CHECKPOINTS
        self.limit = limit
        self._every = int(every) if every is not None and every != "epoch" else every
        self.identity = identity
        self._reporter = reporter
        self._latest = -1

    def is_due(self, step: int, epoch_ends: bool, run_ends: bool) -> bool:
        """Return whether to write a checkpoint now. The last update gets one too, as the result is not saved yet."""
        if self._every is None or run_ends:
            return self._every is not None
        return epoch_ends if self._every == "epoch" else step % int(self._every) == 0

    def goes_on_from(self, checkpoint: Path, step: int) -> None:
        """Do not rewrite this checkpoint of this step if it is the folder's own: it would be missing for a moment."""
        if on_main(lambda: checkpoint.resolve() == self._path(step).resolve()):
            self._latest = step

    def _path(self, step: int) -> Path:
        return self.folder / f"{CHECKPOINT}{step:08d}"

    def save(self, training: Training) -> bool:
        """Write a checkpoint of the last complete update; call it on every process.

        Returns:
            False if writing failed: the run continues, and the previous checkpoint stays.

        Raises:
            RunError: a loss or a trained weight is not finite.
        """
        step = training.progress.step
        if step == self._latest:
            return True
        losses = training.losses_since_log()  # raises on a non-finite loss, so that its weights are not saved
        _refuse_non_finite(training)
        generators = gather_object([training.random])
        problem: list[str | None] = [None]
        if training.accelerator.is_main_process:
            try:
                self._write(training, losses, generators)
            except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
                problem = [f"{type(error).__name__}: {error}"]
        broadcast_object_list(problem)
        if problem[0] is not None:
            self._reporter.warn(f"no checkpoint at step {step}, the run goes on without it: {problem[0]}")
            return False
        self._latest = step
        return True

    def _write(self, training: Training, losses: list[float], generators: list[dict[str, Any]]) -> None:
        step = training.progress.step
        target = self._path(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=UNFINISHED))
        try:
            _write_state(training, losses, generators, temporary)
            manifest = strict(
                {
                    "format": FORMAT,
                    "step": step,
                    "identity": self.identity,
                    "trackers": self._reporter.tracker_ids,
                    "files": {path.name: sha256(path) for path in sorted(temporary.iterdir())},
                }
            )
            write_json(temporary / "manifest.json", {**manifest, "sha256": digest(manifest)})
            for path in (*temporary.iterdir(), temporary):
                share(path)
                sync(path)
            if target.exists():  # of an earlier attempt of this run, which did not resume from it
                shutil.rmtree(target)
            temporary.rename(target)
            sync(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self.limit is not None:
            # Count only older ones: a newer one is damaged, since the run did not resume from it, and must not take
            # the place of this one.
            older = [path for path in checkpoints(self.folder) if path.name < target.name]
            for old in older[self.limit - 1 :]:
                shutil.rmtree(old, ignore_errors=True)


def _refuse_non_finite(training: Training) -> None:
    """Raise if a trained weight is not finite: its loss may have been finite, but a run resumed from it would fail."""
    model = training.model
    if bad := [name for name, parameter in trained(model) if not bool(parameter.isfinite().all())]:
        raise RunError(f"the weights are no longer finite at step {training.progress.step} ({bad[0]}); {IF_NOT_FINITE}")


def restore(training: Training, checkpoint: Path) -> bool:
    """Load a verified checkpoint into a freshly prepared `training`; call it on every process.

    The main process reads and broadcasts it, so nodes without a shared file system need no copy.

    If the effective batch is cut in another way than before, into other micro-batches or for more or fewer processes,
    each update still sees the same examples; their dropout masks and the rounding of sums differ.

    Returns:
        Whether the checkpoint's micro-batches were restored, and with them the result is that of an uninterrupted run.

    Raises:
        UserError: the checkpoint's parameters do not match the model's.
    """
    accelerator = training.accelerator
    state = on_main(lambda: json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
    try:
        load_trained_state(training.model, _read(checkpoint / "trained.safetensors"))
    except KeyError as error:
        raise UserError(f"--resume_from_checkpoint {checkpoint}: {error.args[0]}") from error
    if on_main((checkpoint / "best.safetensors").exists):
        training.best_state = _read(checkpoint / "best.safetensors")
    tensors = _read(checkpoint / "optimizer.safetensors")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    training.optimizer.load_state_dict({"state": moments, "param_groups": state["optimizer"]})
    if training.hook is not None:
        training.hook.load_state(_read(checkpoint / "method.safetensors"))
    # The schedule's shape comes from the plan, which may have been extended: restore only the position.
    scheduler = training.scheduler
    assert isinstance(scheduler, LambdaLR)
    scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None] * len(scheduler.lr_lambdas)})
    for group, base, shape in zip(
        training.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base * shape(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in training.optimizer.param_groups]
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    training.progress = Progress(**_with_nan(state["progress"]))
    if training.keeper is not None:
        training.keeper.goes_on_from(checkpoint, training.progress.step)
    exact = _restore_cut(training, checkpoint, state)
    due = state.get("due")  # absent from format 3
    training.due = None if due is None else _scores(due)
    recent = state["recent"]
    # The saved losses are sums over processes: restore them on the main one, as zeros on the others.
    share = 1.0 if accelerator.is_main_process else 0.0
    training.recent = Recent(
        losses=[torch.tensor(loss * share, device=accelerator.device) for loss in recent["losses"]],
        rates=recent["rates"],
        examples=recent["examples"],
        seconds=recent["seconds"],
    )
    rank, generators = accelerator.process_index, _read(checkpoint / "random.safetensors")
    if rank < len(state["random"]):
        training.random = randomness.from_tensors(generators, state["random"][rank], f"process{rank}")
    else:  # a process more than there were: it begins with its own
        training.random = randomness.capture_random()
    return exact


def _restore_cut(training: Training, checkpoint: Path, state: dict[str, Any]) -> bool:
    """Restore the micro-batches, unless the run is to have others now; return whether it has the checkpoint's."""
    micro, batches, progress = state["micro_batch"], training.batches, training.progress
    before = (micro["size"], micro["accumulation_steps"], len(state["random"]))
    exact = before == (batches.micro_batch_size, batches.accumulation_steps, training.accelerator.num_processes)
    if not exact:  # with the same flags they are smaller than requested: an earlier attempt ran out of memory
        asked = on_main(lambda: cut_of(verify(checkpoint, files=False)["identity"]))
        exact = training.keeper is None or tuple(asked) == cut_of(training.keeper.identity)
    if exact:
        training.set_micro_batch(*before[:2])
    elif progress.step < training.plan.steps:
        names = ("micro_batch_size", "gradient_accumulation_steps", "processes")
        progress.earlier_cuts.append({"until": progress.step, **dict(zip(names, before, strict=True))})
        training.watcher.notes(
            ["updates see the same examples as before, cut in another way: rounding and dropout differ"]
        )
    training.watcher.update(
        micro_batch_size=batches.micro_batch_size,
        gradient_accumulation_steps=batches.accumulation_steps,
        **({"earlier_cuts": progress.earlier_cuts} if progress.earlier_cuts else {}),
    )
    return exact


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Load a file on every process, read by the main one."""
    return load_file(path) if join().num_processes == 1 else load(on_main(path.read_bytes))


def _write_state(training: Training, losses: list[float], generators: list[dict[str, Any]], folder: Path) -> None:
    save_file(trained_state(training.model), folder / "trained.safetensors")
    if training.best_state:
        save_file(training.best_state, folder / "best.safetensors")
    optimizer = training.optimizer.state_dict()
    moments = {
        f"{index}.{key}": value.detach().to("cpu", copy=True)
        for index, values in optimizer["state"].items()
        for key, value in values.items()
    }
    save_file(moments, folder / "optimizer.safetensors")
    if training.hook is not None:
        save_file(training.hook.state(), folder / "method.safetensors")
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
        "due": training.due,
        "recent": {"losses": losses, "rates": recent.rates, "examples": recent.examples, "seconds": recent.seconds},
        "random": scalars,
        "micro_batch": {
            "size": training.batches.micro_batch_size,
            "accumulation_steps": training.batches.accumulation_steps,
        },
    })  # fmt: skip


def _with_nan(progress: dict[str, Any]) -> dict[str, Any]:
    history = [_scores(values) for values in progress["history"]]
    return {**progress, "best": _scores(progress["best"]), "last": _scores(progress["last"]), "history": history}


def _scores(values: dict[str, float | None]) -> dict[str, float]:
    """Turn null back into NaN, which JSON lacks."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _plain(scheduler: LRScheduler) -> dict[str, Any]:
    """Return the schedule's position; its lambdas are rebuilt from the plan."""
    return {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}
