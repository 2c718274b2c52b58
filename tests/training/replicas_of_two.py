"""Run by test_data_parallel.py in two processes: replicas that differ at first, or train different layers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import gather_object
from torch import nn

from peftlib.strategies.parameters import trained_state
from peftlib.training import loop
from peftlib.training.data_parallel import prepare
from peftlib.training.devices import build_accelerator
from peftlib.training.loop import choose_step
from tests.acceleration.test_graphs import PretendedGraphs
from tests.training.runs import make_run


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def assert_equal_everywhere(tensors: dict[str, torch.Tensor]) -> None:
    first, second = gather_object([tensors])
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


class Odd(nn.Module):
    """Parameters and buffers of every kind."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.full((3, 2), float(rank)).t())  # not contiguous
        self.narrow = nn.Parameter(torch.full((2,), float(rank), dtype=torch.bfloat16), requires_grad=False)
        self.number = nn.Parameter(torch.tensor(float(rank)))
        self.none = nn.Parameter(torch.empty(0))
        self.register_buffer("flags", torch.tensor([rank > 0, True]))
        self.register_buffer("places", torch.tensor([rank]))


def start_equal(accelerator: Accelerator) -> None:
    odd = Odd(accelerator.process_index)
    assert not odd.wide.is_contiguous()
    model, _, _ = prepare(accelerator, odd, torch.optim.SGD(odd.parameters()), torch.utils.data.DataLoader([1]))
    assert model is odd, "not wrapped"
    assert_equal_everywhere(dict(model.state_dict()))
    assert all(float(tensor.float().sum()) == 0 for name, tensor in model.state_dict().items() if name != "flags")
    assert model.flags.tolist() == [False, True]


def stay_equal(folder: Path, graphs: bool | None = None, **options: Any) -> None:
    """Train and compare the replicas; with graphs or, where `graphs` is false, with a step that cannot be recorded."""
    AcceleratorState._reset_state()  # keeps the process group
    GradientState._reset_state()
    run = make_run(folder, examples=43, micro=4, epochs=3, scores=[0.0] * 3, max_grad_norm=1.0, **options)
    before = trained_state(run.model)
    torch.manual_seed(run.accelerator.process_index)  # for dropout
    loop.choose_step = choose_step
    if graphs is not None:
        pretended = PretendedGraphs(choose_step(run), trained_parameters(run.model), print, lambda _: True)
        pretended._recordable = graphs
        loop.choose_step = lambda _: pretended
    loop.train(run)
    assert graphs is None or bool(pretended.recorded) == graphs
    after = trained_state(run.model)
    assert_equal_everywhere(after)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def main(folder: Path) -> None:
    accelerator, _ = build_accelerator("no", 1, [], folder, 1)
    assert accelerator.num_processes == 2
    start_equal(accelerator)
    for method in ("bitfit", "lora", "full"):
        stay_equal(folder, method=method, dropout=0.1, accumulation=2)
    # What one process can record, the other cannot: a model may wait for the device in long batches only.
    stay_equal(folder, graphs=accelerator.is_main_process, method="full", accumulation=2)
    # Each process skips other layers, which then have no gradients there.
    stay_equal(folder, method="peft", flags={"peft_type": "loha", "peft_kwargs": '{"module_dropout": 0.6}'})
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
