"""The meter counts what goes through the model between two updates, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from benchmarks.meter import Meter
from peftlib.data.collation import STEP, Collator
from peftlib.data.encoding import Chosen
from tests.test_benchmarks.conftest import small_config


@pytest.fixture
def model():
    return BertForSequenceClassification(small_config()).eval()


def forward(model, lengths, width):
    mask = (torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]).long()
    model(input_ids=mask, attention_mask=mask)


def test_only_what_lies_between_the_two_updates_counts(model):
    meter = Meter(torch.device("cpu"), after_imports=5, first=1, last=3)
    meter.watch(model)
    for step, lengths in enumerate([[9, 9], [4, 2], [3, 1], [9, 9]], start=1):
        forward(model, lengths, width=9 if step == 1 else 5)
        meter.tick(step)
        if step == 3:
            break
    forward(model, [9, 9], width=9)
    speed = meter.speed(model, "no", training=False)
    assert (speed.examples, speed.tokens, speed.computed) == (4, 10, 20)
    assert speed.seconds > 0 and speed.cpu_seconds >= 0
    assert speed.memory["peak"] > speed.memory["after_imports"] == 5


def test_the_first_update_is_timed_from_the_start_of_the_process(model):
    meter = Meter(torch.device("cpu"), after_imports=0, first=1, last=2)
    meter.watch(model)
    meter.tick(1)
    forward(model, [3], width=3)
    meter.tick(2)
    first = meter.speed(model, "no", training=True).first_update
    assert first is not None and first > meter.speed(model, "no", training=True).seconds


def test_batches_in_rows_are_counted_without_their_fillers(model):
    lengths = np.array([7, 4])
    labels, weight = np.zeros(2, dtype=np.int64), np.full(2, 0.5, dtype=np.float32)
    chosen = Chosen({"input_ids": np.ones(11, dtype=np.int32)}, lengths, labels, labels, weight)
    batch = Collator({"input_ids": 0}).in_rows(0)(chosen)
    meter = Meter(torch.device("cpu"), after_imports=0)
    meter.start()
    meter.count(batch)
    meter.stop()
    speed = meter.speed(model, "no", training=True)
    assert (speed.examples, speed.tokens, speed.computed) == (2, 11, STEP)


def test_processes_share_the_examples(model):
    meter = Meter(torch.device("cpu"), after_imports=0)
    meter.watch(model)
    meter.start()
    forward(model, [3, 2], width=4)
    meter.stop()
    speed = meter.speed(model, "no", training=False, processes=2)
    assert (speed.examples, speed.tokens, speed.computed) == (4, 10, 16)
