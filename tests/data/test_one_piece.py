"""A batch in one piece is the batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from torch.utils.data import DataLoader

from peftlib.data import one_piece
from peftlib.data.one_piece import OnePiece

TYPES = st.sampled_from([np.int32, np.int64, np.float32])
ARRAYS = TYPES.flatmap(
    lambda kind: of_numpy.arrays(kind, of_numpy.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5))
)


@given(st.dictionaries(st.text(min_size=1, max_size=4), ARRAYS, min_size=1, max_size=6), st.integers(1, 100))
def test_tensors_are_the_arrays_wherever_it_goes(arrays: dict[str, np.ndarray], most: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(one_piece, "_MOST_AT_ONCE", most)
        batch = OnePiece.of(arrays)
        for found in (batch, batch.to("cpu", non_blocking=True), copy.deepcopy(batch)):
            assert found.keys() == arrays.keys()
            assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1
            for name, array in arrays.items():
                assert found[name].is_contiguous()
                assert found[name].storage_offset() * array.itemsize % 16 == 0, "where Triton's kernels want them"
                np.testing.assert_array_equal(found[name].numpy(), array)


def test_accelerate_moves_it_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = OnePiece.of({"a": np.arange(3), "b": np.ones((2, 2), np.float32)})
    moved = []
    monkeypatch.setattr(OnePiece, "to", lambda self, device, non_blocking=False: moved.append(non_blocking) or self)
    assert send_to_device(batch, torch.device("cpu"), non_blocking=True) is batch
    assert moved == [True]


def test_a_process_that_prepares_batches_hands_it_over_as_it_is() -> None:
    arrays = {"a": np.arange(5), "b": np.ones((2, 2), np.float32)}
    (batch,) = DataLoader([arrays], batch_size=None, collate_fn=OnePiece.of, num_workers=1)
    assert type(batch) is OnePiece
    assert batch["a"].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(batch.to("cpu")["b"], torch.ones(2, 2))


def test_the_host_does_not_wait_for_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, copy_ = [], torch.Tensor.copy_
    batch = OnePiece.of({"a": np.arange(20_000)})

    def watched(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        copied.append((source.nbytes, non_blocking))
        return copy_(self, source)

    monkeypatch.setattr(torch.Tensor, "copy_", watched)
    assert batch.to("cpu", non_blocking=True)["a"].tolist() == list(range(20_000))
    assert copied == [(65536, True), (65536, True), (160_000 - 2 * 65536, True)]


def test_a_move_is_a_copy() -> None:
    batch = OnePiece.of({"a": np.arange(3)})
    moved = batch.to("cpu")
    batch["a"].zero_()
    assert moved["a"].tolist() == [0, 1, 2]
