"""The CPU kernels give the same on processors with narrower vectors: AVX2's of eight numbers, and others' of four."""

from __future__ import annotations

import ctypes
import functools
import platform
import time

import pytest
import torch

from peftlib.acceleration import cpu_calls as calls
from peftlib.acceleration import cpu_compiler
from peftlib.acceleration.cpu_calls import Dropout, Seen
from peftlib.acceleration.packing import Packing

BUILDS = {"x86-64-v3": "avx2", "x86-64": "sse2"}
#: Rounding of sums in another order, and of results to bf16.
NEAR = {torch.float32: 1e-5, torch.bfloat16: 2**-6}

pytestmark = [
    pytest.mark.skipif(not calls.are_there(), reason="no CPU kernels can be built here"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="its g++ builds for other processors"),
]


@pytest.fixture(scope="module", params=BUILDS)
def narrow(request, tmp_path_factory):
    """The kernels as they are built for a processor with narrower vectors."""
    if BUILDS[request.param] not in cpu_compiler.Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this processor has no {BUILDS[request.param]}")
    with pytest.MonkeyPatch.context() as patch:
        flags = tuple(f"-march={request.param}" if flag == "-march=native" else flag for flag in cpu_compiler._FLAGS)
        patch.setattr(cpu_compiler, "_FLAGS", flags)
        path = cpu_compiler._compiled(tmp_path_factory.mktemp(request.param) / "narrow.so")
    return ctypes.CDLL(str(path))


def results(dtype, library, monkeypatch):
    """Return what every kernel makes of the same numbers, name -> tensors."""
    if library is not None:
        monkeypatch.setattr(calls, "kernels", lambda: library)
    generator = torch.Generator().manual_seed(1)
    number = functools.partial(torch.randn, generator=generator)
    lengths, heads, width, wide = (1, 5, 16, 17, 23), 2, 48, 160
    seen = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for example, length in enumerate(lengths):
        seen[example, :length] = True
    packing, drop = Packing(seen, heads, width, dtype), Dropout(6554, 65536 / (65536 - 6554), 11)
    all_heads, rows = heads * width, len(packing.tokens)
    x, residual, above = (number(rows, wide).to(dtype) for _ in range(3))
    bias, weight, shift = (number(wide) for _ in range(3))
    qkv, of_attention, qkv_bias = (
        number(rows, 3 * all_heads).to(dtype), number(rows, all_heads).to(dtype), number(3 * all_heads),
    )  # fmt: skip
    attended = Seen(qkv, None, qkv_bias, packing)
    asked = number(len(lengths), heads, all_heads).to(dtype)
    given = number(rows, all_heads).to(dtype)
    normed = calls.norm_forward(x, bias, residual, weight, shift, 1e-12, drop, keep=True)
    mixed = calls.mix_forward(asked, given, packing, drop)
    return {
        "dropout": (calls.dropout(torch.ones_like(x), drop),),
        "norm_forward": normed,
        "norm_backward": calls.norm_backward(above, normed[1], normed[2], weight, drop),
        "gelu_forward": (calls.gelu_forward(x, bias),),
        "gelu_backward": calls.gelu_backward(above, x, bias),
        "attention_forward": (calls.attention_forward(attended, drop),),
        "attention_backward": calls.attention_backward(attended, of_attention, drop)[::2],  # no separate queries
        "mix_forward": mixed,
        "mix_backward": calls.mix_backward(asked, given, packing, drop, mixed[0], mixed[1]),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", NEAR)
def test_narrower_vectors_give_the_same(narrow, dtype, monkeypatch):
    native = results(dtype, None, monkeypatch)
    ours = results(dtype, narrow, monkeypatch)
    assert torch.equal(ours["dropout"][0], native["dropout"][0]), "the same numbers are drawn"
    for name, expected in native.items():
        for one, other in zip(ours[name], expected, strict=True):
            assert one.dtype == other.dtype
            scale = other.double().abs().max().clamp_min(1)
            assert (one.double() - other.double()).abs().max() <= NEAR[dtype] * scale, name


def test_avx2_is_not_many_times_as_slow(narrow, monkeypatch):
    """g++ keeps vectors that are wider than registers in memory: kernels took up to 18 times as long."""
    packing = Packing(torch.ones(4, 48, dtype=torch.bool), 4, 32, torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    qkv, bias = torch.randn(len(packing.tokens), 3 * 128), torch.randn(3 * 128)
    seen, took = Seen(qkv, None, bias, packing), {}
    for name, library in (("native", cpu_compiler.kernels()), ("narrow", narrow)):
        monkeypatch.setattr(calls, "kernels", lambda library=library: library)
        times = []
        for _ in range(21):
            start = time.perf_counter()
            calls.attention_forward(seen, calls.NO_DROPOUT)
            times.append(time.perf_counter() - start)
        took[name] = min(times)  # another process's work counts for neither
    assert took["narrow"] < 8 * took["native"]
