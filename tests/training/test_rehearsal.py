"""The measured updates are those of the run, and samples represent all of them."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from peftlib.errors import Interrupted, RunError
from peftlib.strategies.parameters import trained_state
from peftlib.training import loop, rehearsal
from peftlib.training.interruption import Interruption
from peftlib.training.loop import make_ready, train
from peftlib.training.rehearsal import SAMPLES, Timing, rehearse, spread
from tests.training.runs import make_run


class Clock:
    """A clock that only advances with work: one second per token."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        self.batches: list[tuple[int, bool]] = []
        monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: self.now)

    def work(self, run, inputs) -> None:
        tokens = int(inputs["attention_mask"].sum())
        self.now += tokens
        self.batches.append((tokens, run.model.training))


def watch(run, clock):
    """Advance the clock with every forward pass of the run."""
    forward = run.model.forward

    def watched(**inputs):
        clock.work(run, inputs)
        return forward(**inputs)

    run.model.forward = watched


@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_update_is_the_one_that_the_run_would_make(tmp_path, accumulation):
    real = make_run(tmp_path, accumulation=accumulation, max_steps=1, max_grad_norm=0.1)
    train(real)
    rehearsed = make_run(tmp_path, accumulation=accumulation, max_steps=1, max_grad_norm=0.1)
    make_ready(rehearsed)
    rehearsal._update(rehearsed, rehearsed.batches.windows(0)[0])
    expected = trained_state(real.model)
    for name, tensor in trained_state(rehearsed.model).items():
        assert torch.equal(tensor, expected[name]), name


def test_the_time_of_all_updates_is_estimated_from_some(tmp_path, monkeypatch):
    run, clock = make_run(tmp_path, examples=1203, accumulation=2), Clock(monkeypatch)
    watch(run, clock)
    monkeypatch.setattr(rehearsal, "_SECONDS", 1e9)
    seen = rehearse(run)
    tokens = int(run.batches.lengths.sum())
    assert seen.updates.windows == 3 * 12 < len(run.batches.windows(0)) / 4
    assert seen.updates.mean * len(run.batches.windows(0)) == pytest.approx(tokens, rel=0.03)
    assert all(mean * len(run.batches.windows(0)) == pytest.approx(tokens, rel=0.06) for mean in seen.updates.seconds)
    assert seen.evaluation_windows == 3
    assert seen.evaluation.mean * 3 == run.eval_loader.dataset.lengths.sum()


def test_slow_updates_are_few(tmp_path, monkeypatch):
    run, clock = make_run(tmp_path, examples=203), Clock(monkeypatch)
    watch(run, clock)
    monkeypatch.setattr(rehearsal, "_SECONDS", 400.0)  # an update of the longest examples takes 44
    seen = rehearse(run)
    assert seen.updates.windows == 9
    assert clock.now < 2.5 * 400
    monkeypatch.setattr(rehearsal, "_SECONDS", 1.0)
    assert rehearse(run).updates.windows == 3


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_longest_micro_batch_of_all_is_among_them_when_everything_is_there(tmp_path, monkeypatch, accumulation):
    run, clock = make_run(tmp_path, accumulation=accumulation), Clock(monkeypatch)
    moments: list[int] = []
    forward = run.model.forward

    def watched(**inputs):
        clock.work(run, inputs)
        moments.append(len(run.optimizer.state))
        return forward(**inputs)

    run.model.forward = watched
    rehearse(run)
    longest = int(np.sort(run.batches.lengths)[-4:].sum())
    with_moments = [batch for batch, held in zip(clock.batches, moments, strict=True) if held]
    assert (longest, True) in with_moments
    assert run.best_state.keys() == trained_state(run.model).keys()
    assert (int(np.sort(run.eval_loader.dataset.lengths)[-4:].sum()), False) in clock.batches


def test_what_is_left_of_a_run_is_what_is_sampled(tmp_path, monkeypatch):
    run = make_run(tmp_path, examples=40, max_steps=5)
    run.progress.step = run.progress.window = 3
    made: list[tuple[int, ...]] = []
    monkeypatch.setattr(rehearsal, "_update", lambda training, window: made.append(tuple(window)))
    rehearse(run)
    assert set(made[3:]) == {tuple(window) for window in run.batches.windows(0)[3:5]}


@pytest.mark.parametrize(
    ("trains", "line"),
    [
        (True, "micro-batches of 4; lower --per_device_train_batch_size and raise --gradient_accumulation_steps"),
        (False, "evaluation batches of 4; use --per_device_eval_batch_size 2"),
    ],
)
def test_too_little_memory_is_one_line(tmp_path, trains, line):
    run = make_run(tmp_path)
    forward = run.model.forward

    def full(**inputs):
        if run.model.training == trains:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    run.model.forward = full
    with pytest.raises(RunError, match=f"^out of memory with {line}$"):
        rehearse(run)


def test_other_errors_are_not_mistaken_for_it(tmp_path, monkeypatch):
    run = make_run(tmp_path)

    def broken(accelerator, model, batch, smoothing):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loop, "train_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        rehearse(run)


def test_a_signal_ends_it(tmp_path):
    run = make_run(tmp_path)
    run.interruption = Interruption(run.accelerator)
    run.interruption.received.append(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped by SIGINT") as caught:
        rehearse(run)
    assert (caught.value.status, caught.value.by_hand) == (130, True)


@given(count=st.integers(1, 300), size=st.integers(1, 12), sample=st.sampled_from(range(SAMPLES)))
def test_a_sample_has_one_window_of_each_part(count, size, sample):
    size = min(size, count)
    chosen = spread([np.array([place]) for place in range(count)], size, sample)
    places = [int(window[0]) for window in chosen]
    assert all(number * count / size - 1 < place < (number + 1) * count / size for number, place in enumerate(places))
    assert len(places) == size and places == sorted(set(places))


def test_a_timing_s_mean():
    assert Timing((1.0, 2.0, 6.0), 30).mean == 3.0


class WithoutFp64(TorchDispatchMode):
    """Act like Apple's GPUs: no operator takes or returns fp64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        seen = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        assert all(tensor.dtype != torch.float64 for tensor in seen), func
        return result


def test_a_device_without_fp64_trains_and_rehearses(tmp_path):
    with WithoutFp64():
        train(make_run(tmp_path / "real", max_steps=2, max_grad_norm=0.1))
        run = make_run(tmp_path, max_steps=2)
        assert rehearse(run).peak_memory > 0
