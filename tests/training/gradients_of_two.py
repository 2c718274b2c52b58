"""Run by test_accumulation.py in two processes: write the gradients of every update of some small runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import save_file

from peftlib.training.loop import train
from tests.training.runs import ADALORA, make_run


def main(folder: Path, cases: list[Any]) -> None:
    for number_of_case, (examples, micro, accumulation, method, loss) in enumerate(cases):
        AcceleratorState._reset_state()  # keeps the process group
        GradientState._reset_state()
        cut = {"examples": examples, "micro": micro, "accumulation": accumulation}
        trained = ADALORA if method == "adalora" else {}
        run = make_run(folder, **cut, **trained, recorder=True, scores=[0.0], **loss)
        assert run.accelerator.num_processes == 2
        train(run)
        if run.accelerator.is_main_process:
            seen = run.optimizer.optimizer.seen
            flat = {
                f"{number}/{name.removeprefix('module.')}": gradient
                for number, gradients in enumerate(seen)
                for name, gradient in gradients.items()
            }
            save_file(flat, folder / f"{number_of_case}.safetensors")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
