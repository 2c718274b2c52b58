"""Run by test_accumulation.py in two processes: write the gradients of every update of some small runs."""

from __future__ import annotations

import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import save_file

from peftlib.training.loop import train
from tests.training.runs import make_run


def main(folder: Path, cases: list[str]) -> None:
    for case in cases:
        examples, micro, accumulation = map(int, case.split(","))
        AcceleratorState._reset_state()  # keeps the process group
        GradientState._reset_state()
        run = make_run(folder, examples=examples, micro=micro, accumulation=accumulation, recorder=True, scores=[0.0])
        assert run.accelerator.num_processes == 2
        train(run)
        if run.accelerator.is_main_process:
            seen = run.optimizer.optimizer.seen
            flat = {
                f"{number}/{name.removeprefix('module.')}": gradient
                for number, gradients in enumerate(seen)
                for name, gradient in gradients.items()
            }
            save_file(flat, folder / f"{examples}-{micro}-{accumulation}.safetensors")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
