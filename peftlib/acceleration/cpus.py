"""What distinguishes CPUs."""

from __future__ import annotations

import torch


def has_fast_bf16() -> bool:
    """Return whether no instruction for bf16 is faster than AVX-512's: not on Xeons with AMX, be it hidden."""
    return not has_slow_bf16() and not torch.cpu.get_capabilities().get("amx_bf16")


def has_slow_bf16() -> bool:
    """Return whether this is a Xeon whose AMX a virtual machine hides: AVX-512's bf16 is half as fast as fp32 there.

    These are Sapphire Rapids and later, which have AVX-512's fp16 too; Cooper Lake has no AMX, and bf16 pays there.
    Measured: benchmarks/NOTES.md, "A Xeon without AMX".
    """
    capabilities = torch.cpu.get_capabilities()
    by_intel = str(capabilities.get("cpu_name", "")).startswith("Intel")
    return by_intel and bool(capabilities.get("avx512_fp16")) and not capabilities.get("amx_bf16")
