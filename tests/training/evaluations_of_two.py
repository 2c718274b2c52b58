"""Run by test_milestones.py in two processes; only the second one gets a signal or runs out of memory."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from peftlib.data.loading import batches_of
from peftlib.errors import Interrupted, RunError
from peftlib.strategies.parameters import trained_state
from peftlib.training.checkpointing import CheckpointKeeper, restore
from peftlib.training.interruption import Interruption
from peftlib.training.loop import train
from peftlib.training.manifest import find_checkpoint
from peftlib.training.memory import fit_batches
from peftlib.training.state import Training
from tests.training.runs import make_run


def prepared(folder: Path) -> Training:
    AcceleratorState._reset_state()  # keeps the process group
    GradientState._reset_state()
    run = make_run(folder, method="bitfit", micro=2, epochs=3, dropout=0.1)
    assert run.accelerator.num_processes == 2
    identity = {"arguments": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}, "processes": 2}
    run.keeper = CheckpointKeeper(folder, None, None, identity, SimpleNamespace(tracker_ids={}, warn=print))  # type: ignore[arg-type]
    return run


def limit(run: Training, largest: int, evaluation: int) -> None:
    """Limit the second process to `largest` examples from this evaluation on; with 0, in training too."""
    model = run.model
    forward, evaluate, evaluations = model.forward, run.evaluate, iter(range(1, 9))
    limited = {"now": evaluation == 0}

    def answer(input_ids: torch.Tensor, **rest: Any) -> Any:
        if limited["now"] and len(input_ids) > largest and not (evaluation and model.training):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(input_ids=input_ids, **rest)

    def counted(between: Any) -> Any:
        limited["now"] = next(evaluations) >= evaluation and not run.accelerator.is_main_process
        return evaluate(between)

    model.forward, run.evaluate = answer, counted
    limited["now"] &= not run.accelerator.is_main_process


def signal_in(run: Training, evaluation: int) -> None:
    """Send the second process a signal in the middle of this evaluation."""
    evaluate, evaluations = run.evaluate, iter(range(1, 9))

    def interrupted(between: Any) -> Any:
        mine = next(evaluations) == evaluation and not run.accelerator.is_main_process

        def with_signal() -> None:
            if mine:
                os.kill(os.getpid(), signal.SIGTERM)
            between()

        return evaluate(with_signal)

    run.evaluate = interrupted


def main(folder: Path) -> None:
    whole = prepared(folder / "whole")
    train(whole)

    fitted = prepared(folder / "fitted")
    limit(fitted, 1, evaluation=0)
    fit_batches(fitted, keep_micro_batch=False)
    assert (fitted.batches.micro_batch_size, batches_of(fitted.eval_loader).micro_batch_size) == (1, 1)
    train(fitted)
    assert fitted.progress.step == whole.progress.step

    for name, problem, line in (("signal", Interrupted, "stopped by SIGTERM"), ("memory", RunError, "out of memory")):
        first = prepared(folder / name)
        if name == "signal":
            signal_in(first, evaluation=2)
        else:
            limit(first, 2, evaluation=2)
        with pytest.raises(problem, match=f"^{line}.* continue with"), Interruption(first.accelerator) as asked:
            first.interruption = asked
            train(first)
        first.accelerator.wait_for_everyone()
        second = prepared(folder / name)
        restore(second, find_checkpoint("auto", folder / name, print))
        assert second.due is not None and second.progress.step == whole.progress.step * 2 // 3
        train(second)
        expected = trained_state(whole.model)
        for key, tensor in trained_state(second.model).items():
            assert torch.equal(tensor, expected[key]), key
        assert second.progress.history == whole.progress.history
        second.accelerator.wait_for_everyone()
    whole.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
