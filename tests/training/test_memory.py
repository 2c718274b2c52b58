"""Out of memory at the start: smaller micro-batches, the same updates."""

from __future__ import annotations

import pytest
import torch

from peftlib.data.loading import batches_of
from peftlib.errors import RunError
from peftlib.strategies.parameters import trained_state
from peftlib.training.loop import train
from peftlib.training.memory import fit_batches, fit_evaluation_batch, fit_micro_batch
from tests.training.runs import make_run


class Reporter:
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.facts: dict[str, object] = {}

    def warn(self, line: str) -> None:
        self.warnings.append(line)

    def update(self, **facts: object) -> None:
        self.facts |= facts


def limited_run(folder, largest: int, mode: str = "any", **options):
    """Set up a run whose model runs out of memory above so many examples, in training or in evaluation."""
    run = make_run(folder, **options)
    forward = run.model.forward

    def limited(input_ids, **rest):
        if len(input_ids) > largest and mode in ("any", "training" if run.model.training else "evaluation"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(input_ids=input_ids, **rest)

    run.model.forward = limited
    return run


def test_the_micro_batch_is_halved_until_it_fits_and_the_result_stays(tmp_path):
    plain = make_run(tmp_path, micro=16, epochs=2)
    train(plain)
    limited, reporter = limited_run(tmp_path, 4, micro=16, epochs=2), Reporter()
    limited.watcher, log = reporter, limited.watcher
    fit_micro_batch(limited)
    limited.watcher = log
    assert (limited.batches.micro_batch_size, limited.batches.accumulation_steps) == (4, 4)
    assert limited.accelerator.gradient_accumulation_steps == 4
    assert limited.batches.window_size == plain.batches.window_size
    assert reporter.facts == {"micro_batch_size": 4, "gradient_accumulation_steps": 4}
    assert len(reporter.warnings) == 2 and "out of memory" in reporter.warnings[0]
    train(limited)
    expected = trained_state(plain.model)
    for name, tensor in trained_state(limited.model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_where_it_fits_nothing_changes_not_even_the_generators(tmp_path):
    run, reporter = make_run(tmp_path, micro=8, dropout=0.1), Reporter()
    run.watcher = reporter
    before = torch.get_rng_state()
    fit_micro_batch(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert not reporter.warnings
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert run.batches.micro_batch_size == 8


def test_a_single_example_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(RunError, match="single example"):
        fit_micro_batch(limited_run(tmp_path, 0, micro=4))


@pytest.mark.parametrize(("largest", "fitted"), [(9, 4), (3, 2), (1, 1)])
def test_the_batch_of_evaluations_is_halved_until_it_fits(tmp_path, largest, fitted):
    expected = make_run(tmp_path).evaluate(None)
    run, reporter = limited_run(tmp_path, largest, "evaluation", micro=8, dropout=0.1), Reporter()
    run.watcher = reporter
    before = torch.get_rng_state()
    fit_evaluation_batch(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert batches_of(run.eval_loader).micro_batch_size == fitted and run.batches.micro_batch_size == 8
    assert reporter.facts == {"eval_batch_size": fitted}
    assert [line.split(" (")[0] for line in reporter.warnings] == [
        f"out of memory: evaluation batches of {size}" for size in (2, 1) if size >= fitted
    ]
    torch.testing.assert_close(run.evaluate(None).logits, expected.logits)


@pytest.mark.parametrize("resumed", [True, False])
def test_a_checkpoint_s_micro_batch_stays(tmp_path, resumed):
    run = limited_run(tmp_path, 2, micro=8)
    fit_batches(run, keep_micro_batch=resumed)
    assert run.batches.micro_batch_size == (8 if resumed else 2)
    assert batches_of(run.eval_loader).micro_batch_size == 2


def test_a_single_example_that_cannot_be_evaluated_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"^out of memory with a single example; use a smaller --max_length or model"):
        fit_batches(limited_run(tmp_path, 0, "evaluation", micro=4), keep_micro_batch=False)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_other_errors_are_not_mistaken_for_it(tmp_path, mode):
    run = make_run(tmp_path, micro=4)

    def broken(**inputs):
        raise RuntimeError("shapes do not match")

    run.model.forward = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit_batches(run, keep_micro_batch=mode == "evaluation")


def test_memory_that_runs_out_later_is_one_line(tmp_path):
    """Another process on the device may need it by then."""
    run = make_run(tmp_path, micro=4, epochs=2)
    fit_micro_batch(run)
    forward = run.model.forward

    def limited(**inputs):
        if run.progress.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    run.model.forward = limited
    with pytest.raises(RunError, match=r"^out of memory with micro-batches of 4; lower --per_device_train_batch_size"):
        train(run)
    assert run.progress.step == 3
