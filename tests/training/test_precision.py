"""Which precision a run computes in, and which it refuses."""

from __future__ import annotations

import pytest
import torch

from peftlib.errors import UserError
from peftlib.training import precision
from peftlib.training.precision import choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def cpu_with(monkeypatch: pytest.MonkeyPatch, *, mkldnn: bool = True, **capabilities: bool | str) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: mkldnn, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


def cuda_with(monkeypatch: pytest.MonkeyPatch, *, native: bool) -> None:
    """Fake a GPU; emulated bf16 is always supported, as on a T4."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)


@pytest.mark.parametrize("requested", ["no", "bf16"])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_is_asked_for_is_taken(requested: str, device: torch.device) -> None:
    assert choose_precision(requested, device) == (requested, "from --mixed_precision")


def test_fp16_on_a_gpu_is_taken() -> None:
    assert choose_precision("fp16", CUDA).name == "fp16"


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--mixed_precision fp16 needs a GPU.* use --mixed_precision bf16 or no$"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", "bf16"])
def test_auto_takes_bf16_on_a_cpu_that_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    cpu_with(monkeypatch, **{capability: True})
    assert choose_precision("auto", CPU) == ("bf16", "auto: this CPU has bf16 instructions")


@pytest.mark.parametrize(
    ("name", "fp16", "amx", "expected"),
    [
        ("Intel Xeon", True, False, "no"),
        ("Intel Xeon", True, True, "bf16"),
        ("Intel Xeon", False, False, "bf16"),  # Cooper Lake
        ("AMD EPYC", True, False, "bf16"),
    ],
)
def test_without_kernels_auto_takes_fp32_on_xeons_whose_amx_is_hidden(
    monkeypatch: pytest.MonkeyPatch, name: str, fp16: bool, amx: bool, expected: str
) -> None:
    cpu_with(monkeypatch, cpu_name=name, avx512_bf16=True, avx512_fp16=fp16, amx_bf16=amx)
    monkeypatch.setattr(precision.IN_FP16, "are_there", lambda: False)
    assert choose_precision("auto", CPU).name == expected


@pytest.mark.parametrize(("accelerated", "pays"), [(True, True), (True, False), (False, True)])
def test_xeons_whose_amx_is_hidden_multiply_by_fp16_instructions(
    monkeypatch: pytest.MonkeyPatch, accelerated: bool, pays: bool
) -> None:
    cpu_with(monkeypatch, cpu_name="Intel Xeon", avx512_bf16=True, avx512_fp16=True, amx_bf16=False)
    monkeypatch.setattr(precision.IN_FP16, "are_there", lambda: pays)  # they are not without g++
    name, reason = choose_precision("auto", CPU, accelerated=accelerated)
    assert (name, "fp16 instructions" in reason) == (("bf16", True) if accelerated and pays else ("no", False))


@pytest.mark.parametrize(("mkldnn", "avx512_bf16"), [(True, False), (False, True), (False, False)])
def test_auto_takes_fp32_on_a_cpu_that_would_emulate_bf16(
    monkeypatch: pytest.MonkeyPatch, mkldnn: bool, avx512_bf16: bool
) -> None:
    cpu_with(monkeypatch, mkldnn=mkldnn, avx512=True, avx512_bf16=avx512_bf16)
    assert choose_precision("auto", CPU) == ("no", "auto: no native bf16 on this cpu")


def test_auto_takes_fp32_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Apple's processors, where torch lacks oneDNN's operators."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True})
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert choose_precision("auto", CPU).name == "no"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_takes_bf16_on_a_gpu_only_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    cuda_with(monkeypatch, native=native)
    assert choose_precision("auto", CUDA).name == expected


def test_auto_takes_fp32_on_other_devices() -> None:
    assert choose_precision("auto", torch.device("mps")) == ("no", "auto: no native bf16 on this mps")


def test_auto_without_a_device_asks_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_with(monkeypatch, native=False)
    monkeypatch.setattr(precision, "PartialState", lambda: type("State", (), {"device": CUDA}))
    assert choose_precision("auto").name == "fp16"


@pytest.mark.parametrize("told", ["fp16", "bf16", "BF16"])
def test_auto_follows_the_launcher(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    cuda_with(monkeypatch, native=told == "fp16")  # auto alone would choose the other one
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    assert choose_precision("auto", CUDA) == (told.lower(), "from accelerate launch")


def test_the_launchers_no_is_its_default_and_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_with(monkeypatch, native=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert choose_precision("auto", CUDA).name == "bf16"


@pytest.mark.parametrize("requested", ["no", "bf16"])
def test_the_flag_wins_over_the_launcher(monkeypatch: pytest.MonkeyPatch, requested: str) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_precision(requested, CPU) == (requested, "from --mixed_precision")


def test_the_launchers_fp16_on_a_cpu_is_refused_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match=r"^accelerate launch fp16 needs a GPU"):
        choose_precision("auto", CPU)
