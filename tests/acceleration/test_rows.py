"""Batches laid out in rows hold the same tokens, each once, in few shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlib.acceleration.rows import MOST_TOKENS, RowCollate, in_rows, is_in_rows


def padded(lengths, width=None, seed=0):
    """A batch as `Collator` makes it, with tokens that differ."""
    width = width or max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(1, 1000, mask.shape, generator=torch.Generator().manual_seed(seed))
    return {
        "input_ids": torch.where(mask, tokens, 0),
        "token_type_ids": torch.where(mask, tokens % 2, 0),
        "attention_mask": mask.long(),
        "labels": torch.arange(len(lengths)) % 2,
        "example": torch.arange(len(lengths)) + 100,
        "weight": torch.full((len(lengths),), 1 / len(lengths)),
    }


@settings(max_examples=60)
@given(st.lists(st.integers(1, MOST_TOKENS), min_size=1, max_size=70), st.integers(0, 3), st.sampled_from([0, 2]))
def test_every_token_has_one_row_and_every_row_an_example(lengths, more, first_position):
    batch = padded(lengths, max(lengths) + more)
    laid = in_rows(batch, first_position)
    places, count = laid["attention_mask"], laid["input_ids"].size(1)
    examples, width = places.size(0), places.size(3)
    assert is_in_rows(torch.empty(1, count, 8), places)
    assert laid.keys() == {*batch, "position_ids"}
    assert torch.equal(places[places >= 0].sort().values, torch.arange(count, dtype=torch.int32))
    assert (places[:, 0, 0, 0] >= 0).all(), "an example without a first token has nothing to score"
    for number, length in enumerate(lengths):
        rows = places[number, 0, 0]
        assert (rows[length:] == -1).all()
        for name in ("input_ids", "token_type_ids"):
            assert torch.equal(laid[name][0, rows[:length].long()], batch[name][number, :length])
        assert torch.equal(laid["position_ids"][0, rows[:length].long()], torch.arange(length) + first_position)
    for name in ("labels", "example", "weight"):
        assert laid[name].shape == (examples,) and laid[name].dtype == batch[name].dtype
        assert torch.equal(laid[name][: len(lengths)], batch[name])
        assert not laid[name][len(lengths) :].any(), "fillers count nothing"
    assert laid["position_ids"].min() >= first_position and laid["position_ids"].max() < first_position + width
    tokens = sum(lengths)
    assert tokens < count <= tokens + 2 * max(128, tokens / 16)
    assert width >= max(lengths) and width in (32, 64, 128)


def test_shapes_are_few():
    generator = torch.Generator().manual_seed(1)
    shapes = set()
    for _ in range(300):
        lengths = torch.randint(20, 60, (64,), generator=generator).tolist()
        shapes.add(tuple((name, tensor.shape) for name, tensor in in_rows(padded(lengths), 0).items()))
    assert len(shapes) <= 6


def test_longer_examples_stay_padded():
    batch = padded([MOST_TOKENS + 1, 3])
    assert in_rows(batch, 0) is batch
    assert not is_in_rows(torch.empty(2, MOST_TOKENS + 1, 8), batch["attention_mask"])


@pytest.mark.parametrize("mask", [None, torch.ones(1, 5), torch.ones(1, 1, 5, 5), torch.zeros(2, 1, 1, 32)])
def test_other_masks_are_not_taken_for_rows(mask):
    assert not is_in_rows(torch.empty(1, 5, 8), mask)


def test_a_loader_s_batches_are_laid_out():
    collate = RowCollate(lambda lengths: padded(lengths), first_position=2)
    laid, expected = collate([3, 9]), in_rows(padded([3, 9]), 2)
    assert laid.keys() == expected.keys()
    assert all(torch.equal(laid[name], expected[name]) for name in laid)
