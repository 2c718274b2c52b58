"""The CPU kernels against torch's operators, in fp32 and bf16, with and without dropout."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftlib.acceleration import cpu_calls as calls
from peftlib.acceleration.cpu_calls import Dropout, Seen
from peftlib.acceleration.cpu_layer import Attend, DropoutAddNorm, Gelu
from peftlib.acceleration.first_tokens import attend_first
from peftlib.acceleration.packing import Packing

pytestmark = pytest.mark.skipif(not calls.are_there(), reason="this machine has no g++ for the CPU kernels")

DTYPES = [torch.float32, torch.bfloat16]
#: Of a result's size: rounding of sums in fp32, or of weights and results to bf16.
NEAR = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
WIDTHS = st.integers(1, 6).map(lambda blocks: 16 * blocks)


def number(*shape, dtype=torch.float32, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed + len(shape))
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad)


def close(ours, theirs, dtype):
    """Compare relative to the largest element (at least 1): sums that cancel keep the rounding of their terms."""
    theirs = theirs.double()
    error = (ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1)
    assert error <= 4 * NEAR[dtype], error


def gradients(function, *given):
    """Return the result and all gradients, for the same upstream gradient every time."""
    result = function(*given)
    above = number(*result.shape, seed=9, grad=False).to(result.dtype)
    needing = [one for one in given if one.requires_grad]
    return result.detach(), torch.autograd.grad(result, needing, above)


def assert_alike(ours, theirs, dtype, *given):
    """Compare with `theirs`, computed in fp64 from the same inputs."""
    wide = [one.detach().double().requires_grad_(one.requires_grad) for one in given]
    (out, of_given), (expected, of_wide) = gradients(ours, *given), gradients(theirs, *wide)
    assert out.dtype == dtype
    close(out, expected, dtype)
    needing = [one for one in given if one.requires_grad]
    for one, gradient, true in zip(needing, of_given, of_wide, strict=True):
        assert gradient.dtype == one.dtype
        close(gradient, true, dtype)


def mask_of(drop, *shape):
    """Return the factors that the kernels multiply elements by, in fp64."""
    return calls.dropout(torch.ones(shape), drop).double()


def seeded(function):
    def call(*given):
        torch.manual_seed(5)
        return function(*given)

    return call


def drop_of(p):
    torch.manual_seed(5)
    return Dropout.of(p)


# ── Dropout ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_rate_is_p_and_the_expectation_exact(p):
    mask = mask_of(drop_of(p), 4000, 512)
    rate = (mask == 0).double().mean().item()
    dropped = round(p * 2**16)
    assert abs(rate - p) < 5 * (p * (1 - p) / mask.numel()) ** 0.5 + 2**-16
    assert mask.max().item() == pytest.approx(2**16 / (2**16 - dropped), rel=1e-7)


def test_elements_are_independent_of_their_neighbours_and_of_those_below():
    kept = (mask_of(drop_of(0.1), 4000, 512) != 0).double()
    centred = (kept - kept.mean()).flatten()
    for lag in (1, 2, 3, 4, 5, 8, 16, 511, 512, 513):  # four share a 64-bit word
        correlation = (centred[:-lag] * centred[lag:]).mean() / centred.var()
        assert abs(correlation.item()) < 5 / len(centred) ** 0.5, lag


def test_a_seed_decides_the_mask_and_torch_s_generator_the_seed():
    one, other = drop_of(0.5), Dropout.of(0.5)
    assert one.seed != other.seed and drop_of(0.5).seed == one.seed
    same = (mask_of(one, 100, 512) == mask_of(other, 100, 512)).double().mean().item()
    assert abs(same - 0.5) < 5 * 0.5 / 51200**0.5
    assert torch.equal(mask_of(one, 100, 512), mask_of(one, 100, 512))


def test_nothing_or_everything_is_dropped():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(mask_of(Dropout.of(0.0), 3, 16), torch.ones(3, 16).double())
    assert torch.equal(torch.get_rng_state(), state)  # evaluation draws nothing
    assert torch.equal(mask_of(Dropout.of(1.0), 3, 16), torch.zeros(3, 16).double())


def test_bf16_is_rounded_as_torch_rounds():
    """Sums of two bf16 numbers: ties, large and small numbers, infinities and NaN."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16).view(-1, 64)
    for y in (x.flip(0, 1), x.roll(77, 0).contiguous(), torch.zeros_like(x)):
        ours, theirs = calls.dropout(x, Dropout.of(0.0), y.clone()), x + y
        assert torch.equal(ours.isnan(), theirs.isnan())
        tiny = (theirs.abs() < 1.2e-38) & ~theirs.isnan()  # the processor's own conversion makes zero of subnormals
        assert torch.equal(ours[~theirs.isnan() & ~tiny], theirs[~theirs.isnan() & ~tiny])


