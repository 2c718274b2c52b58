"""A dry run counts what a real run does."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from peftlib.strategies.parameters import trained
from peftlib.tracking.reporter import Reporter
from peftlib.training import loop, preview
from peftlib.training.checkpointing import CheckpointKeeper
from peftlib.training.loop import train
from peftlib.training.preview import Left
from peftlib.training.rehearsal import Rehearsal, Timing
from tests.tracking.facts import made_arguments
from tests.training.runs import Log, make_run

HEAD = frozenset({"classifier.weight", "classifier.bias"})


class Counting(CheckpointKeeper):
    """Record after which updates a checkpoint would be written."""

    def __init__(self, folder, every) -> None:
        super().__init__(folder, every, None, {}, None)
        self.saved: list[int] = []

    def save(self, training) -> bool:
        self.saved.append(training.progress.step)
        return True


class Counter(Log):
    """Record at every update what is left."""

    def __init__(self, run) -> None:
        super().__init__()
        self._run = run
        self.left: dict[int, Left] = {}

    def advance(self, step: int) -> None:
        self.left[step] = Left.of(self._run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("preview")


@settings(max_examples=25)
@given(
    examples=st.integers(1, 40),
    micro=st.integers(1, 6),
    accumulation=st.integers(1, 3),
    epochs=st.integers(1, 3),
    max_steps=st.none() | st.integers(1, 30),
    eval_steps=st.none() | st.integers(1, 9),
    every=st.none() | st.just("epoch") | st.integers(1, 9).map(str),
)
def test_the_counts_are_those_of_the_run(folder, examples, micro, accumulation, epochs, max_steps, eval_steps, every):
    """At the start of a run, and after every update."""
    run = make_run(
        folder, examples=examples, micro=micro, accumulation=accumulation, epochs=epochs, max_steps=max_steps,
        eval_steps=eval_steps, logging_steps=100, scores=[0.5] * 1000,
    )  # fmt: skip
    run.keeper, run.watcher = Counting(folder, every), Counter(run)
    run.watcher.left[0] = Left.of(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", lambda accelerator, model, batch, smoothing: torch.zeros(()))
        progress = train(run)
    evaluated = [int(values["step"]) for values in progress.history]
    assert run.watcher.left.keys() == set(range(progress.step + 1))
    for step, left in run.watcher.left.items():
        assert left == Left(
            progress.step - step,
            sum(other > step for other in evaluated),
            sum(other > step for other in run.keeper.saved),
        )


def test_a_run_that_patience_has_ended_has_nothing_left(tmp_path):
    run = make_run(tmp_path, epochs=3)
    run.progress.stopped_early = True
    assert Left.of(run) == Left(0, 0, 0)


def previewed(tmp_path, monkeypatch, capsys, *words, **options) -> str:
    """Return what a dry run prints after its announcement if updates take 2 s and evaluation batches 0.5 s."""
    run = make_run(tmp_path, **options)
    seen = Rehearsal(Timing((1.5, 2.0, 2.5), 9), Timing((0.5, 0.5, 0.5), 6), 3, 1_234_000_000)
    monkeypatch.setattr(preview, "rehearse", lambda *given: seen)
    arguments = made_arguments("--dry_run", *words)
    run.keeper = CheckpointKeeper(tmp_path, arguments["checkpointing_steps"], None, {}, None)
    reporter = Reporter(run.accelerator, tmp_path, arguments, [])
    preview.preview(run, HEAD, reporter, arguments)
    return capsys.readouterr().out


def test_what_is_said(tmp_path, monkeypatch, capsys):
    words = ("--checkpointing_steps", "4", "--checkpoints_total_limit", "2", "--num_warmup_steps", "3")
    out = previewed(tmp_path, monkeypatch, capsys, *words, "--max_length", "11", method="bitfit", epochs=2)
    for line in (
        "updates: 20; 10 an epoch; warm-up over 3\n",
        "micro-batches: 1 of 4 examples per update and process\n",
        "evaluations: 2, and one of the state that is saved\n",
        "checkpoints: 5 of about 11.30 kB each, the newest 2 are kept\n",  # 16 bytes for each of 706 parameters
        "peak memory: 1.23 GB resident\n",
        "training: about 40 s (30 to 50)\n",
        "evaluation: about 4.5 s (4.5 to 4.5)\n",
        "together: about 44 s (34 to 54), start-up and checkpoints left out\n",
        "by: 3 samples, 9 updates and 6 evaluation batches in all",
    ):
        assert line in out
    assert re.search(r"training tokens: median \d+, longest 11\n", out)
    assert re.search(r"validation tokens: median \d+, longest 11\n", out)
    assert re.search(r"bert\.encoder\.layer\.\*\.attention\.self\.query\.bias +2 +32 +64\n", out)
    assert re.search(r"all, 66 of them in the head +\d+ +706\n", out)


def test_what_may_end_early_and_what_is_not_kept(tmp_path, monkeypatch, capsys):
    out = previewed(tmp_path, monkeypatch, capsys, epochs=2, patience=1)
    assert "updates: 20 at most; 10 an epoch" in out
    assert "evaluations: 2 at most, and" in out
    assert "checkpoints: none, see --checkpointing_steps\n" in out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.02, "0.0 s"), (9.94, "9.9 s"), (119, "119 s"), (150, "2.5 min"), (7200, "2.0 h")]
)
def test_a_time_is_told_in_a_unit_that_suits_it(seconds, text):
    assert preview._about([(Timing((seconds,), 1), 1)]).startswith(f"about {text} (")


@pytest.mark.parametrize("method", ["bitfit", "adalora"])
def test_a_checkpoint_is_as_large_as_it_says(tmp_path, method):
    """AdaLoRA's has two running averages per trained parameter besides."""
    run = make_run(tmp_path, method=method, epochs=4)
    run.keeper = CheckpointKeeper(tmp_path, "1000", None, {}, SimpleNamespace(tracker_ids={}))
    said = preview._checkpoint_bytes(run, sum(parameter.numel() for _, parameter in trained(run.model)))
    train(run)  # a checkpoint is written at the end
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    tensors = [path for path in checkpoint.glob("*.safetensors") if path.name != "random.safetensors"]
    written = sum(tensor.nbytes for path in tensors for tensor in load_file(path).values())
    assert said <= written <= said + 2000  # the optimizer's counters of updates
