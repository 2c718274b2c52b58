"""Halve batches until the longest examples fit into memory, keeping the effective batch size in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from peftlib.data.collation import split_inputs
from peftlib.data.loading import batches_of, longest_batch
from peftlib.distributed import true_everywhere
from peftlib.errors import OutOfMemory
from peftlib.training.loop import train_step
from peftlib.training.randomness import capture_random, restore_random
from peftlib.training.state import Training


def fit_batches(training: Training, *, keep_micro_batch: bool) -> None:
    """Run `fit_micro_batch` and `fit_evaluation_batch`.

    Args:
        keep_micro_batch: leave it as a checkpoint has it: others would round differently.

    Raises:
        OutOfMemory: a single example does not fit.
    """
    if not keep_micro_batch:
        fit_micro_batch(training)
    fit_evaluation_batch(training)


def fit_evaluation_batch(training: Training) -> None:
    """Halve the evaluation batch until a forward pass on the longest examples fits into memory.

    Changes are reported to the run's watcher.

    Raises:
        OutOfMemory: a single example does not fit.
    """
    batches = batches_of(training.eval_loader)
    while not true_everywhere(training.accelerator, _fits(training, _answer_longest)):
        if batches.micro_batch_size == 1:
            raise OutOfMemory.with_one_example()
        batches.resize(batches.micro_batch_size // 2)
        training.watcher.warn(
            f"out of memory: evaluation batches of {batches.micro_batch_size} "
            "(--auto_find_batch_size false turns this off)"
        )
    training.watcher.update(eval_batch_size=batches.micro_batch_size)


def fit_micro_batch(training: Training) -> None:
    """Halve the micro-batch, and double the accumulation steps, until forward and backward fit into memory.

    Tried on the longest examples before the first update; processes communicate only afterwards, so one that runs out
    of memory does not block the others. Each update keeps its examples. Changes are reported to the run's watcher.

    Raises:
        OutOfMemory: the micro-batch does not fit, and is a single example or an odd number of them.
    """
    batches = training.batches
    while not true_everywhere(training.accelerator, _fits(training, _step_on_longest)):
        if batches.micro_batch_size % 2:
            raise OutOfMemory.in_training(batches.micro_batch_size, ", an odd number that cannot be halved")
        training.set_micro_batch(batches.micro_batch_size // 2, batches.accumulation_steps * 2)
        training.watcher.warn(
            f"out of memory: micro-batches of {batches.micro_batch_size}, {batches.accumulation_steps} per update "
            f"(the effective batch stays {batches.window_size}; --auto_find_batch_size false turns this off)"
        )
    training.watcher.update(
        micro_batch_size=batches.micro_batch_size, gradient_accumulation_steps=batches.accumulation_steps
    )


def _step_on_longest(training: Training) -> None:
    accelerator, longest = training.accelerator, longest_batch(training.loader, training.batches.micro_batch_size)
    training.model.train()
    train_step(accelerator, training.model, send_to_device(longest, accelerator.device))


def _answer_longest(training: Training) -> None:
    accelerator, loader = training.accelerator, training.eval_loader
    longest = longest_batch(loader, batches_of(loader).micro_batch_size)
    training.model.eval()
    with torch.inference_mode():
        inputs, _ = split_inputs(send_to_device(longest, accelerator.device))
        training.model(**inputs).logits.float()


def _fits(training: Training, work: Callable[[Training], None]) -> bool:
    generators = capture_random()
    try:
        work(training)
        return True
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        training.model.zero_grad()
        restore_random(generators)  # as if nothing had been tried
        clear_device_cache(garbage_collection=True)
