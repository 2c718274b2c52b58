"""Each example is scored once, in the split's order, for any batch size and number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from peftlib.data.batching import Slot, WindowBatches
from peftlib.data.collation import Collator
from peftlib.data.encoding import EncodedExamples
from peftlib.data.tasks import METRICS_OF_OWN_DATA, MULTI_LABEL, REGRESSION
from peftlib.evaluation.evaluator import evaluate, predict
from peftlib.training.devices import build_accelerator
from tests.launching import run_in_two
from tests.training.runs import TOKENIZER, encoded, tiny_bert

SIZES = [1, 3, 9, 17, 64]


def plain_logits(model: nn.Module, split: EncodedExamples) -> np.ndarray:
    """Compute the logits of the whole split in one padded batch."""
    batch = Collator.for_tokenizer(TOKENIZER)(split.__getitems__([Slot(place, 1.0) for place in range(len(split))]))
    with torch.inference_mode():
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return model.eval()(**inputs).logits.numpy()


def loader(split: EncodedExamples, batch_size: int, num_processes: int = 1) -> DataLoader:
    batches = WindowBatches(split.lengths, batch_size, num_processes=num_processes)
    return DataLoader(split, batch_sampler=batches, collate_fn=Collator.for_tokenizer(TOKENIZER))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples=st.sampled_from(SIZES) | st.integers(1, 40), batch_size=st.sampled_from([1, 2, 4, 7, 16, 64, 100]))
def test_equal_to_one_plain_forward_pass_in_order(tmp_path: Path, examples: int, batch_size: int) -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator, _ = build_accelerator("no", 1, [], tmp_path, 1)
    split, model = encoded(examples), tiny_bert(dropout=0.5)
    expected = plain_logits(model, split)
    prepared = accelerator.prepare(loader(split, batch_size))
    found = predict(accelerator, model.train(), prepared, examples)
    assert (found.dtype, found.shape) == (np.float32, (examples, 2))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # A wrong order would show: no two different examples have the same logits.
    assert len(np.unique(expected.round(5), axis=0)) == len(np.unique([tuple(row) for row in ids(split)], axis=0))


def ids(split: EncodedExamples) -> np.ndarray:
    rows = np.zeros((len(split), 12), dtype=int)
    for place in range(len(split)):
        row = split.columns["input_ids"][split.offsets[place] : split.offsets[place + 1]]
        rows[place, : len(row)] = row
    return rows


@pytest.mark.parametrize("training", [True, False])
def test_the_model_goes_back_to_the_mode_it_was_in(tmp_path: Path, training: bool) -> None:
    accelerator, _ = build_accelerator("no", 1, [], tmp_path, 1)
    model = tiny_bert(dropout=0.5).train(training)
    predict(accelerator, model, accelerator.prepare(loader(encoded(5), 2)), 5)
    assert all(module.training == training for module in model.modules())


def test_evaluation_leaves_gradients_and_weights_alone(tmp_path: Path) -> None:
    accelerator, _ = build_accelerator("no", 1, [], tmp_path, 1)
    model = tiny_bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict(accelerator, model, accelerator.prepare(loader(encoded(5), 2)), 5)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_scores_are_those_of_the_logits(tmp_path: Path) -> None:
    accelerator, _ = build_accelerator("no", 1, [], tmp_path, 1)
    split, model = encoded(17), tiny_bert()
    expected = plain_logits(model, split)
    found = evaluate(accelerator, model, accelerator.prepare(loader(split, 4)), split.labels, ("accuracy", "f1"))
    assert list(found.metrics) == ["accuracy", "f1", "loss"]
    assert found.metrics["accuracy"] == (expected.argmax(-1) == split.labels).mean()
    log_shares = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    assert found.metrics["loss"] == pytest.approx(-log_shares[np.arange(17), split.labels].mean(), abs=1e-6)
    assert np.array_equal(found.labels, split.labels)
    assert found.seconds > 0


def test_the_answers_of_regression_are_scores(tmp_path: Path) -> None:
    accelerator, _ = build_accelerator("no", 1, [], tmp_path, 1)
    split, model = encoded(17, kind=REGRESSION), tiny_bert(outputs=1)
    expected = plain_logits(model, split)[:, 0]
    names = ("pearson", "spearmanr")
    found = evaluate(accelerator, model, accelerator.prepare(loader(split, 4)), split.labels, names)
    assert list(found.metrics) == [*names, "loss"] and found.logits.shape == (17, 1)
    assert found.metrics["pearson"] == pytest.approx(np.corrcoef(expected, split.labels)[0, 1], abs=1e-5)
    assert found.metrics["loss"] == pytest.approx(((expected - split.labels) ** 2).mean(), rel=1e-5)
    hidden = np.full(17, np.nan, dtype=np.float32)
    assert evaluate(accelerator, model, accelerator.prepare(loader(split, 4)), hidden, names).metrics == {}


def test_the_answers_of_any_number_of_classes_are_decisions(tmp_path: Path) -> None:
    accelerator, _ = build_accelerator("no", 1, [], tmp_path, 1)
    split, model = encoded(17, kind=MULTI_LABEL), tiny_bert(outputs=3)
    probabilities = 1 / (1 + np.exp(-plain_logits(model, split)))
    names = METRICS_OF_OWN_DATA[MULTI_LABEL]
    found = evaluate(accelerator, model, accelerator.prepare(loader(split, 4)), split.labels, names)
    assert list(found.metrics) == [*names, "loss"] and found.labels.shape == (17, 3)
    answers, there = probabilities > 0.5, split.labels > 0
    assert found.metrics["micro_f1"] == pytest.approx(2 * (answers & there).sum() / (answers.sum() + there.sum()))
    assert found.metrics["subset_accuracy"] == pytest.approx((answers == there).all(axis=1).mean())
    given = np.where(there, probabilities, 1 - probabilities)
    assert found.metrics["loss"] == pytest.approx(-np.log(given).mean(), rel=1e-5)
    hidden = np.full((17, 3), -1)
    found = evaluate(accelerator, model, accelerator.prepare(loader(split, 4)), hidden, names)
    assert found.metrics == {} and found.logits.shape == (17, 3)


@pytest.mark.parametrize("expected", [4, 6])
def test_a_missing_or_repeated_example_is_an_error(tmp_path: Path, expected: int) -> None:
    accelerator, _ = build_accelerator("no", 1, [], tmp_path, 1)
    with pytest.raises(RuntimeError, match=f"saw 5 answers for {expected} examples"):
        predict(accelerator, tiny_bert(), accelerator.prepare(loader(encoded(5), 2)), expected)


@pytest.mark.launch
def test_two_processes_answer_each_example_once(tmp_path: Path) -> None:
    cases = [(examples, batch_size) for examples in SIZES for batch_size in (1, 4, 64)]
    words = [f"{examples},{batch_size}" for examples, batch_size in cases]
    run_in_two(Path(__file__).with_name("answers_of_two.py"), tmp_path, *words, cwd=tmp_path)
    for examples, batch_size in cases:
        expected = plain_logits(tiny_bert(), encoded(examples))
        for process in (0, 1):
            found = np.load(tmp_path / f"{examples}-{batch_size}-{process}.npy")
            np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=f"{examples} by {batch_size}")
