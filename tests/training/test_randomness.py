"""Every generator continues where it was, from files without pickle."""

from __future__ import annotations

import json
import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from peftlib.training.randomness import capture_random, from_tensors, restore_random, to_tensors


def draw() -> tuple[list[float], list[float], list[float], list[float]]:
    return (
        [random.random(), random.gauss(0, 1)],
        [*np.random.rand(2), np.random.randn()],
        torch.rand(3).tolist(),
        torch.nn.functional.dropout(torch.ones(8)).tolist(),
    )


@given(seed=st.integers(0, 2**32 - 1), gaussians=st.integers(0, 3))
def test_restored_generators_repeat_themselves(seed, gaussians):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    for _ in range(gaussians):  # after an odd number, the second of a pair is still cached
        random.gauss(0, 1), np.random.randn()
    tensors, scalars = to_tensors(capture_random(), "process0")
    expected = draw()
    restore_random(from_tensors(load(save(tensors)), json.loads(json.dumps(scalars)), "process0"))
    assert draw() == expected


def test_the_generator_of_apples_gpu_goes_on_too(monkeypatch):
    there = {"state": torch.arange(5, dtype=torch.uint8)}
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: there["state"].clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: there.update(state=state))
    tensors, scalars = to_tensors(capture_random(), "process0")
    there["state"] = torch.zeros(5, dtype=torch.uint8)
    restore_random(from_tensors(load(save(tensors)), json.loads(json.dumps(scalars)), "process0"))
    assert there["state"].tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    assert "mps" not in capture_random()
    restore_random(from_tensors(tensors, scalars, "process0"))  # as from a checkpoint of another machine
