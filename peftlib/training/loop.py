"""The training loop, inside out: `train_step` (one micro-batch), `update` (one window), `train_epoch`, `train`."""

from __future__ import annotations

from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from peftlib.acceleration.graphs import GraphedStep, Step, drops_layers
from peftlib.data.collation import is_in_rows, split_inputs
from peftlib.training.accumulation import backward, weighted_loss
from peftlib.training.data_parallel import gradients_of, sum_over_processes
from peftlib.training.failures import explained
from peftlib.training.milestones import evaluate_due, finish_window, stop_if_asked
from peftlib.training.randomness import capture_random, restore_random
from peftlib.training.scaling import Verdict, overflow
from peftlib.training.state import Progress, Training


def train_step(
    accelerator: Accelerator, model: nn.Module, batch: dict[str, torch.Tensor], smoothing: float = 0.0
) -> torch.Tensor:
    """Run the forward and backward pass of one micro-batch, with this label smoothing.

    Returns:
        The micro-batch's share of the window's loss: a scalar that stays on the device.
    """
    inputs, targets = split_inputs(batch)
    logits = model(**inputs).logits
    if is_in_rows(batch) and targets.are_classes and not smoothing:  # on GPUs where Triton is in use anyway
        from peftlib.acceleration.loss import weighted_loss_in_one  # imports Triton

        loss = weighted_loss_in_one(logits, targets.labels, targets.weight)
    else:
        loss = weighted_loss(logits, targets.labels, targets.weight, smoothing)
    backward(accelerator, loss)
    return loss.detach()


def choose_step(training: Training) -> Step:
    """Return `train_step` as a function of the batch, with CUDA graphs on GPUs unless the run disables them."""
    accelerator, model = training.accelerator, training.model
    step = partial(train_step, accelerator, model, smoothing=training.plan.label_smoothing)
    if training.cuda_graphs and accelerator.device.type == "cuda" and not drops_layers(model):
        return GraphedStep(step, training.parameters, training.watcher.warn, is_in_rows)
    return step


def make_ready(training: Training) -> None:
    """Switch the model to training mode and set what `update` needs; call it before the first update."""
    training.model.train()
    training.parameters = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    training.step = choose_step(training)
    if training.accelerator.scaler is not None:
        training.loss_scale = training.accelerator.scaler.get_scale()


def update(training: Training) -> torch.Tensor | None:
    """Sum gradients over processes, clip, and step optimizer, schedule and what the method adds (`Strategy.step_hook`).

    In fp16, `Training.settle` steps the schedule later, if the scaler did not skip the update.

    Returns:
        The gradient's global L2 norm before clipping, on the device; None if it is not measured.
    """
    accelerator, scaler, hook = training.accelerator, training.accelerator.scaler, training.hook
    gradients = gradients_of(training.parameters)
    if accelerator.num_processes > 1:
        sum_over_processes(gradients)
    training.settle()
    training.recent.rates.append(float(training.scheduler.get_last_lr()[0]))
    norm = None
    if training.plan.max_grad_norm > 0 or hook is not None:
        accelerator.unscale_gradients()  # fp16: clip the true gradients, not the scaled ones
    if hook is not None:
        hook.before_step()
    if training.plan.max_grad_norm > 0:
        norm = _clip(training)
    # Unwrapped: accelerate's wrapper looks for a package on disk at every step.
    optimizer: torch.optim.Optimizer = training.optimizer.optimizer  # type: ignore[attr-defined]
    if scaler is None:
        optimizer.step()
        training.scheduler.step()
    else:
        scaler.step(optimizer)
    if hook is not None:
        hook.after_step(training.progress.step + 1, None if scaler is None else overflow(scaler, optimizer))
    if scaler is not None:
        scaler.update()
        training.verdict = Verdict(scaler)
    optimizer.zero_grad()
    return norm


def _clip(training: Training) -> torch.Tensor:
    """Clip the gradients, which takes fewer kernels if a `GraphedStep` has them in one tensor."""
    step, most = training.step, training.plan.max_grad_norm
    if isinstance(step, GraphedStep) and step.holds_gradients:
        return step.clip(most)
    return nn.utils.clip_grad_norm_(training.parameters, most)


def train(training: Training) -> Progress:
    """Train to the end of the plan or until early stopping; leave the best trained state in `best_state`.

    A `training` restored from a checkpoint continues from there.

    Raises:
        RunError: the loss is not finite, a data loader worker died, or memory ran out.
        Interrupted: a signal asked the run to stop; it can be resumed.
    """
    progress = training.progress
    progress.windows_per_epoch = training.batches.windows_per_epoch
    make_ready(training)
    if training.random:
        restore_random(training.random)
    else:
        training.random = capture_random()
    training.start_clock()
    with explained(training):
        if progress.stopped_early:
            training.watcher.notes([f"the run stopped early at step {progress.step:,}: nothing is left to train"])
        if training.due is not None:  # the checkpoint was written between an update and its evaluation
            evaluate_due(training)
        while progress.step < training.plan.steps and not progress.stopped_early:
            train_epoch(training)
    training.stop_clock()
    return progress


def train_epoch(training: Training) -> None:
    """Train from the current window to the end of the epoch or of the run."""
    progress, accelerator, step = training.progress, training.accelerator, training.step
    assert step is not None
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
            training.recent.examples += training.batches.examples_in(progress.window)
            shares = []
            finish_window(training)
        stop_if_asked(training)
        if progress.stopped_early:
            training.loader.end()  # type: ignore[attr-defined] # else a prepared loader left early stays "active"
            return
