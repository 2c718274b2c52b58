"""The gradient of an update does not depend on its split into micro-batches and processes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from peftlib.data.collation import Collator
from peftlib.data.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from peftlib.training.accumulation import weighted_loss
from peftlib.training.loop import train
from tests.launching import run_in_two
from tests.training.runs import ADALORA, KINDS, TOKENIZER, encoded, make_run, tiny_bert

EFFECTIVE_BATCH = 16
CUTS = [(16, 1), (8, 2), (4, 4), (2, 8), (1, 16)]

Gradients = list[dict[str, torch.Tensor]]


def gradients_of_run(
    folder: Path,
    examples: int,
    micro: int,
    accumulation: int,
    epochs: int = 1,
    kind: str = SINGLE_LABEL,
    adalora: bool = False,
    **loss: Any,
) -> Gradients:
    """Return the gradient of every update of a real run."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    run = make_run(
        folder,
        examples=examples,
        micro=micro,
        accumulation=accumulation,
        epochs=epochs,
        recorder=True,
        scores=[0.0] * epochs,
        kind=kind,
        **(ADALORA if adalora else {}),
        best_metric="accuracy",  # the name of the made-up scores
        **loss,
    )
    train(run)
    return run.optimizer.optimizer.seen


def gradients_of_whole_windows(
    examples: int,
    epochs: int = 1,
    kind: str = SINGLE_LABEL,
    class_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
) -> Gradients:
    """Compute the same without accelerate or micro-batches: one padded batch and torch's mean loss per window."""
    loss_of_classes = partial(torch.nn.functional.cross_entropy, label_smoothing=label_smoothing)
    if class_weights and not label_smoothing:
        loss_of_classes = partial(torch.nn.functional.cross_entropy, weight=torch.tensor(class_weights))
    elif class_weights:  # torch's would weigh the smoothed part of each class by that class
        loss_of_classes = partial(weighted_and_smoothed, torch.tensor(class_weights), label_smoothing)
    from peftlib.data.batching import Slot, WindowBatches

    split, model = encoded(examples, kind=kind), tiny_bert(outputs=KINDS[kind][1]).train()
    collate = Collator.for_tokenizer(TOKENIZER)
    batches = WindowBatches(split.lengths, EFFECTIVE_BATCH, seed=7)
    gradients = []
    for epoch in range(epochs):
        for window in batches.windows(epoch):
            batch = collate(split.__getitems__([Slot(int(index), 0.0) for index in window]))
            model.zero_grad()
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            labels = batch["labels"]
            if kind == REGRESSION:
                torch.nn.functional.mse_loss(logits[:, 0], labels).backward()
            elif kind == MULTI_LABEL:
                targets = labels * (1 - label_smoothing) + label_smoothing / 2
                torch.nn.functional.binary_cross_entropy_with_logits(logits, targets).backward()
            else:
                loss_of_classes(logits, labels).backward()
            gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    return gradients


