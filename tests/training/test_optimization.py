"""AdamW's parameter groups and the shapes of the schedules."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import get_scheduler

from peftlib.strategies.full import Full
from peftlib.strategies.lora import LoRA
from peftlib.training.optimization import build_optimizer, build_scheduler, warmup_steps
from tests.training.runs import tiny_bert


def decayed(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}


def test_full_fine_tuning_decays_matrices_but_no_biases_and_no_norms() -> None:
    model = Full().apply(tiny_bert(), frozenset())
    optimizer = build_optimizer(model, 1e-3, weight_decay=0.1)
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() == 2}
    assert decayed(model, optimizer) == matrices
    assert all(
        "LayerNorm" in name or name.endswith(".bias") for name in dict(model.named_parameters()).keys() - matrices
    )


def test_dora_s_magnitudes_are_not_decayed() -> None:
    """Each is the norm of a column, which decay would pull to zero; in PEFT they are one-dimensional."""
    model = LoRA(use_dora=True).apply(tiny_bert(), frozenset({"classifier.weight", "classifier.bias"}))
    optimizer = build_optimizer(model, 1e-3, weight_decay=0.1)
    assert any("magnitude" in name for name, _ in model.named_parameters())
    assert {name.split(".")[-3] for name in decayed(model, optimizer)} == {"lora_A", "lora_B", "modules_to_save"}


def test_decay_shrinks_a_matrix_without_a_gradient_and_leaves_its_bias() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    start = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = build_optimizer(layer, 0.5, weight_decay=0.1)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer[0].weight.detach(), start["0.weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(layer[0].bias, start["0.bias"])


def test_the_optimizer_holds_exactly_what_trains() -> None:
    model = tiny_bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("query" in name)
    optimizer = build_optimizer(model, 2e-3, weight_decay=0.0)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == 4
    assert set(held) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {group["lr"] for group in optimizer.param_groups} == {2e-3}


def test_half_precision_masters_are_refused_before_there_is_an_optimizer() -> None:
    with pytest.raises(TypeError, match=r"must be fp32, these are not: .*float16"):
        build_optimizer(nn.Linear(2, 2).half(), 1e-3, 0.0)


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


@pytest.mark.parametrize("scaled", [False, True])
@given(updates=st.lists(st.tuples(st.sets(st.integers(0, 5)), st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_updates_are_those_of_torchs_fused_adamw(scaled: bool, updates: list[tuple[set[int], bool, bool]]) -> None:
    """Whichever parameters lack a gradient, updates overflow, and points the state is saved and loaded at."""
    models = layers(), layers()
    ours = build_optimizer(models[0], 1e-2, 0.1, torch.device("cpu"))
    groups = build_optimizer(models[1], 1e-2, 0.1).param_groups
    theirs = torch.optim.AdamW(
        [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups], lr=1e-2, fused=True
    )
    assert type(ours) is not type(theirs)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scaled) for _ in models]
    generator = torch.Generator().manual_seed(1)
    for number, (missing, overflows, reloads) in enumerate(updates):
        for place, pair in enumerate(zip(models[0].parameters(), models[1].parameters(), strict=True)):
            gradient = torch.randn(pair[0].shape, generator=generator) * 8
            if scaled and overflows:
                gradient[0] = math.inf
            for parameter in pair:
                parameter.grad = None if place in missing and len(missing) < 6 else gradient.clone()
        for optimizer, scaler in zip((ours, theirs), scalers, strict=True):
            optimizer.param_groups[0]["lr"] = 1e-2 / (number + 1)
            scaler.scale(torch.ones(()))  # the scaler creates its scale at the first use
            if scaled and number % 2:
                scaler.unscale_(optimizer)  # as clipping would
            scaler.step(optimizer)
            scaler.update()
            if reloads:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(left, right)
        assert ours.state[left].keys() == theirs.state[right].keys()
        for name, value in ours.state[left].items():
            assert torch.equal(value, theirs.state[right][name]), name


def rates(name: str, steps: int, warmup: int | None, warmup_ratio: float) -> list[float]:
    """Return the rate at every update and after the last one; the peak is 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, name, steps, warmup, warmup_ratio)
    found = [scheduler.get_last_lr()[0]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    return found


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup"])
@given(st.integers(1, 60), st.none() | st.integers(0, 80), st.floats(0, 1))
def test_the_warm_up_is_how_long_the_rate_rises(name: str, steps: int, warmup: int | None, ratio: float) -> None:
    found = rates(name, steps, warmup, ratio)[:steps]
    rising = len(list(itertools.takewhile(lambda rate: rate < 1.0, found)))
    assert warmup_steps(name, steps, warmup, ratio) == rising


@given(st.integers(1, 200), st.none() | st.integers(0, 300), st.floats(0, 1))
def test_a_linear_schedule_rises_then_falls_to_zero(steps: int, warmup: int | None, ratio: float) -> None:
    rising = min(steps, warmup) if warmup is not None else math.ceil(steps * ratio) if steps * ratio >= 1 else 0
    found = rates("linear", steps, warmup, ratio)
    assert all(before < after for before, after in itertools.pairwise(found[: min(rising + 1, steps)]))
    if rising < steps:
        assert found[rising] == 1.0
    falling = found[rising:]
    assert falling == sorted(falling, reverse=True)
    assert found[-1] == 0.0
    assert 0 <= min(found) <= max(found) <= 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [0.0, 0.5, 1.0, 0.5, 0.0]),
        ("cosine", [0.0, 0.5, 1.0, 0.5, 0.0]),
        ("constant_with_warmup", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_shapes(name: str, expected: list[float]) -> None:
    assert rates(name, 4, 2, 0.0) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup"])
@given(steps=st.integers(1, 100), warmup=st.integers(0, 120))
def test_the_rates_are_those_of_transformers(name: str, steps: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=min(warmup, steps), num_training_steps=steps)
    expected = [theirs.lr_lambdas[0](step) for step in range(steps + 1)]
    assert rates(name, steps, warmup, 0.0) == pytest.approx(expected, abs=1e-12)


def test_given_warm_up_steps_win_over_the_ratio() -> None:
    assert rates("linear", 4, 0, 0.5) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates("linear", 4, None, 0.5) == [0.0, 0.5, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup"])
def test_a_short_run_has_no_update_at_a_rate_of_zero(name: str) -> None:
    """A warm-up rounded up to one update would waste it at rate 0, and the state after it might be the best."""
    assert rates(name, 1, None, 0.06)[0] == 1.0
    assert rates(name, 16, None, 0.06)[0] == 1.0
    assert rates(name, 17, None, 0.06)[:3] == pytest.approx([0.0, 0.5, 1.0])
