"""The Accelerator of a run: precision, accumulation, threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from peftlib.errors import UserError
from peftlib.processes import RUNS_AT_ONCE
from peftlib.training import devices
from peftlib.training.devices import build_accelerator

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def a_machine_with(monkeypatch: pytest.MonkeyPatch, cores: int, usable: int) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: cores * 2 if logical else cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize("name", ["no", "bf16"])
def test_the_accelerator_computes_in_the_chosen_precision(tmp_path: Path, name: str) -> None:
    accelerator, precision = build_accelerator(name, 1, [], tmp_path, 1)
    assert (accelerator.mixed_precision, precision.name) == (name, name)
    assert accelerator.device.type == "cpu"
    with accelerator.autocast():
        dtype = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert dtype == (torch.bfloat16 if name == "bf16" else torch.float32)


def test_fp16_on_a_cpu_is_refused_before_there_is_an_accelerator(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        build_accelerator("fp16", 1, [], tmp_path, 1)


@pytest.mark.parametrize("variable", [None, "7"])
def test_the_accumulation_is_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", variable)
    accelerator, _ = build_accelerator("no", 3, [], tmp_path, 1)
    assert accelerator.gradient_accumulation_steps == 3


def test_a_launcher_that_compiles_models_leaves_the_names_of_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    accelerator, _ = build_accelerator("no", 1, [], tmp_path, 1)
    layer = torch.nn.Linear(2, 2)
    assert accelerator.prepare_model(layer) is layer


@pytest.mark.parametrize(
    ("cores", "usable", "local_processes", "expected"),
    [
        (8, 16, 1, 8),  # physical cores: a second thread per core gains nothing
        (8, 16, 2, 4),
        (8, 16, 3, 2),
        (8, 2, 1, 2),  # a container that may use two of them
        (2, 2, 4, 1),  # at least one
    ],
)
def test_processes_share_the_physical_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, usable: int, local_processes: int, expected: int
) -> None:
    a_machine_with(monkeypatch, cores, usable)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_processes))
    build_accelerator("no", 1, [], tmp_path, 0)
    assert torch.get_num_threads() == expected


def test_runs_of_a_sweep_share_the_cores_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine_with(monkeypatch, 8, 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for runs, threads in ((1, 4), (2, 2), (3, 1), (9, 1)):
        monkeypatch.setenv(RUNS_AT_ONCE, str(runs))
        build_accelerator("no", 1, [], tmp_path, 0)
        assert torch.get_num_threads() == threads


def test_the_flag_wins_over_the_variable_and_the_variable_over_the_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_machine_with(monkeypatch, 8, 16)
    for value in ("3", "3,2"):  # one per nesting level
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        build_accelerator("no", 1, [], tmp_path, 0)
        assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    build_accelerator("no", 1, [], tmp_path, 0)
    assert torch.get_num_threads() == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    build_accelerator("no", 1, [], tmp_path, 2)
    assert torch.get_num_threads() == 2


def test_the_launchers_default_of_one_thread_is_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine_with(monkeypatch, 2, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    build_accelerator("no", 1, [], tmp_path, 0)
    assert torch.get_num_threads() == 2


def test_a_machine_that_does_not_tell_its_cores_uses_what_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_machine_with(monkeypatch, 2, 4)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: None)
    build_accelerator("no", 1, [], tmp_path, 0)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("kind", "expected"), [("mps", False), ("cuda", True)])
def test_the_host_waits_for_copies_to_apples_gpus_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: bool
) -> None:
    monkeypatch.setattr(devices, "join", lambda: SimpleNamespace(device=torch.device(kind)))
    monkeypatch.setattr(devices, "Accelerator", SimpleNamespace)
    accelerator, precision = build_accelerator("no", 1, [], tmp_path, 0)
    assert accelerator.dataloader_config.non_blocking is expected
    assert precision.name == "no"