def test_tensors_that_would_be_read_wrongly_are_refused():
    with pytest.raises(ValueError, match="not contiguous"):
        calls.dropout(torch.ones(16, 32).t(), Dropout.of(0.0), torch.ones(32, 16))


# ── Normalisation and activation ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20)
@given(rows=st.integers(1, 9), width=WIDTHS, p=st.sampled_from([0.0, 0.1, 0.5]), seed=st.integers(0, 99))
def test_dropout_residual_and_normalisation(dtype, rows, width, p, seed):
    product, residual = (number(rows, width, dtype=dtype, seed=seed + step) for step in (0, 7))
    bias, weight, shift = (number(width, seed=seed + step) for step in (0, 3, 5))
    mask = mask_of(drop_of(p), rows, width)

    def theirs(product, bias, residual, weight, shift):
        return nn.functional.layer_norm(residual + mask * (product + bias), (width,), weight, shift, 1e-3)

    def ours(product, bias, residual, weight, shift):
        return DropoutAddNorm.apply(product, bias, residual, p, weight, shift, 1e-3, True)

    assert_alike(seeded(ours), theirs, dtype, product, bias, residual, weight, shift)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_on_all_its_range(dtype):
    product = torch.linspace(-12, 12, 64 * 48).view(64, 48).to(dtype).requires_grad_()
    assert_alike(Gelu.apply, lambda x, b: nn.functional.gelu(x + b), dtype, product, number(48))


def test_gelu_of_what_is_no_number_or_far_out():
    x = torch.tensor([float("nan"), -1e30, -100.0, 100.0, 1e30, *[0.0] * 11]).view(1, 16)
    torch.testing.assert_close(calls.gelu_forward(x, torch.zeros(16)), nn.functional.gelu(x), equal_nan=True)


def test_a_diverged_loss_stays_visible():
    """NaN in, NaN out."""
    bad = torch.full((2, 32), float("nan")).bfloat16()
    zeros, ones = torch.zeros(32), torch.ones(32)
    out = calls.norm_forward(bad, zeros, bad, ones, zeros, 1e-5, Dropout.of(0.0), False)[0]
    assert out.isnan().all()
    packing = Packing(torch.ones(1, 2, dtype=torch.bool), 2, 16, torch.bfloat16)
    rows = torch.full((len(packing.tokens), 96), float("nan")).bfloat16()
    assert calls.attention_forward(Seen(rows, None, torch.zeros(96), packing), Dropout.of(0.0))[:2].isnan().all()


# ── Attention ────────────────────────────────────────────────────────────────────────────────────────────────────


def attention(lengths, heads, masks, first_only):
    """Build textbook attention, by example and head, on rows with biases; fillers' rows are zero."""

    def compute(rows, query, bias):
        parts = (rows + bias[-rows.size(1) :]).chunk(2 if first_only else 3, 1)
        key, value = parts[-2:]
        queries = query + bias[: query.size(1)] if first_only else parts[0]
        width = key.size(1) // heads
        out = [[] for _ in range(heads)]
        start = 0
        for example, length in enumerate(lengths):
            chosen = slice(example, example + 1) if first_only else slice(start, start + length)
            for head in range(heads):
                place = slice(head * width, (head + 1) * width)
                scores = queries[chosen, place] @ key[start : start + length, place].t() * width**-0.5
                mask = masks[example * heads + head][:, : scores.size(0)].t()
                out[head].append((scores.softmax(-1) * mask) @ value[start : start + length, place])
            start += length
        computed = torch.cat([torch.cat(one) for one in out], 1)
        rest = 0 if first_only else len(rows) - start
        return torch.cat([computed, computed.new_zeros(rest, computed.size(1))])

    return compute


