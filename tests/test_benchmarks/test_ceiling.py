"""The count of operations, against PyTorch's own counter; the ceiling is a rate."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForSequenceClassification

from benchmarks import ceiling
from benchmarks.ceiling import matmul_ceiling, operations
from peftlib.acceleration.frozen_matrices import PackedMatrix
from peftlib.strategies import STRATEGIES
from tests.test_benchmarks.conftest import small_config

TOKENS = 24
BATCH = 3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", ["bitfit", "lora", "full"])
def test_the_count_is_what_torch_counts_but_for_the_head_and_the_ends(method, training):
    head = frozenset({"classifier.weight", "classifier.bias"})
    config = small_config()
    config.num_hidden_layers = 12  # so that the first layer's missing gradients, and the head, are a small part
    config._attn_implementation = "eager"
    model = STRATEGIES[method]().apply(BertForSequenceClassification(config), head)
    ids = torch.randint(1, 1000, (BATCH, TOKENS))
    with FlopCounterMode(display=False) as counter:
        logits = model.train(training)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        if training:
            logits.sum().backward()
    counted = operations(model, np.full(BATCH, TOKENS), training=training)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_the_ceiling_is_the_rate_of_the_fastest_product(monkeypatch):
    """If every look at the clock takes a second, so does every product."""
    monkeypatch.setattr(ceiling.time, "perf_counter", itertools.count().__next__)
    rate = matmul_ceiling(torch.device("cpu"), "no", seconds=0.1)
    assert rate == max(2 * rows * inner * columns for rows, inner, columns in ceiling._SHAPES["cpu"])


def test_a_product_of_our_own_counts_if_it_is_the_faster_one(monkeypatch):
    clock = [0.0]

    class Quick(PackedMatrix):
        def __init__(self, plain):
            self.plain = plain

        def times(self, x, bias=None):
            clock[0] += 0.01
            return x

    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda layer, x: clock.__setitem__(0, clock[0] + 0.02))
    most = max(2 * rows * inner * columns for rows, inner, columns in ceiling._SHAPES["cpu"])
    assert matmul_ceiling(torch.device("cpu"), "no") == pytest.approx(most / 0.02)
    monkeypatch.setattr(ceiling, "frozen_matrix", lambda dtype, layer: Quick(layer.weight))
    assert matmul_ceiling(torch.device("cpu"), "bf16") == pytest.approx(most / 0.01)
