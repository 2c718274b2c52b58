"""Choose the precision of the forward and backward passes."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from accelerate import PartialState

from peftlib.acceleration.cpus import has_slow_bf16
from peftlib.acceleration.panel_calls import IN_FP16
from peftlib.errors import UserError


class Precision(NamedTuple):
    """`name` is accelerate's ("no", "fp16", "bf16"); `reason` is shown to the user."""

    name: str
    reason: str


def choose_precision(requested: str, device: torch.device | None = None, *, accelerated: bool = True) -> Precision:
    """Resolve "auto" to the best precision of this device, and refuse one that would be ignored.

    Args:
        requested: "auto", "no", "fp16" or "bf16".
        device: the model's; None asks accelerate.
        accelerated: whether the model will be, by `accelerate_model`.

    Raises:
        UserError: fp16 on a CPU, where accelerate would silently compute in fp32.
    """
    device = PartialState().device if device is None else device
    origin = "--mixed_precision"
    # The launcher always sets the variable, by default to "no", which therefore says nothing.
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if requested == "auto" and launcher in ("fp16", "bf16"):
        requested, origin = launcher, "accelerate launch"
    if requested == "fp16" and device.type == "cpu":
        raise UserError(f"{origin} fp16 needs a GPU, and this run is on a CPU; use --mixed_precision bf16 or no")
    if requested != "auto":
        return Precision(requested, f"from {origin}")
    if device.type == "cuda":
        # Emulated bf16 (on a T4, say) is slower than fp16, and counts as supported by default.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "auto: this GPU computes bf16 natively")
        return Precision("fp16", "auto: this GPU has no native bf16")
    if device.type == "cpu" and _cpu_has_bf16():
        if has_slow_bf16():
            if accelerated and IN_FP16.pay():
                return Precision("bf16", "auto: this CPU multiplies bf16 matrices fastest, by fp16 instructions")
            return Precision("no", "auto: this CPU multiplies fp32 matrices faster than bf16 ones")
        return Precision("bf16", "auto: this CPU has bf16 instructions")
    return Precision("no", f"auto: no native bf16 on this {device.type}")


def _cpu_has_bf16() -> bool:
    """Return whether the CPU has bf16 instructions that oneDNN uses; on plain AVX-512 it would emulate them."""
    capabilities = torch.cpu.get_capabilities()
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
