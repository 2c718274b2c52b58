"""Each example's loss, smoothed or not, against transformers and against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.trainer_pt_utils import LabelSmoother

from peftlib.evaluation.losses import losses


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(2, 5), st.sampled_from([0.0, 0.1, 0.9]))
def test_smoothed_classes_are_transformers(examples: int, classes: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(examples * 10 + classes)
    logits = torch.randn(examples, classes, generator=generator) * 3
    labels = torch.randint(0, classes, (examples,), generator=generator)
    expected = LabelSmoother(epsilon=smoothing)({"logits": logits}, labels)
    found = losses(logits, labels, smoothing)
    assert found.shape == (examples,)
    torch.testing.assert_close(found.mean(), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_smoothed_decision_of_several_labels_is_that_of_two_classes(smoothing: float) -> None:
    """The logit of a binary decision is the difference of two classes' logits."""
    logits, labels = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    as_classes = torch.stack([torch.zeros(3), logits[0]], dim=1)
    expected = losses(as_classes, labels[0], smoothing).mean()
    torch.testing.assert_close(losses(logits, labels, smoothing), expected[None])


def test_without_smoothing_nothing_changes_by_a_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 4, generator=generator), torch.randint(0, 4, (9,), generator=generator)
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(losses(logits, labels), plain)
