"""Replicas start equal, add up their gradients once per update, and stay equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftlib.training import data_parallel
from peftlib.training.data_parallel import gradients_of, sum_over_processes
from tests.launching import run_in_two


@settings(max_examples=60)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=7),
    most=st.integers(1, 100),
    turned=st.booleans(),
)
def test_every_gradient_is_summed_once_in_groups_of_bounded_size(
    shapes: list[list[int]], most: int, turned: bool
) -> None:
    generator = torch.Generator().manual_seed(len(shapes))
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    if turned:  # not contiguous
        gradients = [gradient.permute(tuple(reversed(range(gradient.dim())))) for gradient in gradients]
    before = [gradient.clone() for gradient in gradients]
    sizes: list[int] = []

    def all_reduce(tensor: torch.Tensor) -> None:
        assert tensor.is_contiguous()
        sizes.append(tensor.nbytes)
        tensor.mul_(3)  # as if two other processes had twice the gradients

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_parallel.dist, "all_reduce", all_reduce)
        patch.setattr(data_parallel, "_MOST_AT_ONCE", most)
        sum_over_processes(gradients)
    for gradient, old in zip(gradients, before, strict=True):
        assert torch.equal(gradient, old * 3)
    assert sum(sizes) == sum(gradient.nbytes for gradient in gradients)
    assert all(size <= max(most, *(gradient.nbytes for gradient in gradients)) for size in sizes)


def test_a_missing_gradient_takes_part_with_zeros() -> None:
    here, missing = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    here.grad = torch.ones(2)
    found = gradients_of([here, missing])
    assert [gradient.tolist() for gradient in found] == [[1, 1], [0, 0, 0]]
    found[1].add_(1)
    assert missing.grad is not None and missing.grad.tolist() == [1, 1, 1]


@pytest.mark.launch
def test_two_replicas_start_equal_and_stay_equal(tmp_path: Path) -> None:
    run_in_two(Path(__file__).with_name("replicas_of_two.py"), tmp_path, cwd=tmp_path)
