"""The training loop, smallest first: `train_step` (a micro-batch), `update` (a window), `train_epoch`, `train`."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import time
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from peftlib.acceleration.graphs import GraphedStep, Step
from peftlib.data.collation import is_in_rows, split_inputs
from peftlib.errors import Interrupted, RunError
from peftlib.strategies.parameters import load_trained_state, trained_state
from peftlib.training.accumulation import backward, weighted_loss
from peftlib.training.interruption import EXIT_STATUS
from peftlib.training.randomness import capture_random, restore_random
from peftlib.training.scaling import Verdict
from peftlib.training.state import Keeper, Progress, Recent, Training


def train_step(accelerator: Accelerator, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Forward and backward of one micro-batch.

    Returns:
        Its share of the window's loss on this process: a scalar that stays on the device.
    """
    inputs, targets = split_inputs(batch)
    logits = model(**inputs).logits
    if is_in_rows(batch) and targets.are_classes:  # on a GPU where Triton's kernels run anyway
        from peftlib.acceleration.loss import weighted_loss_in_one  # it imports Triton

        loss = weighted_loss_in_one(logits, targets.labels, targets.weight)
    else:
        loss = weighted_loss(logits, targets.labels, targets.weight)
    backward(accelerator, loss)
    return loss.detach()


def choose_step(training: Training) -> Step:
    """`train_step` on a batch; as CUDA graphs on a single GPU, unless the run does without.

    With several processes DistributedDataParallel's own communication would have to be recorded too.
    """
    accelerator = training.accelerator
    step = partial(train_step, accelerator, training.model)
    if training.cuda_graphs and accelerator.device.type == "cuda" and accelerator.num_processes == 1:
        return GraphedStep(step, training.model.parameters(), training.watcher.warn, is_in_rows)
    return step


def make_ready(training: Training) -> None:
    """Before the first `update`: the model trains, and what the updates work with is there."""
    training.model.train()
    training.step = choose_step(training)
    if training.accelerator.scaler is not None:
        training.loss_scale = training.accelerator.scaler.get_scale()
    training.parameters = [parameter for parameter in training.model.parameters() if parameter.requires_grad]


def update(training: Training) -> torch.Tensor | None:
    """Clip, step the optimizer, and step the schedule unless fp16's scaler refused the update.

    Returns:
        The gradient's global L2 norm before clipping, on the device; None when it is not measured.
    """
    accelerator, scaler = training.accelerator, training.accelerator.scaler
    settle(training)
    training.recent.rates.append(float(training.scheduler.get_last_lr()[0]))
    norm = None
    if training.plan.max_grad_norm > 0:
        accelerator.unscale_gradients()  # fp16's: the scaled ones must not be clipped
        norm = _clip(training)
    # torch's own optimizer: accelerate's wrapper looks for a package on the disk at every step.
    optimizer: torch.optim.Optimizer = training.optimizer.optimizer  # type: ignore[attr-defined]
    if scaler is None:
        optimizer.step()
        training.scheduler.step()
    else:
        scaler.step(optimizer)
        scaler.update()
        training.verdict = Verdict(scaler)
    optimizer.zero_grad()
    return norm


def settle(training: Training) -> None:
    """Step the schedule for the latest update in fp16, or count it as skipped, if that has not been done yet."""
    if training.verdict is None:
        return
    scale, training.verdict = training.verdict.scale(), None
    if scale < training.loss_scale:
        training.progress.skipped += 1
    else:
        training.scheduler.step()
    training.loss_scale = scale


def _clip(training: Training) -> torch.Tensor:
    """A `GraphedStep` has all gradients in one tensor, which takes fewer kernels."""
    step, most = training.step, training.plan.max_grad_norm
    return step.clip(most) if isinstance(step, GraphedStep) else nn.utils.clip_grad_norm_(training.parameters, most)


def train(training: Training) -> Progress:
    """Run to the end of the plan, or until patience runs out; leaves the best trained state in `best_state`.

    `training` may come from a checkpoint: it goes on where that one was.

    Raises:
        RunError: the loss is no longer finite, or a process that prepares batches died.
        Interrupted: a signal asked for it, and the run can be resumed.
    """
    progress = training.progress
    progress.windows_per_epoch = training.batches.windows_per_epoch
    make_ready(training)
    if training.random:
        restore_random(training.random)
    else:
        training.random = capture_random()
    training.start_clock()
    while progress.step < training.plan.steps and not progress.stopped_early:
        try:
            train_epoch(training)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # torch says so where it notices; else the pipe to the worker breaks.
            broken_pipe = not isinstance(error, RuntimeError) and training.loader.num_workers > 0
            if "DataLoader worker" not in str(error) and not broken_pipe:
                raise
            if broken_pipe:  # torch will say so too, from a signal handler: now, not in the middle of what comes next
                with contextlib.suppress(RuntimeError):
                    time.sleep(1)
            # No checkpoint now: it may be the middle of an update.
            raise RunError(
                f"a process that prepares batches died ({' '.join(str(error).split())[:200]}); use "
                "--dataloader_num_workers 0; a run with checkpoints goes on with --resume_from_checkpoint auto"
            ) from error
    return progress


