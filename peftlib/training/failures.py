"""What ends training from outside of it, in words: a device without memory, a data loader's process that died."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size

from peftlib.errors import OutOfMemory, RunError, in_one_line
from peftlib.training.state import Training


@contextmanager
def memory_named(problem: OutOfMemory) -> Iterator[None]:
    """Raise `problem` in place of what torch raises when memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise problem from error


@contextmanager
def explained(training: Training) -> Iterator[None]:
    """Turn foreign errors of the training loop into the project's own.

    Raises:
        RunError: memory ran out, or a data loader worker died. No checkpoint is written: this may be the middle of an
            update.
    """
    # `fit_batches` knows neither AdamW's moments nor the memory of CUDA graphs, nor what others take later.
    with memory_named(OutOfMemory.in_training(training.batches.micro_batch_size)):
        try:
            yield
        except (RuntimeError, ConnectionError, EOFError) as error:
            # torch reports a dead worker if it notices; otherwise the pipe to it breaks.
            broken_pipe = not isinstance(error, RuntimeError) and training.loader.num_workers > 0
            if "DataLoader worker" not in str(error) and not broken_pipe:
                raise
            if broken_pipe:  # torch will report it too, from a signal handler: let it do so here and not later
                with contextlib.suppress(RuntimeError):
                    time.sleep(1)
            raise RunError(
                f"a data loader worker died ({in_one_line(error)}); use "
                "--dataloader_num_workers 0; a run with checkpoints continues with --resume_from_checkpoint auto"
            ) from error