def weights_masks(drop, lengths, heads, queries=None):
    """Compute the kernel's masks: head h of example e uses SplitMix64's numbers from (e * heads + h) * 2**32 on."""
    golden, masks = 0x9E3779B97F4A7C15, []
    for item in range(len(lengths) * heads):
        length = lengths[item // heads]
        padded = -(-(queries or length) // 16) * 16
        halves = []
        for place in range(length * padded // 4):
            z = (drop.seed + (item << 30) * golden + place * golden) % 2**64
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            z ^= z >> 31
            halves += [z >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
        kept = torch.tensor(halves).view(length, padded) >= drop.threshold
        masks.append(kept.double() * drop.factor)
    return masks


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 37), min_size=1, max_size=4), heads=st.integers(1, 3),
    width=st.sampled_from([16, 32, 48]), p=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention(first_only, dtype, lengths, heads, width, p, seed):
    seen = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    packing, wide = Packing(seen, heads, width, dtype), heads * width
    rows = number(len(packing.tokens), (2 if first_only else 3) * wide, dtype=dtype, seed=seed)
    query = number(len(lengths), wide, dtype=dtype, seed=seed + 1, grad=first_only)
    bias = number(3 * wide, seed=seed + 2)
    drop = drop_of(p)
    masks = weights_masks(drop, lengths, heads, queries=1 if first_only else None)

    def ours(rows, query, bias):
        return Attend.apply(rows, query if first_only else None, bias, packing, p)

    assert_alike(seeded(ours), attention(lengths, heads, masks, first_only), dtype, rows, query, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 37), min_size=1, max_size=4), heads=st.sampled_from([1, 2, 3, 20]),
    width=st.sampled_from([16, 32]), p=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention_of_first_tokens_without_their_keys_and_values(dtype, lengths, heads, width, p, seed):
    seen = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    packing, wide = Packing(seen, heads, width, dtype), heads * width
    rows = number(len(packing.tokens), wide, dtype=dtype, seed=seed)
    query = number(len(lengths), wide, dtype=dtype, seed=seed + 1)
    key_bias, value_bias = number(wide, seed=seed + 2), number(wide, seed=seed + 3)
    weights = [(number(wide, wide, seed=seed + step, grad=False) / wide**0.5).to(dtype) for step in (4, 5)]
    drop = drop_of(p)
    # The kernel sees one head an example, and the heads as its queries.
    masks = [
        mask[:, head : head + 1] for mask in weights_masks(drop, lengths, 1, queries=heads) for head in range(heads)
    ]

    def ours(rows, query, key_bias, value_bias):
        key, value = (SimpleNamespace(weight=weights[i], bias=bias) for i, bias in enumerate((key_bias, value_bias)))
        return attend_first(query, rows, key, value, packing, p)

    def theirs(rows, query, key_bias, value_bias):
        products = torch.cat([rows @ weight.double().t() for weight in weights], 1)
        biases = torch.cat([torch.zeros_like(key_bias), key_bias, value_bias])
        return attention(lengths, heads, masks, True)(products, query, biases)

    assert_alike(seeded(ours), theirs, dtype, rows, query, key_bias, value_bias)


def test_scores_that_are_far_apart():
    """Softmax first subtracts each query's largest score."""
    packing = Packing(torch.ones(1, 3, dtype=torch.bool), 1, 16, torch.float32)
    rows = number(len(packing.tokens), 48, grad=False) * torch.tensor([[1e3], [1e-3], [30.0], *[[0.0]] * 29])
    theirs = attention([3], 1, [torch.ones(3, 16).double()], False)(rows.double(), None, torch.zeros(48).double())
    ours = calls.attention_forward(Seen(rows, None, torch.zeros(48), packing), Dropout.of(0.0))
    close(ours[:3], theirs[:3], torch.float32)


def test_fillers_have_no_gradient():
    packing = Packing(torch.ones(2, 5, dtype=torch.bool), 2, 16, torch.float32)
    rows = number(len(packing.tokens), 96)
    Attend.apply(rows, None, torch.zeros(96), packing, 0.1).sum().backward()
    assert (rows.grad[packing.real :] == 0).all() and (rows.grad[: packing.real] != 0).any()


# ── Threads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_results_do_not_depend_on_the_number_of_threads():
    packing = Packing(torch.ones(3, 9, dtype=torch.bool), 2, 16, torch.float32)
    rows, bias, weight = number(len(packing.tokens), 96), number(96), number(32)

    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(5)
            seen = Attend.apply(rows, None, bias, packing, 0.1)
            done = DropoutAddNorm.apply(Gelu.apply(seen, weight), weight, seen, 0.1, weight, weight, 1e-5, True)
            return done, *torch.autograd.grad(done.square().sum(), (rows, bias, weight))
        finally:
            torch.set_num_threads(before)

    alone = run(1)
    for threads in (1, 2, 3, 7):
        assert all(torch.equal(one, other) for one, other in zip(alone, run(threads), strict=True)), threads
