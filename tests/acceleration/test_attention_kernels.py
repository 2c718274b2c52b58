"""Attention's Triton kernels against attention in fp64 with the same elements dropped."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("needs triton, which is for Linux", allow_module_level=True)

from peftlib.acceleration import layer_calls
from peftlib.acceleration.layer_calls import Call, Rate
from tests.acceleration.rows import DEVICE, assert_close


def mask_on_the_host(seed, example_and_head, tokens, rate):
    """Compute the dropout mask of one head of one example, (tokens, tokens), from the documented hash with NumPy."""
    low = 0xFFFFFFFF
    place = np.arange(tokens, dtype=np.uint64)
    row = ((example_and_head * 128 + place) * 128 * 0x9E3779B1 + (seed & low)) & low
    word = (row[:, None] + (place * 0x9E3779B1 & low)[None, :]) & low
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & low
    word = ((word ^ (word >> 15) ^ (seed >> 32)) * 0x846CA68B) & low
    return torch.from_numpy(word >= rate.threshold).to(DEVICE)


def exact_attention(x, gradient, lengths, heads, seed, rate):
    """Return the output, the gradients of queries, keys and values, and their sums over each example, in fp64."""
    x = x.double().requires_grad_()
    width, found = x.size(1) // 3 // heads, []
    for example, rows in enumerate(x.split(lengths)):
        for head in range(heads):
            q, k, v = (part[:, head * width : (head + 1) * width] for part in rows.chunk(3, 1))
            weights = torch.softmax(q @ k.T * width**-0.5, -1)
            if rate.threshold:
                mask = mask_on_the_host(seed, example * heads + head, len(rows), rate)
                weights = weights * mask * rate.factor
            found.append(weights @ v)
    values = torch.cat([torch.cat(found[start : start + heads], 1) for start in range(0, len(found), heads)])
    values.backward(gradient.double())
    sums = torch.stack([rows.sum(0) for rows in x.grad.split(lengths)])
    sums[:, sums.size(1) // 3 : 2 * sums.size(1) // 3] = 0  # of keys, exactly
    return values.detach(), x.grad, sums


@pytest.mark.parametrize(
    ("lengths", "block", "heads", "width", "p", "dtype"),
    [
        ([1, 128, 65, 32, 97], 128, 2, 32, 0.3, torch.float32), ([70, 1, 96], 128, 1, 64, 0.0, torch.float32),
        ([64, 1, 33], 64, 1, 64, 0.3, torch.float32), ([32, 5], 32, 2, 32, 0.3, torch.float32),
        ([128, 66], 128, 1, 64, 0.1, torch.float16),
    ],
)  # fmt: skip
def test_attention_is_exact_attention_at_the_same_masks(lengths, block, heads, width, p, dtype):
    generator = torch.Generator().manual_seed(sum(lengths))
    places = torch.full((len(lengths), 1, 1, block), -1, dtype=torch.int32)
    start = 0
    for example, length in enumerate(lengths):
        places[example, 0, 0, :length] = torch.arange(start, start + length)
        start += length
    qkv = (torch.randn(start, 3 * heads * width, generator=generator) * 2).to(DEVICE, dtype)
    gradient = torch.randn(start, heads * width, generator=generator).to(DEVICE, dtype)
    seed, rate = 123456789 + (987654 << 32), Rate.of(p)
    call = Call(places.to(DEVICE), torch.tensor([seed], device=DEVICE), heads, (rate,))
    sums = torch.full((len(lengths), 3 * heads * width), torch.nan, device=DEVICE)
    attended = layer_calls.attend(call, qkv)
    below = layer_calls.attend_backward(call, gradient, qkv, attended, sums)
    expected = exact_attention(qkv, gradient, lengths, heads, seed, rate)
    for ours, exact in zip((attended.values, below, sums), expected, strict=True):
        assert_close(ours.double(), exact, 2e-3 if dtype == torch.float16 else 1e-5)
