"""A micro-batch that fits: halved until the longest examples go through, at the same effective batch."""

from __future__ import annotations

import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from peftlib.data.loading import longest_batch
from peftlib.errors import RunError
from peftlib.training.loop import train_step
from peftlib.training.randomness import capture_random, restore_random
from peftlib.training.state import Training


def fit_micro_batch(training: Training) -> None:
    """Halve the micro-batch, and double the accumulation, until forward and backward have enough memory.

    Tried on the longest examples before the first update, without synchronising gradients, so that a process that
    runs out of memory keeps no other waiting. The updates see the same examples as before. The run's watcher is told
    what was changed.

    Raises:
        RunError: a single example does not fit.
    """
    batches, accelerator = training.batches, training.accelerator
    while True:
        fits = torch.tensor(float(_fits(training)), device=accelerator.device)
        if accelerator.reduce(fits, reduction="sum").item() == accelerator.num_processes:
            break
        if batches.micro_batch_size == 1:
            raise RunError(
                "out of memory with a single example; use a smaller --max_length or model, or another device"
            )
        if batches.micro_batch_size % 2:
            raise RunError(
                f"out of memory with micro-batches of {batches.micro_batch_size}, an odd number that cannot be halved; "
                "lower --per_device_train_batch_size and raise --gradient_accumulation_steps"
            )
        set_micro_batch(training, batches.micro_batch_size // 2, batches.accumulation_steps * 2)
        training.watcher.warn(
            f"out of memory: micro-batches of {batches.micro_batch_size}, {batches.accumulation_steps} per update "
            f"(the effective batch stays {batches.window_size}; --auto_find_batch_size false turns this off)"
        )
    training.watcher.update(
        micro_batch_size=batches.micro_batch_size, gradient_accumulation_steps=batches.accumulation_steps
    )


def set_micro_batch(training: Training, size: int, accumulation_steps: int) -> None:
    """Cut every window anew, before or between epochs."""
    training.batches.micro_batch_size = size
    training.batches.accumulation_steps = accumulation_steps
    training.accelerator.gradient_accumulation_steps = accumulation_steps


def _fits(training: Training) -> bool:
    accelerator = training.accelerator
    generators = capture_random()
    training.model.train()
    try:
        longest = longest_batch(training.loader, training.batches.micro_batch_size)
        batch = send_to_device(longest, accelerator.device)
        with accelerator.no_sync(training.model):
            train_step(accelerator, training.model, batch)
        return True
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        training.optimizer.zero_grad()
        for parameter in training.model.parameters():
            parameter.grad = None
        restore_random(generators)  # as if it had not been tried
        clear_device_cache(garbage_collection=True)
