"""Two processes of test_distributed.py: they end right after a collective, when gloo's threads may still be busy."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from peftlib.training.data_parallel import prepare
from peftlib.training.devices import build_accelerator


def main(folder: Path) -> None:
    accelerator, _ = build_accelerator("no", 1, [], folder, 1)
    layer = nn.Linear(2, 2)
    model, *_ = prepare(accelerator, layer, torch.optim.SGD(layer.parameters()), DataLoader([1]))
    # No thread gets Python's lock from this one, unless it is given up: what a busy machine does now and then.
    sys.setswitchinterval(1000)
    for _ in range(20):
        accelerator.gather(model.weight.detach())
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
