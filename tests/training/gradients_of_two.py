"""Run by test_accumulation.py in two processes: write the gradients of every update of some small runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import save_file

from peftlib.training import loop
from peftlib.training.loop import choose_step
from tests.acceleration.test_graphs import PretendedGraphs
from tests.training.runs import ADALORA, make_run


def main(folder: Path, cases: list[Any]) -> None:
    for number_of_case, (examples, micro, accumulation, method, loss) in enumerate(cases):
        AcceleratorState._reset_state()  # keeps the process group
        GradientState._reset_state()
        cut = {"examples": examples, "micro": micro, "accumulation": accumulation}
        trained = ADALORA if method == "adalora" else {}
        run = make_run(folder, **cut, **trained, recorder=True, scores=[0.0], **loss)
        assert run.accelerator.num_processes == 2
        loop.choose_step = choose_step
        if method == "graphs":
            pretended = PretendedGraphs(choose_step(run), run.model.parameters(), print, lambda _: True)
            loop.choose_step = lambda _, pretended=pretended: pretended
        loop.train(run)
        assert method != "graphs" or pretended.recorded
        if run.accelerator.is_main_process:
            seen = run.optimizer.optimizer.seen
            flat = {
                f"{number}/{name}": gradient
                for number, gradients in enumerate(seen)
                for name, gradient in gradients.items()
            }
            save_file(flat, folder / f"{number_of_case}.safetensors")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
