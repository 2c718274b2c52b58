"""Detection of GPU architectures, and when cuBLAS's workspace is disabled."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from peftlib.acceleration.gpus import has_tensor_cores, is_hopper, leave_out_workspace


@pytest.mark.parametrize(
    ("capability", "tensor_cores", "hopper"),
    [
        ((7, 5), False, False),
        ((8, 0), True, False),
        ((8, 9), True, False),
        ((9, 0), True, True),
        ((12, 0), True, False),
    ],
)
def test_kinds_of_gpus(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], tensor_cores: bool, hopper: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = has_tensor_cores(torch.device("cuda")), is_hopper(torch.device("cuda"))
    assert found == (tensor_cores, hopper)
    assert not has_tensor_cores(torch.device("cpu")) and not is_hopper(torch.device("cpu"))


@pytest.mark.parametrize("given", [{"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, {"TORCH_BLAS_PREFER_CUBLASLT": "1"}, {}])
def test_a_workspace_that_was_asked_for_or_is_needed_stays(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    names = ("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "TORCH_BLAS_PREFER_CUBLASLT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is taken away again
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    leave_out_workspace(nn.Linear(2, 2))
    found = {name: os.environ[name] for name in names if name in os.environ}
    assert found == (given or {"CUBLAS_WORKSPACE_CONFIG": ":0:0", "CUBLASLT_WORKSPACE_SIZE": "0"})