def weighted_and_smoothed(
    weights: torch.Tensor, smoothing: float, logits: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the mean of the smoothed losses, weighted by the class of each example."""
    targets = torch.full_like(logits, smoothing / logits.shape[1])
    targets[torch.arange(len(labels)), labels] += 1 - smoothing
    losses = -(targets * logits.log_softmax(-1)).sum(-1)
    return (weights[labels] * losses).sum() / weights[labels].sum()


def assert_equal(found: Gradients, expected: Gradients) -> None:
    assert len(found) == len(expected)
    for number, (left, right) in enumerate(zip(found, expected, strict=True)):
        assert left.keys() == right.keys()
        for name, gradient in left.items():
            difference = (gradient - right[name]).abs().max().item()
            assert difference <= 1e-6, f"update {number}, {name}: {difference}"
        # If all gradients were tiny, they would compare equal whatever they are.
        assert max(gradient.abs().max().item() for gradient in right.values()) > 1e-3


@pytest.mark.parametrize(("micro", "accumulation"), CUTS)
def test_every_cut_of_the_effective_batch_gives_the_big_batches_gradient(
    tmp_path: Path, micro: int, accumulation: int
) -> None:
    # 37 = 2 × 16 + 5: the last window of each epoch is short, and the second epoch starts after one.
    found = gradients_of_run(tmp_path, 37, micro, accumulation, epochs=2)
    assert_equal(found, gradients_of_whole_windows(37, epochs=2))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples=st.integers(1, 40), cut=st.sampled_from(CUTS), kind=st.sampled_from(list(KINDS)))
def test_any_number_of_examples_and_any_cut(tmp_path: Path, examples: int, cut: tuple[int, int], kind: str) -> None:
    found = gradients_of_run(tmp_path, examples, *cut, kind=kind)
    assert_equal(found, gradients_of_whole_windows(examples, kind=kind))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    examples=st.integers(1, 40),
    cut=st.sampled_from(CUTS),
    class_weights=st.just(()) | st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_class_weights_and_label_smoothing_are_torch_s_for_any_cut(
    tmp_path: Path, examples: int, cut: tuple[int, int], class_weights: tuple[float, ...], label_smoothing: float
) -> None:
    loss = {"class_weights": class_weights, "label_smoothing": label_smoothing}
    assert_equal(gradients_of_run(tmp_path, examples, *cut, **loss), gradients_of_whole_windows(examples, **loss))


@pytest.mark.parametrize(("micro", "accumulation"), [(16, 1), (2, 8)])
def test_the_decisions_of_several_labels_are_smoothed_for_any_cut(
    tmp_path: Path, micro: int, accumulation: int
) -> None:
    found = gradients_of_run(tmp_path, 37, micro, accumulation, kind=MULTI_LABEL, label_smoothing=0.2)
    assert_equal(found, gradients_of_whole_windows(37, kind=MULTI_LABEL, label_smoothing=0.2))


def test_the_launchers_variable_does_not_change_the_accumulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    assert_equal(gradients_of_run(tmp_path, 37, 4, 4), gradients_of_whole_windows(37))


@given(weights=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
@settings(max_examples=30)
def test_the_loss_is_the_weighted_sum_of_cross_entropies(weights: list[float]) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(len(weights), 3), torch.randint(0, 3, (len(weights),))
    expected = sum(
        weight * -torch.log_softmax(row, -1)[label] for weight, row, label in zip(weights, logits, labels, strict=True)
    )
    torch.testing.assert_close(weighted_loss(logits, labels, torch.tensor(weights)), torch.as_tensor(expected))


@given(weights=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
@settings(max_examples=30)
def test_the_loss_of_scores_is_the_weighted_sum_of_squared_errors(weights: list[float]) -> None:
    torch.manual_seed(0)
    logits, scores = torch.randn(len(weights), 1), torch.rand(len(weights)) * 5
    expected = sum(weight * (x - y) ** 2 for weight, (x,), y in zip(weights, logits, scores, strict=True))
    torch.testing.assert_close(weighted_loss(logits, scores, torch.tensor(weights)), torch.as_tensor(expected))
    assert weighted_loss(logits.bfloat16(), scores, torch.tensor(weights)).dtype == torch.float32


def test_the_loss_of_half_precision_logits_is_computed_in_fp32() -> None:
    logits = torch.tensor([[100.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = weighted_loss(logits, torch.tensor([1]), torch.tensor([0.001]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.1)


@pytest.mark.launch
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    # examples, micro-batch, accumulation. 33 leaves one example for two processes: one gets a filler.
    cases: list[tuple[int, int, int, str, dict[str, Any]]] = [
        (37, 8, 1, "full", {}),
        (37, 4, 2, "full", {}),
        (37, 1, 8, "full", {}),
        (33, 4, 2, "full", {}),
        (3, 4, 2, "full", {}),
        (33, 2, 4, "full", {"class_weights": (1.0, 9.0)}),
        (37, 4, 2, "full", {"class_weights": (5.0, 0.5), "label_smoothing": 0.2}),
        (37, 4, 2, "graphs", {}),
        (33, 4, 2, "graphs", {}),
        (37, 4, 2, "adalora", {}),  # whose penalty is added once
    ]
    run_in_two(Path(__file__).with_name("gradients_of_two.py"), tmp_path, json.dumps(cases), cwd=tmp_path)
    for number_of_case, (examples, _, _, method, loss) in enumerate(cases):
        flat = load_file(tmp_path / f"{number_of_case}.safetensors")
        found: Gradients = []
        for key, gradient in flat.items():
            number, _, name = key.partition("/")
            while len(found) <= int(number):
                found.append({})
            found[int(number)][name] = gradient
        if method != "adalora":
            assert_equal(found, gradients_of_whole_windows(examples, **loss))
        else:
            assert_equal(found, gradients_of_run(tmp_path, 37, 16, 1, adalora=True))


@pytest.mark.parametrize("cut", [(8, 2), (1, 16)])
def test_what_a_method_adds_to_gradients_is_added_once_per_update(tmp_path: Path, cut: tuple[int, int]) -> None:
    whole = gradients_of_run(tmp_path, 37, 16, 1, adalora=True)
    assert_equal(gradients_of_run(tmp_path, 37, *cut, adalora=True), whole)
    # Nothing else reaches A in the first update, as the singular values are 0.
    assert all(gradient.abs().max() > 1e-4 for name, gradient in whole[0].items() if "lora_A" in name)
