"""The loss kernel against torch's cross-entropy, on a GPU or, without one, in Triton's interpreter."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

if find_spec("triton") is None:
    pytest.skip("needs triton, which is for Linux", allow_module_level=True)

from peftlib.acceleration.loss import weighted_loss_in_one
from peftlib.training.accumulation import weighted_loss
from tests.acceleration.rows import DEVICE


def drawn(examples, classes, dtype=torch.float32, spread=3.0):
    generator = torch.Generator().manual_seed(examples * 1000 + classes)
    logits = (torch.randn(examples, classes, generator=generator) * spread).to(DEVICE, dtype).requires_grad_()
    labels = torch.randint(0, classes, (examples,), generator=generator).to(DEVICE)
    weight = torch.rand(examples, generator=generator).to(DEVICE) / examples
    weight[-1] = 0.0  # as fillers have
    return logits, labels, weight


def in_both(logits, labels, weight, scale=1.0):
    """Return the loss of both implementations, and the gradient of `scale` times the loss."""
    found = []
    for compute in (weighted_loss_in_one, weighted_loss):
        logits.grad = None
        loss = compute(logits, labels, weight)
        (loss * scale).backward()
        found.append((loss.detach(), logits.grad))
    return found


@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(2, 40), st.sampled_from([torch.float32, torch.float16]))
@example(3, 3000, torch.float32)  # more classes than it holds at a time
@example(300, 15, torch.float32)  # several rounds
def test_loss_and_gradient_are_torch_s(examples, classes, dtype):
    (loss, gradient), (expected, slopes) = in_both(*drawn(examples, classes, dtype))
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, slopes)


def test_small_gradients_survive_in_fp16_until_they_are_scaled():
    logits, labels, weight = drawn(64, 2, torch.float16, spread=0.0)
    logits.data[:, 0] = 17.0  # the other class has a probability below fp16's least number
    (_, gradient), (_, slopes) = in_both(logits, labels, weight, 65536.0)
    assert (gradient[weight > 0, 1] != 0).all()
    torch.testing.assert_close(gradient, slopes)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_shows(broken):
    logits, labels, weight = drawn(5, 3)
    logits.data[2, 1], labels[2] = broken, 1
    (loss, _), (expected, _) = in_both(logits, labels, weight)
    assert not loss.isfinite()
    assert not expected.isfinite()
