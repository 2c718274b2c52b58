"""What happens between updates: logging, evaluation, checkpoints, and stopping at a signal."""

from __future__ import annotations

import math
import shlex
from functools import partial

import torch

from peftlib.data.tasks import LOSS, is_better
from peftlib.errors import OutOfMemory, RunError
from peftlib.evaluation.evaluator import Evaluation
from peftlib.strategies.parameters import load_trained_state, trained_state
from peftlib.training.randomness import capture_random
from peftlib.training.state import IF_NOT_FINITE, Recent, Training


def finish_window(training: Training) -> None:
    """Count an update, then log, write a checkpoint and evaluate if these are due.

    The checkpoint comes first, since an evaluation may take longer than all updates since the previous one. It records
    that the evaluation is due, and a run that resumes from it begins with that.
    """
    progress, plan, keeper = training.progress, training.plan, training.keeper
    progress.step += 1
    progress.window += 1
    if epoch_ends := progress.window == progress.windows_per_epoch:
        progress.epoch, progress.window = progress.epoch + 1, 0
    training.watcher.advance(progress.step)

    if plan.evaluates(progress.step, epoch_ends):
        training.due = _flush(training)
    elif progress.step % plan.logging_steps == 0:
        training.watcher.log(_flush(training), progress.step)
    if keeper is not None and keeper.is_due(progress.step, epoch_ends, progress.step == plan.steps):
        _keep(training)
    if training.due is not None:
        evaluate_due(training)
    if training.batches.accumulation_steps > 1:
        training.random = capture_random()  # a signal may stop the run inside the next window
    training.start_clock()


def evaluate_due(training: Training) -> None:
    """Evaluate and log the current state, keep it if it is the best so far, and apply early stopping.

    Of states with the same best score, the one with the lowest loss is kept; early stopping looks at the score alone.

    Every process computes the same metrics from the same gathered logits, so all decide alike.

    Raises:
        Interrupted, RunError: see `_score`.
    """
    progress, keeper, metric = training.progress, training.keeper, training.plan.best_metric
    assert training.due is not None
    training.stop_clock()
    progress.last = _score(training).metrics | {"step": progress.step}
    progress.history.append(progress.last)
    better = not progress.best or is_better(metric, progress.last[metric], than=progress.best[metric])
    progress.stale = 0 if better else progress.stale + 1
    progress.stopped_early = 0 < training.plan.patience <= progress.stale
    # On small splits many states have the best score; the surest of them has the lowest loss.
    if better or (
        progress.last[metric] == progress.best[metric]
        and is_better(LOSS, progress.last[LOSS], than=progress.best[LOSS])
    ):
        progress.best = dict(progress.last)
        training.best_state = trained_state(training.model)
    values = {f"eval/{name}": value for name, value in progress.last.items() if name != "step"}
    values |= {f"eval/best_{metric}": progress.best[metric]}
    training.watcher.log(training.due | values, progress.step)
    training.due = None
    if progress.stopped_early:
        evaluations = f"{progress.stale} evaluation" + "s" * (progress.stale > 1)
        training.watcher.notes([f"stopped early: no better {metric.replace('_', ' ')} in {evaluations}"])
    if progress.stopped_early and keeper is not None and keeper.is_due(progress.step, epoch_ends=False, run_ends=True):
        _keep(training)
    training.start_clock()


def score_best(training: Training) -> Evaluation:
    """Restore the best trained state and evaluate it, after the last update.

    Raises:
        Interrupted, RunError: see `_score`. A resumed run comes straight back here.
        RunError: its loss is not finite, so it is worth nothing.
    """
    last, step = None, training.progress.best["step"]
    if step != training.progress.step:
        last = trained_state(training.model)
    keep_best(training)
    evaluation = _score(training, last)
    if not math.isfinite(loss := evaluation.metrics[LOSS]):
        raise RunError(f"the evaluation loss of the best state, at step {step:.0f}, is {loss}; {IF_NOT_FINITE}")
    return evaluation


def keep_best(training: Training) -> None:
    """Load the trained state of the best evaluation into the model."""
    load_trained_state(training.model, training.best_state)


def _score(training: Training, last: dict[str, torch.Tensor] | None = None) -> Evaluation:
    """Evaluate; write a checkpoint if that is cut short, so that no update is lost.

    Args:
        last: the trained state after the last update; None if the model holds it.

    Raises:
        Interrupted: a signal arrived.
        RunError: out of memory.
    """
    try:
        return training.evaluate(partial(stop_if_asked, training, last))
    except OutOfMemory as error:
        raise RunError(f"{error}; {_kept_for_later(training, last)}") from error


def stop_if_asked(training: Training, last: dict[str, torch.Tensor] | None = None) -> None:
    """End the run with a checkpoint if a signal has arrived; called between batches of training or evaluation.

    Args:
        last: see `_score`.

    Raises:
        Interrupted: a signal arrived.
    """
    if training.interruption is not None:
        training.interruption.stop_if_requested(
            lambda: f" after step {training.progress.step}; {_kept_for_later(training, last)}"
        )


def _kept_for_later(training: Training, last: dict[str, torch.Tensor] | None) -> str:
    """Write a checkpoint of the last complete update; return a message that says how to resume."""
    if last is not None:
        load_trained_state(training.model, last)
    keeper = training.keeper
    place = "" if keeper is None else f"--output_dir {shlex.quote(str(keeper.folder.parent))} "
    way = f"continue with the same flags and {place}--resume_from_checkpoint auto"
    if not _keep(training):
        way = f"this step could not be saved; an older checkpoint, if there is one, is intact: {way}"
    return way


def _keep(training: Training) -> bool:
    """Write a checkpoint; its time does not count as training. Return whether it was written."""
    training.settle()
    if training.accelerator.sync_gradients:  # between windows: the next one starts from here
        training.random = capture_random()
    training.stop_clock()
    return training.keeper is not None and training.keeper.save(training)


def _flush(training: Training) -> dict[str, float]:
    """Return the values to log, and reset the statistics since the last log."""
    progress = training.progress
    losses = training.losses_since_log()
    training.settle()
    training.stop_clock()
    recent, training.recent = training.recent, Recent()
    progress.loss_sum += sum(losses)
    progress.examples += recent.examples
    values = {
        "train/loss": sum(losses) / len(losses),
        "train/learning_rate": recent.rates[-1],
        "train/epoch": progress.epochs,
        "train/global_step": float(progress.step),
    }
    if recent.seconds > 0:
        values["train/samples_per_second"] = recent.examples / recent.seconds
    if recent.norm is not None:
        values["train/grad_norm"] = float(recent.norm)
    if training.accelerator.scaler is not None:
        values["train/loss_scale"] = training.loss_scale
        values["train/skipped_steps"] = float(progress.skipped)
    return values