def train_epoch(training: Training) -> None:
    """From the current window to the end of the epoch, or of the run."""
    progress, accelerator, step = training.progress, training.accelerator, training.step
    assert step is not None
    windows = training.batches.windows(progress.epoch)
    left = training.plan.steps - progress.step
    training.batches.set_position(progress.epoch, progress.window, progress.window + left)
    shares: list[torch.Tensor] = []
    for batch in training.loader:
        with accelerator.accumulate(training.model):
            shares.append(step(batch))
            if accelerator.sync_gradients:
                training.recent.norm = update(training)
        if accelerator.sync_gradients:
            training.recent.losses.append(torch.stack(shares).sum() if len(shares) > 1 else shares[0])
            training.recent.examples += len(windows[progress.window])
            shares = []
            finish_window(training)
        stop_if_asked(training)
        if progress.stopped_early:
            training.loader.end()  # type: ignore[attr-defined] # a prepared loader that is left early stays "active" otherwise
            return


def finish_window(training: Training) -> None:
    """After an update: count it, and log, evaluate and keep a checkpoint where one is due."""
    progress, plan, keeper = training.progress, training.plan, training.keeper
    progress.step += 1
    progress.window += 1
    if epoch_ends := progress.window == progress.windows_per_epoch:
        progress.epoch, progress.window = progress.epoch + 1, 0
    training.watcher.advance(progress.step)

    evaluates = plan.evaluates(progress.step, epoch_ends)
    if evaluates or progress.step % plan.logging_steps == 0:
        values = _flush(training)
        if evaluates:
            values |= _evaluate(training)
        training.watcher.log(values, progress.step)
        training.start_clock()
    if training.batches.accumulation_steps > 1:
        training.random = capture_random()  # a signal may come inside the next window
    run_ends = progress.step == plan.steps or progress.stopped_early
    if keeper is not None and keeper.is_due(progress.step, epoch_ends, run_ends):
        _keep(training, keeper)


def stop_if_asked(training: Training) -> None:
    """Between micro-batches: end the run at a signal, with a checkpoint of the last whole update.

    Raises:
        Interrupted: a signal arrived.
    """
    if training.interruption is None:
        return
    number = training.interruption.requested()
    if number is None:
        return
    keeper = training.keeper
    place = "" if keeper is None else f"--output_dir {shlex.quote(str(keeper.folder.parent))} "
    way = f"continue with {place}--resume_from_checkpoint auto"
    if keeper is None or not _keep(training, keeper):
        way = f"this step could not be kept; an older one, if there is any, is whole: {way}"
    message = f"stopped by {number.name} after step {training.progress.step}; {way}"
    raise Interrupted(message, EXIT_STATUS[number], by_hand=number is signal.SIGINT)


def losses_since_log(training: Training) -> list[float]:
    """Fetch the losses of the updates since the last log, the same on every process.

    The loop's only synchronisation of host and device.

    Raises:
        RunError: one of them is not finite.
    """
    recent = training.recent
    if not recent.losses:
        return []
    # A window's loss is the sum of the processes' shares.
    losses: list[float] = training.accelerator.reduce(torch.stack(recent.losses), reduction="sum").tolist()
    for step, (loss, rate) in enumerate(
        zip(losses, recent.rates, strict=True), training.progress.step - len(losses) + 1
    ):
        if not math.isfinite(loss):
            way = "try a smaller --learning_rate, more --num_warmup_steps, or --mixed_precision no"
            if step == 1:  # nothing has been trained yet
                way = "try --mixed_precision no, or another base model: this one's weights may be damaged"
            raise RunError(f"the loss is {loss} at step {step} (learning rate {rate:.3g}); {way}")
    return losses


def keep_best(training: Training) -> None:
    """Put the trained state of the best evaluation back into the model."""
    load_trained_state(training.accelerator.unwrap_model(training.model), training.best_state)


def _keep(training: Training, keeper: Keeper) -> bool:
    """Write a checkpoint; its time is not training time."""
    settle(training)
    if training.accelerator.sync_gradients:  # no window is under way: the generators are where a new one will start
        training.random = capture_random()
    training.stop_clock()
    kept = keeper.save(training)
    training.start_clock()
    return kept


def _flush(training: Training) -> dict[str, float]:
    """The values of a log, and a fresh start for what follows it."""
    progress = training.progress
    losses = losses_since_log(training)
    settle(training)
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


def _evaluate(training: Training) -> dict[str, float]:
    """Score the model, keep it if it is the best so far, and decide whether patience has run out.

    Every process computes the same metrics from the same gathered logits, so all decide alike.
    """
    progress, metric = training.progress, training.plan.best_metric
    progress.last = training.evaluate().metrics | {"step": progress.step}
    progress.history.append(progress.last)
    score = progress.last[metric]
    # A NaN is never better, and anything is better than a NaN.
    if not progress.best or score > progress.best[metric] or (math.isnan(progress.best[metric]) and score == score):
        progress.best, progress.stale = dict(progress.last), 0
        training.best_state = trained_state(training.accelerator.unwrap_model(training.model))
    else:
        progress.stale += 1
        progress.stopped_early = 0 < training.plan.patience <= progress.stale
    values = {f"eval/{name}": value for name, value in progress.last.items() if name != "step"}
    return values | {f"eval/best_{metric}": progress.best[metric]}
