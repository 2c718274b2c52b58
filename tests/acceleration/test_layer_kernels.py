"""Single Triton kernels: dropout masks, normalisation, column sums; all kernels compile for real GPUs."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("needs triton, which is for Linux", allow_module_level=True)

import triton

from peftlib.acceleration import attention_kernels, layer_calls, layer_kernels, loss, low_rank_kernels
from peftlib.acceleration.layer_calls import Call, Normal, Rate
from tests.acceleration.rows import DEVICE, assert_close
from tests.conftest import ROOT
from tests.launching import run_python

pytestmark = pytest.mark.usefixtures("few_programs")


def attention_mask_drawn(seed, p, tokens=32):
    """Return the dropout factors of the attention weights of one example with two heads, (heads, tokens, tokens)."""
    qkv = torch.zeros(tokens, 3 * 64)
    qkv[:, 128:] = torch.eye(32).repeat(1, 2)[:tokens] * tokens  # equal weights, and the values show which are kept
    places = torch.full((1, 1, 1, 32), -1, dtype=torch.int32, device=DEVICE)
    places[..., :tokens] = torch.arange(tokens)
    out = layer_calls.attend(Call(places, seed, 2, (Rate.of(p),)), qkv.to(DEVICE)).values
    return out.view(tokens, 2, 32)[..., :tokens].transpose(0, 1)


def mixed_mask_drawn(seed, p, examples=16, tokens=32):
    """Return the same for the first tokens' attention, (examples · heads, tokens)."""
    places = torch.arange(tokens, dtype=torch.int32, device=DEVICE).expand(examples, 1, 1, tokens).contiguous()
    asked = torch.zeros(examples, 2, tokens, device=DEVICE)  # equal weights on the rows of a unit matrix
    out, kept = layer_calls.mix(Call(places, seed, 2, (Rate.of(p),)), asked, torch.eye(tokens, device=DEVICE) * tokens)
    torch.testing.assert_close(out.sum(2), kept * tokens)
    return out.flatten(0, 1)


def row_mask_drawn(seed, p, site, rows=64, width=96):
    gradient = torch.randn(rows, width, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    nothing = torch.empty(3, 0, device=DEVICE)
    places = torch.zeros(1, 1, 1, 32, dtype=torch.int32, device=DEVICE)
    ones = torch.ones(max(rows, width), device=DEVICE)
    below, dropped = layer_calls.norm_backward(
        Call(places, seed, 1, (Rate.of(p),) * 3), site, gradient, Normal(gradient, ones[:rows]), ones[:width],
        nothing, nothing, nothing,
    )  # fmt: skip
    return dropped / below


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_have_their_rate_and_what_is_kept_its_factor(p):
    seed = torch.tensor([123 + (321 << 32)], device=DEVICE)
    masks = [
        attention_mask_drawn(seed, p), mixed_mask_drawn(seed, p), row_mask_drawn(seed, p, 1), row_mask_drawn(seed, p, 2)
    ]  # fmt: skip
    for mask in masks:
        kept = mask > 0
        torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))
        assert abs(kept.float().mean().item() - (1 - p)) < 4 * (p * (1 - p) / kept.numel()) ** 0.5
    sites = torch.stack([mask.flatten() for mask in masks[2:]])
    assert abs(torch.corrcoef(sites)[0, 1]) < 4 / masks[2].numel() ** 0.5
    kept = masks[2] > 0
    assert len(kept.unique(dim=0)) == len(kept)
    if p == 0.5:
        assert len((masks[0] > 0).flatten(0, 1).unique(dim=0)) == 64
    neighbours = torch.corrcoef(torch.stack([kept[:, :-1].flatten().float(), kept[:, 1:].flatten().float()]))[0, 1]
    assert abs(neighbours) < 4 / kept.numel() ** 0.5


def test_masks_depend_on_the_seed_alone():
    seed, others = torch.tensor([5], device=DEVICE), (6, 5 + (1 << 32))  # either half of it
    assert torch.equal(row_mask_drawn(seed, 0.5, 1), row_mask_drawn(seed, 0.5, 1))
    assert torch.equal(attention_mask_drawn(seed, 0.5), attention_mask_drawn(seed, 0.5))
    for number in others:
        other = torch.tensor([number], device=DEVICE)
        assert not torch.equal(row_mask_drawn(seed, 0.5, 1), row_mask_drawn(other, 0.5, 1))
        assert not torch.equal(attention_mask_drawn(seed, 0.5), attention_mask_drawn(other, 0.5))
    # Row by row the same among fewer tokens.
    short = attention_mask_drawn(seed, 0.5, 16)
    assert torch.equal(short > 0, attention_mask_drawn(seed, 0.5)[:, :16, :16] > 0)


def test_sums_of_columns_are_exact_for_whatever_sizes():
    for first, second in (((5, 7), (3, 70)), ((20, 64), (1, 0)), ((1, 0), (33, 129)), ((2, 0), (2, 0))):
        left, right = torch.randint(-9, 9, first).float().to(DEVICE), torch.randint(-9, 9, second).float().to(DEVICE)
        assert torch.equal(layer_calls.sums_over_rows(left, right), torch.cat([left.sum(0), right.sum(0)]))


@pytest.mark.parametrize(("rows", "at_a_time"), [(5, 1), (5, 2)])
def test_normalisation_takes_as_many_rows_at_a_time_as_it_is_told(monkeypatch, rows, at_a_time):
    monkeypatch.setattr(layer_calls, "_FORWARD_ROWS", at_a_time)
    generator = torch.Generator().manual_seed(0)
    product, residual = (torch.randn(rows, 96, generator=generator).to(DEVICE) for _ in range(2))
    bias, weight, shift = (torch.randn(96, generator=generator).to(DEVICE) for _ in range(3))
    places, seed = torch.zeros(1, 1, 1, 32, dtype=torch.int32, device=DEVICE), torch.zeros(1, dtype=torch.int64)
    call = Call(places, seed.to(DEVICE), 1, (Rate.of(0.0),) * 3)
    out, normal = layer_calls.norm_forward(call, 1, product, bias, residual, weight, shift, 1e-5)
    total = product + bias + residual
    assert_close(out, torch.nn.functional.layer_norm(total, (96,), weight, shift, 1e-5), 1e-5)
    assert_close(normal.values, torch.nn.functional.layer_norm(total, (96,), None, None, 1e-5), 1e-5)


@pytest.mark.launch
def test_kernels_compile_for_ampere_and_hopper(tmp_path):
    """Runs in its own process, without Triton's interpreter; see `compile_kernels`."""
    done = run_python(
        "-m", "tests.acceleration.compile_kernels", cwd=ROOT, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = {line.split()[0] for line in done.stdout.splitlines()}
    assert kernels == {
        name
        for module in (attention_kernels, layer_kernels, loss, low_rank_kernels)
        for name, one in vars(module).items()
        if isinstance(one, triton.runtime.jit.KernelInterface) and not name.startswith("_") and name != "kept"
    }
