"""Replayed steps compute the same as plain ones: the bookkeeping is tested anywhere, the graphs themselves on a GPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from peftlib.acceleration import accelerate_model, graphs
from peftlib.acceleration.graphs import Batch, GraphedStep, Recording, cloned, copy_batch, drops_layers
from peftlib.errors import RunError
from peftlib.strategies.parameters import trained_state
from peftlib.training import loop
from peftlib.training.accumulation import weighted_loss
from peftlib.training.loop import train, train_step
from tests.training.runs import make_run

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class PretendedGraphs(GraphedStep):
    """Replays by running the step again on the recorded tensors, as a graph would."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.recorded: list[torch.Size] = []

    def _record(self, batch: Batch) -> Recording:
        self.recorded.append(next(iter(batch.values())).shape)
        inputs, loss = cloned(batch), torch.empty(())
        for tensor in inputs.values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        return Recording(inputs, lambda: loss.copy_(self._into_fresh_gradients(inputs)), loss)


class WithSpare(nn.Module):
    """A model with a trained layer that is never used, one that only large batches use, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.spare, self.frozen = nn.Linear(3, 4), nn.Linear(2, 2), nn.Linear(4, 1)
        self.late = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)

    def step(self, batch: Batch) -> torch.Tensor:
        hidden = self.inner(batch["x"]).tanh()
        loss = self.frozen(self.late(hidden) if len(hidden) > 2 else hidden).square().mean()
        loss.backward()
        return loss.detach()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in trained]


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=6), st.sets(st.integers(1, 3))
)
def test_losses_and_gradients_are_those_of_plain_steps(windows: list[list[int]], ready: set[int]) -> None:
    plain, other = WithSpare(), WithSpare()
    trained = [parameter for parameter in other.parameters() if parameter.requires_grad]
    graphed = PretendedGraphs(other.step, trained, pytest.fail, lambda batch: len(batch["x"]) in ready)
    generator = torch.Generator().manual_seed(1)
    for window in windows:
        batches = [{"x": torch.randn(rows, 3, generator=generator)} for rows in window]
        losses = [plain.step(batch) for batch in batches]
        kept = [graphed(batch) for batch in batches]
        assert torch.equal(torch.stack(losses), torch.stack(kept)), "an earlier loss stays what it was"
        for left, right in zip(gradients(plain), gradients(other), strict=True):
            assert torch.equal(left, right)
        plain.zero_grad()
        other.zero_grad()
    # At first sight, once a batch of the kind has run; else at the second.
    seen, recorded = [], set()
    for rows in (rows for window in windows for rows in window):
        if seen and (rows in seen[1:] or (rows in ready and ready & set(seen))):
            recorded.add(rows)
        seen.append(rows)
    assert sorted(shape[0] for shape in graphed.recorded) == sorted(recorded)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("bart", {}, False),
        ("bart", {"encoder_layerdrop": 0.1}, True),
        ("opt", {"layerdrop": 0.1}, True),
        ("bert", {}, False),
    ],
)
def test_models_that_skip_layers_are_known(kind: str, options: dict[str, float], expected: bool) -> None:
    model = nn.Module()
    model.config = AutoConfig.for_model(kind, **options)
    assert drops_layers(model) == expected


def test_memory_that_recordings_keep_from_a_new_shape_is_said_in_one_line() -> None:
    model, most = WithSpare(), 2

    def step(batch: Batch) -> torch.Tensor:
        if len(batch["x"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model.step(batch)

    graphed = PretendedGraphs(step, model.parameters(), pytest.fail)
    graphed({"x": torch.ones(1, 3)})
    with pytest.raises(torch.OutOfMemoryError):  # nothing is recorded yet: graphs are not to blame
        graphed({"x": torch.ones(3, 3)})
    for _ in range(2):
        graphed({"x": torch.ones(2, 3)})
    with pytest.raises(RunError, match=r"out of memory: a CUDA graph keeps .*; use --cuda_graphs false"):
        graphed({"x": torch.ones(4, 3)})


@settings(max_examples=25)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=3), st.sampled_from([0.1, 1.0, 100.0]))
def test_gradients_are_clipped_as_torch_clips_them(sizes: list[int], most: float) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    ours, plain = ([nn.Parameter(torch.zeros(size)) for size in sizes] for _ in range(2))
    slopes = [torch.randn(size, generator=generator) for size in sizes]

    def step(batch: Batch) -> torch.Tensor:
        loss = sum((one * slope).sum() for one, slope in zip(ours, slopes, strict=True)) * batch["x"].sum()
        loss.backward()
        return loss.detach()

    graphed = PretendedGraphs(step, ours, pytest.fail)
    for _ in range(2):  # also when the tensor's last row has been used
        graphed({"x": torch.ones(1)})
        for one, slope in zip(plain, slopes, strict=True):
            one.grad = slope.clone()
        expected = nn.utils.clip_grad_norm_(plain, most)
        torch.testing.assert_close(graphed.clip(most), expected)
        for left, right in zip(ours, plain, strict=True):
            torch.testing.assert_close(left.grad, right.grad)
            left.grad = None


@pytest.mark.parametrize("together", [True, False])
def test_a_batch_in_one_piece_is_copied_as_one(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def batch(start: int) -> Batch:
        numbers = torch.arange(start, start + 6)
        parts = {"x": numbers[:4].view(2, 2), "y": numbers[4:]}
        return parts if together else {name: tensor.clone() for name, tensor in parts.items()}

    inputs, apart = cloned(batch(0)), torch._foreach_copy_
    copied: list[Any] = []
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *given: copied.append(given) or apart(*given))
    copy_batch(inputs, batch(7))
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {"x": [[7, 8], [9, 10]], "y": [11, 12]}
    assert (not copied) == together
    assert batch(0)["x"].tolist() == [[0, 1], [2, 3]], "the recorded tensors are its own"


def curves_of_both(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[Any], Any, Any]:
    """Train without and with graphs; return both runs' gradient norms and losses, and the latter's step and watcher."""
    found = []
    for graphed in (False, True):
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        run = make_run(folder / str(graphed), examples=32, micro=8, epochs=2, max_grad_norm=0.01, **options)
        watcher: Any = run.watcher
        step = partial(train_step, run.accelerator, run.model)
        pretended = PretendedGraphs(step, run.model.parameters(), watcher.warn, lambda _: True)
        if graphed:
            monkeypatch.setattr(loop, "choose_step", lambda _, pretended=pretended: pretended)
        train(run)
        found.append((watcher.of("train/grad_norm"), watcher.of("train/loss")))
    return found, pretended, watcher


def test_a_run_clips_the_gradients_of_its_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, pretended, watcher = curves_of_both(tmp_path, monkeypatch)
    assert pretended.recorded and "warning" not in watcher.facts
    assert all(norm > 0.1 for norm in found[0][0])
    for plain, ours in zip(*found, strict=True):
        assert ours == pytest.approx(plain, rel=1e-3)


def test_a_step_that_cannot_be_recorded_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_watched", lambda step, batch: (step(batch), "why"))
    found, pretended, watcher = curves_of_both(tmp_path, monkeypatch, accumulation=2)
    assert found[0] == found[1]
    assert not pretended.holds_gradients and not pretended.recorded
    assert watcher.facts["warning"] == "no CUDA graphs: this model's step waits for the device (why)"


def trained_weights(folder: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    graphs = options.pop("graphs")
    scaler = torch.amp.GradScaler("cuda") if options["precision"] == "fp16" else None
    run = make_run(folder, examples=61, micro=4, accumulation=3, epochs=4, dropout=0.1, scaler=scaler, **options)
    torch.manual_seed(3)
    run.cuda_graphs = graphs
    train(run)
    assert isinstance(run.step, GraphedStep) == graphs
    return trained_state(run.model), run.watcher.of("train/loss")  # type: ignore[attr-defined]


@gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["bitfit", "lora", "full"])
def test_a_run_with_graphs_is_the_run_without(tmp_path: Path, method: str, precision: str) -> None:
    weights, losses = trained_weights(tmp_path, method=method, precision=precision, graphs=True)
    plain, expected = trained_weights(tmp_path, method=method, precision=precision, graphs=False)
    assert losses == expected
    for name, values in weights.items():
        assert torch.equal(values, plain[name]), name


@gpu
@pytest.mark.parametrize(
    "kind", ["albert", "bert", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"]
)
def test_encoders_are_recorded_if_they_can_be(kind: str) -> None:
    size = {"vocab_size": 60, "num_labels": 2, "pad_token_id": 0}
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    if kind == "distilbert":
        small = {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **size, **small)).cuda().train()
    accelerate_model(model, torch.device("cuda"), "bf16")

    def step(batch: Batch) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = weighted_loss(logits, batch["labels"], batch["weight"])
        loss.backward()
        return loss.detach()

    said: list[str] = []
    graphed = GraphedStep(step, model.parameters(), said.append)
    tokens = torch.randint(1, 60, (4, 12), device="cuda")
    batch = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.tensor([0, 1, 1, 0], device="cuda"),
        "weight": torch.full((4,), 0.25, device="cuda"),
    }
    losses = [graphed(batch).item() for _ in range(5)]
    assert all(0 < loss < 5 for loss in losses)
    assert len(set(losses[2:])) == 3, "dropout differs from replay to replay"
    assert bool(said) == (kind == "mpnet"), "it copies a number to the device in every step"


@gpu
def test_a_step_that_waits_for_the_device_is_not_recorded() -> None:
    weight, said = nn.Parameter(torch.ones(2, device="cuda")), []

    def step(batch: Batch) -> torch.Tensor:
        loss = (weight * batch["x"]).sum() * batch["x"].sum().item()
        loss.backward()
        return loss.detach()

    graphed = GraphedStep(step, [weight], said.append)
    assert [graphed({"x": torch.ones(2, device="cuda")}).item() for _ in range(4)] == [4.0] * 4
    assert weight.grad is not None
    assert weight.grad.tolist() == [8.0, 8.0]
    assert len(said) == 1
    assert "waits for the device" in said[0]
