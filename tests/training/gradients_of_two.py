"""Run by test_accumulation.py in two processes: write the gradients of every update of some small runs."""

from __future__ import annotations

import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import save_file

from peftlib.training.loop import train
from tests.training.runs import ADALORA, make_run


def main(folder: Path, cases: list[str]) -> None:
    for case in cases:
        *numbers, method = case.split(",")
        examples, micro, accumulation = map(int, numbers)
        AcceleratorState._reset_state()  # keeps the process group
        GradientState._reset_state()
        options = {"examples": examples, "micro": micro, "accumulation": accumulation, "recorder": True}
        run = make_run(folder, **options, **(ADALORA if method == "adalora" else {}), scores=[0.0])
        assert run.accelerator.num_processes == 2
        train(run)
        if run.accelerator.is_main_process:
            seen = run.optimizer.optimizer.seen
            flat = {
                f"{number}/{name.removeprefix('module.')}": gradient
                for number, gradients in enumerate(seen)
                for name, gradient in gradients.items()
            }
            save_file(flat, folder / f"{case.replace(',', '-')}.safetensors")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
