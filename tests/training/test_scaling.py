"""fp16's scaler and skipped updates: they are detected without the host waiting."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from peftlib.acceleration import accelerate_model
from peftlib.training.loop import train
from peftlib.training.scaling import Verdict
from tests.training.runs import Log, make_run

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="about a host and a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_a_verdict_is_of_its_own_update(device: str) -> None:
    weight = nn.Parameter(torch.ones(2, device=device))
    optimizer = torch.optim.AdamW([weight])
    scaler = torch.amp.GradScaler(device, init_scale=8.0)

    def update(gradient: float) -> Verdict:
        scaler.scale(weight.sum() * gradient).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return Verdict(scaler)

    first, second, third = update(1.0), update(float("inf")), update(float("inf"))
    assert (first.scale(), second.scale(), third.scale()) == (8.0, 4.0, 2.0)


class Forbidding(Log):
    """A watcher that forbids host-device synchronisation between two updates, after the loop has warmed up."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self._modes = {first: "error", last: "default"}

    def advance(self, step: int) -> None:
        if step in self._modes:
            torch.cuda.set_sync_debug_mode(self._modes[step])


@gpu
@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_between_two_logs_the_host_never_waits_for_the_device(tmp_path: Path, precision: str, graphs: bool) -> None:
    scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
    run = make_run(
        tmp_path, examples=64, micro=4, accumulation=2, epochs=6, precision=precision, method="bitfit", scaler=scaler,
        logging_steps=10**6, eval_steps=10**6, max_grad_norm=1.0,
    )  # fmt: skip
    accelerate_model(run.model, run.accelerator.device, precision)
    run.cuda_graphs, run.watcher = graphs, Forbidding(16, 46)
    assert train(run).step == 48
