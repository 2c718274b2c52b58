"""A resumed run equals an uninterrupted one, whatever was killed, damaged or full."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from peftlib.data.tasks import MULTI_LABEL, REGRESSION
from peftlib.errors import Interrupted, RunError, UserError
from peftlib.strategies import STRATEGIES
from peftlib.strategies.parameters import trained_state
from peftlib.tracking.folder import choose_output_dir
from peftlib.training import checkpointing, manifest, milestones, state
from peftlib.training.checkpointing import CheckpointKeeper, _with_nan, restore
from peftlib.training.interruption import Interruption
from peftlib.training.loop import train
from peftlib.training.manifest import (
    checkpoints,
    digest,
    find_checkpoint,
    identity_of,
    matching_manifest,
    sha256,
    verify,
)
from peftlib.training.milestones import score_best
from peftlib.training.state import Training
from tests.tracking.facts import made_arguments, made_facts
from tests.training.runs import make_run

IDENTITY = {
    "arguments": {
        "seed": 1,
        "num_train_epochs": 2,
        "max_train_steps": None,
        "logging_steps": 1,
        "method": "bitfit",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    },
    "data": {"train": {"fingerprint": "a"}, "validation": {"fingerprint": "b"}},
    "problem_type": "single_label_classification",
    "labels": ["no", "yes"],
    "metric": "accuracy",
    "weights": "c",
    "configuration": "d",
    "processes": 1,
    "precision": "no",
    "device": "cpu",
}


class Reporter:
    """The part of the real one that a keeper needs."""

    def __init__(self) -> None:
        self.tracker_ids = {"wandb": "abc"}
        self.warnings: list[str] = []

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def small_run(folder: Path, *, every: str | None = None, limit: int | None = None, **options) -> Training:
    """Set up a run of 10 windows per epoch (the last one short), by default of 2 micro-batches each, with dropout."""
    options = {"method": "bitfit", "epochs": 2, "micro": 2, "accumulation": 2, **options}
    run = make_run(folder, dropout=0.1, logging_steps=3, **options)
    run.keeper = CheckpointKeeper(folder, every, limit, IDENTITY, Reporter())
    return run


class Stop(Interruption):
    """An interruption after the n-th micro-batch of a run, or at the n-th poll during its evaluations.

    An evaluation of three batches polls twice.
    """

    def __init__(self, run: Training, micro_batch: int | None = None, question: int | None = None) -> None:
        super().__init__(run.accelerator)
        self._run, self._wanted, self._polls = run, (question, micro_batch), [0, 0]

    def requested(self) -> signal.Signals | None:
        trains = self._run.model.training
        self._polls[trains] += 1
        return signal.SIGTERM if self._polls[trains] == self._wanted[trains] else None


def weights(run: Training) -> dict[str, torch.Tensor]:
    return trained_state(run.model)


def curve(run: Training) -> dict[int, tuple[float, float]]:
    return {step: (values["train/loss"], values["train/learning_rate"]) for step, values in run.watcher.lines}


def logged(run: Training) -> dict[int, dict[str, float]]:
    """Return the values for `metrics.jsonl`, without the times."""
    times = {"train/samples_per_second"}
    return {step: {name: values[name] for name in values.keys() - times} for step, values in run.watcher.lines}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("uninterrupted"))


def whole_run(folder: Path, **options) -> SimpleNamespace:
    run = small_run(folder, **options)
    train(run)
    return ended(run)


def ended(run: Training) -> SimpleNamespace:
    return SimpleNamespace(
        weights=weights(run), curve=curve(run), logged=logged(run), best=run.best_state, progress=run.progress
    )


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 7, 18, 19, 20, 21, 30, 36, 38])
def test_resumed_equals_uninterrupted_wherever_it_stopped(tmp_path, uninterrupted, micro_batch):
    assert_resumes(tmp_path, uninterrupted, micro_batch)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", [name for name in STRATEGIES if name != "bitfit"])
def test_resumed_equals_uninterrupted_for_every_method_and_precision(tmp_path, method, precision):
    options = {"method": method, "precision": precision}
    assert_resumes(tmp_path / "parts", whole_run(tmp_path / "whole", **options), 21, **options)


@pytest.mark.parametrize("micro_batch", [1, 9, 15, 30])
def test_resumed_equals_uninterrupted_whatever_a_method_s_hook_has_done(tmp_path, micro_batch):
    """AdaLoRA's, before ranks fall, twice while they do, and after."""
    options = {"method": "adalora", "max_grad_norm": 1.0}
    uninterrupted = whole_run(tmp_path / "whole", **options)
    assert_resumes(tmp_path / "parts", uninterrupted, micro_batch, **options)
    assert any(name.endswith("lora_E.default") and not tensor.all() for name, tensor in uninterrupted.weights.items())


@pytest.mark.parametrize("micro_batch", [1, 9, 10, 11, 20])
def test_resumed_equals_uninterrupted_without_accumulation(tmp_path, micro_batch):
    """No signal can arrive inside a window then: the generators are captured when it arrives."""
    options = {"micro": 4, "accumulation": 1}
    assert_resumes(tmp_path / "parts", whole_run(tmp_path / "whole", **options), micro_batch, **options)


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_resumed_equals_uninterrupted_whatever_is_answered(tmp_path, kind):
    assert_resumes(tmp_path, whole_run(tmp_path / "whole", kind=kind), 27, kind=kind)


def test_resumed_equals_uninterrupted_with_class_weights_and_label_smoothing(tmp_path):
    options = {"class_weights": (1.0, 9.0), "label_smoothing": 0.1}
    assert_resumes(tmp_path, whole_run(tmp_path / "whole", **options), 21, **options)


def test_resumed_equals_uninterrupted_in_bf16(tmp_path):
    assert_resumes(tmp_path / "parts", whole_run(tmp_path / "whole", precision="bf16"), 21, precision="bf16")


def assert_resumes(folder: Path, uninterrupted: SimpleNamespace, micro_batch: int, **options) -> None:
    """Assert that a run stopped after this many micro-batches and resumed is bit-equal to the uninterrupted one."""
    first = small_run(folder, **options)
    first.interruption = Stop(first, micro_batch)
    with pytest.raises(Interrupted) as stop:
        train(first)
    assert stop.value.status == 143
    assert_ends_alike(first, small_run(folder, **options), uninterrupted)


def assert_ends_alike(first: Training, second: Training, uninterrupted: SimpleNamespace) -> None:
    """Resume from the checkpoint of `first`, which has ended, and assert that the end is the same."""
    torch.manual_seed(999)  # a new process has other generator states
    restore(second, find_checkpoint("auto", second.keeper.folder.parent, print))
    train(second)
    assert_same(weights(second), uninterrupted.weights)
    assert_same(second.best_state, uninterrupted.best)
    assert curve(first) | curve(second) == uninterrupted.curve
    assert second.progress.loss_sum == uninterrupted.progress.loss_sum
    assert second.progress.examples == uninterrupted.progress.examples
    assert second.progress.best == uninterrupted.progress.best
    assert second.progress.history == uninterrupted.progress.history
    assert second.progress.stopped_early == uninterrupted.progress.stopped_early
    assert logged(first) | logged(second) == uninterrupted.logged


def test_stopping_again_and_again_changes_nothing(tmp_path, uninterrupted):
    for _ in range(40):
        run = small_run(tmp_path)
        found = find_checkpoint("auto", tmp_path, lambda line: None)
        if found is not None:
            restore(run, found)
        run.interruption = Stop(run, 3)
        try:
            train(run)
        except Interrupted:
            continue
        break
    assert_same(weights(run), uninterrupted.weights)


def test_checkpoints_do_not_change_the_run(tmp_path, uninterrupted):
    run = small_run(tmp_path, every="1")
    train(run)
    assert_same(weights(run), uninterrupted.weights)
    assert curve(run) == uninterrupted.curve
    assert len(checkpoints(tmp_path / "checkpoints")) == 20


def test_epoch_checkpoints_come_at_the_end_of_epochs(tmp_path):
    train(small_run(tmp_path, every="epoch"))
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000020", "step_00000010"]


def test_only_safetensors_and_json_are_written(tmp_path):
    train(small_run(tmp_path, every="epoch"))
    names = {path.suffix for path in checkpoints(tmp_path / "checkpoints")[0].iterdir()}
    assert names == {".safetensors", ".json"}


def test_old_ones_are_removed_only_after_the_new_one_is_in_place(tmp_path, monkeypatch):
    remove, seen = shutil.rmtree, []

    def watched(path, **options):
        newest = checkpoints(tmp_path / "checkpoints")[0]
        verify(newest)
        seen.append((newest.name, Path(path).name))
        remove(path, **options)

    monkeypatch.setattr(checkpointing.shutil, "rmtree", watched)
    train(small_run(tmp_path, every="5", limit=2))
    assert seen == [("step_00000015", "step_00000005"), ("step_00000020", "step_00000010")]


def test_a_damaged_newer_one_does_not_push_out_a_whole_one(tmp_path):
    train(small_run(tmp_path, every="5"))
    newest = checkpoints(tmp_path / "checkpoints")[0]
    (newest / "state.json").unlink()
    again = small_run(tmp_path, every="5", limit=1)
    restore(again, tmp_path / "checkpoints" / "step_00000010")
    again.interruption = Stop(again, 11)  # after step 15
    with pytest.raises(Interrupted):
        train(again)
    assert find_checkpoint("auto", tmp_path, lambda line: None).name == "step_00000015"


# ── In the middle of an evaluation ───────────────────────────────────────────────────────────────────────────────


def often_evaluated(folder: Path, every: str | None = None, scores: dict[int, float] | None = None) -> Training:
    """Set up a run with evaluations of three batches after updates 4, 8, 12, 16 and 20; `scores` replace their scores.

    Gradients are clipped, so that their norm is logged.
    """
    run = small_run(folder, every=every, eval_steps=4, patience=2 if scores else 0, max_grad_norm=1.0)
    if scores is not None:
        evaluate = run.evaluate

        def scored(between):
            found = evaluate(between)
            return dataclasses.replace(found, metrics=found.metrics | {"accuracy": scores[run.progress.step]})

        run.evaluate = scored
    return run


#: Patience runs out after update 12.
SCRIPT = {4: 0.5, 8: 0.25, 12: 0.25}


@pytest.fixture(scope="module", params=[None, SCRIPT], ids=["to the end", "stopped early"])
def evaluated(request, tmp_path_factory):
    run = often_evaluated(tmp_path_factory.mktemp("evaluated"), scores=request.param)
    train(run)
    assert run.progress.stopped_early == (request.param is not None)
    return SimpleNamespace(script=request.param, run=ended(run))


@pytest.mark.parametrize("every", [None, "4"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_stopped_in_an_evaluation_resumed_equals_uninterrupted(tmp_path, evaluated, place, every):
    last = 2 * len(evaluated.run.progress.history)
    question = {"first": 1, "middle": 4, "last": last}[place]
    step = (question + 1) // 2 * 4
    first = often_evaluated(tmp_path, every, evaluated.script)
    first.interruption = Stop(first, question=question)
    with pytest.raises(Interrupted, match=f"after step {step}; continue with the same flags and --output_dir"):
        train(first)
    assert first.model.training, "as it was before the evaluation"
    assert checkpoints(tmp_path / "checkpoints")[0].name == f"step_{step:08d}"
    assert step not in logged(first), "an update is logged once, with its scores"
    assert_ends_alike(first, often_evaluated(tmp_path, every, evaluated.script), evaluated.run)


def test_stopped_in_every_evaluation_twice_changes_nothing(tmp_path, evaluated):
    """The second time, it is the evaluation that a checkpoint records as due."""
    lines: dict[int, dict[str, float]] = {}
    for life in range(1, 20):
        run = often_evaluated(tmp_path, scores=evaluated.script)
        if life > 1:
            restore(run, find_checkpoint("auto", tmp_path, print))
        run.interruption = Stop(run, question=1 if life % 2 else 3)
        try:
            train(run)
        except Interrupted:
            lines |= logged(run)
            continue
        break
    assert life > 3
    assert_same(weights(run), evaluated.run.weights)
    assert lines | logged(run) == evaluated.run.logged


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the run catches it."""


@pytest.mark.parametrize("evaluation", [1, 2, 3])
def test_a_due_checkpoint_is_there_before_its_evaluation_begins(tmp_path, evaluated, evaluation):
    first, count = often_evaluated(tmp_path, "4", evaluated.script), iter(range(1, 9))
    evaluate = first.evaluate

    def killed(between):
        if next(count) == evaluation:
            raise Killed
        return evaluate(between)

    first.evaluate = killed
    with pytest.raises(Killed):
        train(first)
    assert checkpoints(tmp_path / "checkpoints")[0].name == f"step_{4 * evaluation:08d}"
    assert_ends_alike(first, often_evaluated(tmp_path, "4", evaluated.script), evaluated.run)


def test_time_in_an_evaluation_that_is_stopped_or_made_again_is_no_training(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(state, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class SlowStop(Stop):
        def requested(self):
            now[0] += 0.0 if self._run.model.training else 3600.0
            return super().requested()

    def kept_seconds():
        kept = json.loads((checkpoints(tmp_path / "checkpoints")[0] / "state.json").read_text())
        return kept["progress"]["step"], kept["progress"]["train_seconds"], kept["recent"]["seconds"]

    first, second = often_evaluated(tmp_path), often_evaluated(tmp_path)
    first.interruption = SlowStop(first, question=1)
    with pytest.raises(Interrupted):
        train(first)
    assert now[0] == 3600.0 and kept_seconds() == (4, 0.0, 0.0)
    restore(second, find_checkpoint("auto", tmp_path, print))
    second.interruption = SlowStop(second, question=11)  # while the saved state is scored
    train(second)
    with pytest.raises(Interrupted):
        score_best(second)
    assert now[0] == 12 * 3600.0 and kept_seconds() == (20, 0.0, 0.0)


@pytest.mark.parametrize("every", [None, "epoch"])
def test_stopped_while_the_saved_state_is_scored_nothing_is_lost(tmp_path, evaluated, every):
    """The model then holds the best state, while the checkpoint must hold the last one."""
    whole = often_evaluated(tmp_path / "whole", every, evaluated.script)
    train(whole)
    last, expected = weights(whole), score_best(whole)
    assert whole.progress.best["step"] != whole.progress.step
    first = often_evaluated(tmp_path, every, evaluated.script)
    train(first)
    first.interruption = Stop(first, question=2)
    with pytest.raises(Interrupted):
        score_best(first)
    second = often_evaluated(tmp_path, every, evaluated.script)
    restore(second, find_checkpoint("auto", tmp_path, print))
    train(second)
    assert second.watcher.steps == [], "no update is left"
    assert_same(weights(second), last)
    found = score_best(second)
    assert found.logits.tobytes() == expected.logits.tobytes() and found.metrics == expected.metrics


def test_a_best_state_whose_loss_is_no_number_is_not_saved(tmp_path):
    run = small_run(tmp_path, epochs=1)
    train(run)
    with torch.no_grad():
        for tensor in run.best_state.values():
            tensor.fill_(math.nan)
    with pytest.raises(RunError, match=r"loss of the best state, at step \d+, is nan; try a smaller --learning_rate"):
        score_best(run)


def test_the_last_state_is_copied_only_where_the_best_is_another(tmp_path, monkeypatch):
    run = small_run(tmp_path, epochs=1)
    train(run)
    last = weights(run)
    monkeypatch.setattr(milestones, "trained_state", None)
    run.interruption = Stop(run, question=1)
    with pytest.raises(Interrupted):
        score_best(run)
    again = small_run(tmp_path, epochs=1)
    restore(again, find_checkpoint("auto", tmp_path, print))
    assert_same(weights(again), last)


def test_a_checkpoint_of_before_resumes(tmp_path, uninterrupted):
    """Format 3 does not record evaluations that are due."""
    first = small_run(tmp_path)
    first.interruption = Stop(first, 21)
    with pytest.raises(Interrupted):
        train(first)
    (checkpoint,) = checkpoints(tmp_path / "checkpoints")
    kept = json.loads((checkpoint / "state.json").read_text())
    assert kept.pop("due") is None
    (checkpoint / "state.json").write_text(json.dumps(kept))
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    rewrite_manifest(checkpoint, format=3, files=files | {"state.json": sha256(checkpoint / "state.json")})
    assert_ends_alike(first, small_run(tmp_path), uninterrupted)


def test_an_evaluation_without_memory_leaves_a_checkpoint_and_one_line(tmp_path, evaluated):
    first = often_evaluated(tmp_path, scores=evaluated.script)
    forward = first.model.forward

    def limited(input_ids, **rest):
        if len(input_ids) > 2 and not first.model.training and first.progress.step > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(input_ids=input_ids, **rest)

    first.model.forward = limited
    line = (
        r"^out of memory with evaluation batches of 4; use --per_device_eval_batch_size 2; "
        r"continue with the same flags and --output_dir "
    )
    with pytest.raises(RunError, match=line):
        train(first)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000008"]
    first.model.forward = forward
    assert_ends_alike(first, often_evaluated(tmp_path, scores=evaluated.script), evaluated.run)


# ── Damage ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two_checkpoints(tmp_path) -> Path:
    train(small_run(tmp_path, every="10"))
    return tmp_path


FILES = ["manifest.json", "state.json", "trained.safetensors", "best.safetensors", "optimizer.safetensors",
         "random.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "bit", "missing", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_named(two_checkpoints, name, damage):
    newest, previous = checkpoints(two_checkpoints / "checkpoints")
    path = newest / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    said: list[str] = []
    found = find_checkpoint("auto", two_checkpoints, said.append)
    assert found == previous
    assert len(said) == 1 and str(newest) in said[0] and name in said[0]


def test_auto_starts_afresh_when_nothing_is_whole(tmp_path):
    said: list[str] = []
    assert find_checkpoint("auto", tmp_path, said.append) is None
    assert "starting from scratch" in said[0]


def test_a_named_checkpoint_has_to_be_whole(two_checkpoints, tmp_path):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    assert find_checkpoint(str(newest), tmp_path, print) == newest
    assert find_checkpoint(str(two_checkpoints), tmp_path / "elsewhere", print) == newest
    (newest / "state.json").unlink()
    with pytest.raises(UserError, match=r"state\.json is missing"):
        find_checkpoint(str(newest), tmp_path, print)
    with pytest.raises(UserError, match="no such folder"):
        find_checkpoint(str(tmp_path / "nothing"), tmp_path, print)


def test_one_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(two_checkpoints, monkeypatch):
    """Otherwise a brief failure of a network disk would make a run resume from an older one, or start afresh."""
    read = Path.open

    def failing(self, *arguments, **options):
        if self.name == "state.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(UserError, match=r"cannot be read \(Input/output error\); try again"):
        find_checkpoint("auto", two_checkpoints, print)


def test_one_of_another_format_is_not_taken_for_a_damaged_one(two_checkpoints):
    rewrite_manifest(checkpoints(two_checkpoints / "checkpoints")[0], format=99)
    with pytest.raises(UserError, match="format 99"):
        find_checkpoint("auto", two_checkpoints, print)


def test_an_older_one_is_not_gone_on_from_beside_newer_ones(two_checkpoints):
    """`auto` would later resume from the newer ones, which have a different history."""
    newest, previous = checkpoints(two_checkpoints / "checkpoints")
    with pytest.raises(UserError, match="has newer checkpoints"):
        find_checkpoint(str(previous), two_checkpoints, print)
    assert find_checkpoint(str(previous), two_checkpoints / "branch", print) == previous
    (newest / "state.json").unlink()
    assert find_checkpoint(str(previous), two_checkpoints, print) == previous


def test_what_is_newer_is_read_and_nothing_else(two_checkpoints, monkeypatch):
    """Checksums of all checkpoints of a large model take minutes."""
    read = []
    monkeypatch.setattr(manifest, "verify", lambda path, **options: read.append(path.name) or verify(path, **options))
    newest, previous = checkpoints(two_checkpoints / "checkpoints")
    find_checkpoint(str(newest), two_checkpoints, print)
    assert read == [newest.name]
    with pytest.raises(UserError, match="has newer checkpoints"):
        find_checkpoint(str(previous), two_checkpoints, print)
    assert read == [newest.name, previous.name, newest.name]


def test_a_run_is_no_checkpoint_whatever_its_folder_is_called(two_checkpoints):
    run = two_checkpoints.rename(two_checkpoints.parent / "step_by_step")
    assert find_checkpoint(str(run), run / "other", print) == checkpoints(run / "checkpoints")[0]


def test_a_checkpoint_may_be_given_another_name(two_checkpoints):
    """One of the name of its step is written once more: `auto` does not find the other."""
    kept = checkpoints(two_checkpoints / "checkpoints")[0].rename(two_checkpoints / "checkpoints" / "before-the-merge")
    assert find_checkpoint(str(kept), two_checkpoints, print) == kept
    run = small_run(two_checkpoints, every="10")
    restore(run, kept)
    assert run.keeper.save(run)
    assert [path.name for path in checkpoints(two_checkpoints / "checkpoints")] == ["step_00000020", "step_00000010"]


def rewrite_manifest(checkpoint: Path, **changes) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text()) | changes
    del manifest["sha256"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest(manifest)}))


def test_a_manifest_cannot_point_out_of_its_folder(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    rewrite_manifest(newest, files={"../../run.json": "0"})
    with pytest.raises(ValueError, match="in another folder"):
        verify(newest)


# ── Another run ──────────────────────────────────────────────────────────────────────────────────────────────────


def changed(**arguments):
    return {**IDENTITY, "arguments": {**IDENTITY["arguments"], **arguments}}


def test_another_run_is_refused_with_the_differences(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    assert matching_manifest(newest, IDENTITY, extend=False, folder=two_checkpoints)["step"] == 20
    # The data are told apart by their fingerprint: flags for them are newer than some checkpoints.
    assert matching_manifest(newest, changed(do_regression=False), extend=False, folder=two_checkpoints)["step"] == 20
    with pytest.raises(UserError, match="--method was bitfit, is lora; --seed was 1, is 2"):
        matching_manifest(newest, changed(seed=2, method="lora"), extend=False, folder=two_checkpoints)
    with pytest.raises(UserError, match="the train data have changed"):
        matching_manifest(
            newest, {**IDENTITY, "data": {"train": {"fingerprint": "x"}}}, extend=False, folder=two_checkpoints
        )
    elsewhere = changed(model_name_or_path="/models/copy", model_revision="v2", trust_remote_code=True)
    assert matching_manifest(newest, elsewhere, extend=False, folder=two_checkpoints)["step"] == 20
    with pytest.raises(UserError, match="--model_name_or_path was None, is /models/copy"):  # other heads, say
        matching_manifest(newest, {**elsewhere, "configuration": "x"}, extend=False, folder=two_checkpoints)
    with pytest.raises(UserError, match="the base model's weights have changed"):
        matching_manifest(newest, {**IDENTITY, "weights": "x"}, extend=False, folder=two_checkpoints)
    with pytest.raises(UserError, match="the classes have changed"):  # of the first rows, not one may be of a new one
        matching_manifest(newest, {**IDENTITY, "labels": ["no", "yes", "zu"]}, extend=False, folder=two_checkpoints)
    with pytest.raises(UserError, match="the kind of task has changed"):
        matching_manifest(newest, {**IDENTITY, "problem_type": "regression"}, extend=False, folder=two_checkpoints)
    changes = r"the effective batch was 4 \(2 × 2 on 1 process\), is 8 \(2 × 2 on 2 processes\): here --per_device"
    with pytest.raises(UserError, match=changes):
        matching_manifest(newest, {**IDENTITY, "processes": 2}, extend=False, folder=two_checkpoints)
    # `--mixed_precision auto` may choose differently on the machine that a job is requeued to.
    with pytest.raises(UserError, match=r"the precision was no, is bf16 \(--mixed_precision no keeps it\)"):
        matching_manifest(newest, {**IDENTITY, "precision": "bf16"}, extend=False, folder=two_checkpoints)
    named = changed(mixed_precision="no")
    assert matching_manifest(newest, named, extend=False, folder=two_checkpoints)["step"] == 20
    with pytest.raises(UserError, match="the device was cpu, is cuda"):
        matching_manifest(newest, {**IDENTITY, "device": "cuda"}, extend=False, folder=two_checkpoints)


@pytest.mark.parametrize(("name", "default", "other"), [("class_weights", "none", "balanced"),
                                                        ("label_smoothing_factor", 0.0, 0.1)])  # fmt: skip
def test_a_checkpoint_from_before_a_flag_resumes_at_its_default(two_checkpoints, name, default, other):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    same, changes = changed(**{name: default}), changed(**{name: other})
    assert matching_manifest(newest, same, extend=False, folder=two_checkpoints)["step"] == 20
    with pytest.raises(UserError, match=f"--{name} was {default}, is {other}; change that back"):
        matching_manifest(newest, changes, extend=False, folder=two_checkpoints)


@pytest.mark.parametrize(("size", "steps", "processes"), [(4, 1, 1), (1, 4, 1), (1, 2, 2), (1, 1, 4)])
def test_the_effective_batch_may_be_cut_in_another_way(two_checkpoints, size, steps, processes):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    cut = changed(per_device_train_batch_size=size, gradient_accumulation_steps=steps)
    cut["processes"] = processes
    assert matching_manifest(newest, cut, extend=False, folder=two_checkpoints)["step"] == 20
    for other in (changed(per_device_train_batch_size=size + 1, gradient_accumulation_steps=steps), IDENTITY):
        with pytest.raises(UserError, match=r"the effective batch was 4 \(2 × 2 on 1 process\), is \d+ \("):
            matching_manifest(newest, {**other, "processes": 5}, extend=False, folder=two_checkpoints)


def test_another_effective_batch_is_refused_with_what_the_flags_must_be(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    for processes, way in ((4, "here --per_device_train_batch_size × --gradient_accumulation_steps must be 1; "),
                           (3, "3 processes cannot share that; ")):  # fmt: skip
        with pytest.raises(UserError) as caught:
            matching_manifest(newest, {**IDENTITY, "processes": processes}, extend=False, folder=two_checkpoints)
        assert f"on {processes} processes): {way}" in str(caught.value)


@pytest.mark.parametrize(("micro", "accumulation"), [(4, 1), (1, 4)])
@pytest.mark.parametrize("method", ["bitfit", "adalora"])
def test_cut_in_another_way_updates_see_the_same_examples(tmp_path, micro, accumulation, method):
    cut = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    options = {"method": method, "epochs": 2, "logging_steps": 1}
    whole = make_run(tmp_path / "whole", micro=2, accumulation=2, **options)
    train(whole)
    for identity, exact in ((changed(**cut), False), (IDENTITY, True)):
        folder = tmp_path / f"parts-{exact}"
        first = make_run(folder, micro=2, accumulation=2, **options)
        first.keeper = CheckpointKeeper(folder, None, None, IDENTITY, Reporter())
        first.interruption = Stop(first, 13)  # in the middle of a window, and of an epoch
        with pytest.raises(Interrupted):
            train(first)
        second = make_run(folder, micro=micro, accumulation=accumulation, **options)
        second.keeper = CheckpointKeeper(folder, None, None, identity, Reporter())
        assert restore(second, find_checkpoint("auto", folder, print)) is exact
        assert second.batches.micro_batch_size == (2 if exact else micro)
        earlier = {"until": 6, "micro_batch_size": 2, "gradient_accumulation_steps": 2, "processes": 1}
        assert second.watcher.facts.get("earlier_cuts") == (None if exact else [earlier])
        train(second)
        found = curve(first) | curve(second)
        assert found.keys() == curve(whole).keys()
        for step, (loss, rate) in curve(whole).items():
            assert found[step] == (loss if exact else pytest.approx(loss, rel=1e-4), rate)
        assert second.progress.examples == whole.progress.examples


def test_what_does_not_shape_the_result_may_change(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    # A run that failed in a CUDA graph can resume without them, as its error message says.
    for change in ({"logging_steps": 50}, {"cuda_graphs": False}):
        assert matching_manifest(newest, changed(**change), extend=False, folder=two_checkpoints) is not None


def test_more_epochs_need_a_flag(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    with pytest.raises(UserError, match="--extend_training"):
        matching_manifest(newest, changed(num_train_epochs=5), extend=False, folder=two_checkpoints)
    with pytest.raises(
        UserError, match=r"--num_train_epochs was 2, is 1; change that back"
    ):  # no flag makes a run shorter
        matching_manifest(newest, changed(num_train_epochs=1), extend=False, folder=two_checkpoints)
    assert matching_manifest(newest, changed(num_train_epochs=5), extend=True, folder=two_checkpoints) is not None


def test_a_shorter_run_does_not_replace_a_longer_one_s_result(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    (two_checkpoints / "run.json").write_text(
        json.dumps(
            {
                "status": "finished",
                "arguments": {**IDENTITY["arguments"], "num_train_epochs": 3},
                "results": {"global_step": 30},
            }
        )
    )
    with pytest.raises(
        UserError, match=r"has the result of a longer run \(--num_train_epochs 3, not 2\); change that back"
    ):
        matching_manifest(newest, IDENTITY, extend=False, folder=two_checkpoints)
    longer = changed(num_train_epochs=3)
    assert matching_manifest(newest, longer, extend=True, folder=two_checkpoints) is not None


def test_what_shapes_a_result_is_part_of_a_run_s_identity():
    arguments, facts = made_arguments(), made_facts()
    found = identity_of(
        arguments, facts, SimpleNamespace(num_processes=2, mixed_precision="bf16", device=torch.device("cpu"))
    )
    assert found == {
        "arguments": arguments, "data": facts["data"], "problem_type": "single_label_classification",
        "labels": ["not_equivalent", "equivalent"], "metric": "accuracy", "weights": "f" * 64,
        "configuration": "c" * 64, "processes": 2, "precision": "bf16", "device": "cpu",
    }  # fmt: skip


def test_the_default_metric_is_the_same_spelled_out(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    default = changed(metric_for_best_model="accuracy")
    assert matching_manifest(newest, default, extend=False, folder=two_checkpoints) is not None
    with pytest.raises(UserError, match="--metric_for_best_model was accuracy, is f1"):
        matching_manifest(newest, changed(metric_for_best_model="f1"), extend=False, folder=two_checkpoints)


def test_a_checkpoint_of_an_earlier_version_knows_less_of_its_run(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["sha256"]
    for name in ("problem_type", "labels", "metric", "weights"):
        del manifest["identity"][name]
    (newest / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    assert matching_manifest(newest, IDENTITY, extend=False, folder=two_checkpoints)["step"] == 20


def test_a_branch_is_a_run_of_its_own_to_trackers(two_checkpoints, tmp_path):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["trackers"] = {"wandb": "abc"}
    (newest / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    own = matching_manifest(newest, IDENTITY, extend=False, folder=two_checkpoints)
    branch = matching_manifest(newest, IDENTITY, extend=False, folder=tmp_path / "branch")
    assert (own["trackers"], branch["trackers"]) == ({"wandb": "abc"}, {})
    assert own["step"] == branch["step"] == 20


def test_files_of_one_s_own_may_have_moved(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["identity"]["arguments"] |= {"train_file": "mails/train.csv", "task_name": "mails"}
    (newest / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    moved = changed(train_file="archive/train.csv", task_name="archive")
    assert matching_manifest(newest, moved, extend=False, folder=two_checkpoints) is not None
    as_dataset = changed(dataset_name="me/mails", task_name="mails-dataset")
    assert matching_manifest(newest, as_dataset, extend=False, folder=two_checkpoints) is not None
    with pytest.raises(UserError, match="--task_name was mails, is mrpc"):
        matching_manifest(newest, changed(task_name="mrpc"), extend=False, folder=two_checkpoints)


def test_a_score_that_is_no_number_survives_a_checkpoint():
    progress = {"step": 3, "best": {"accuracy": 0.5, "loss": None}, "last": {}, "history": [{"loss": None, "step": 3}]}
    found = _with_nan(progress)
    assert math.isnan(found["best"]["loss"]) and found["best"]["accuracy"] == 0.5
    assert math.isnan(found["history"][0]["loss"]) and found["history"][0]["step"] == 3
    assert (found["step"], found["last"]) == (3, {})


def test_a_run_of_so_many_updates_is_not_extended_by_epochs(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["identity"]["arguments"]["max_train_steps"] = 100
    (newest / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    with pytest.raises(UserError, match=r"--max_train_steps was 100, is None; change that back"):
        matching_manifest(newest, IDENTITY, extend=True, folder=two_checkpoints)


@pytest.mark.parametrize("fewer", [{"num_train_epochs": 1}, {"max_train_steps": 19}])
def test_extending_does_not_shorten(two_checkpoints, fewer):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    ((name, value),) = fewer.items()
    with pytest.raises(UserError, match=f"--{name} was .*, is {value}; change that back"):
        matching_manifest(newest, changed(**fewer), extend=True, folder=two_checkpoints)
    assert matching_manifest(newest, changed(max_train_steps=20), extend=True, folder=two_checkpoints) is not None


def test_an_extended_run_goes_on_with_the_longer_schedule(two_checkpoints):
    newest, _ = checkpoints(two_checkpoints / "checkpoints")
    longer = make_run(two_checkpoints, micro=2, accumulation=2, epochs=4, method="bitfit", dropout=0.1)
    restore(longer, newest)
    assert longer.scheduler.get_last_lr()[0] == pytest.approx(1e-3 * 0.5)
    train(longer)
    assert longer.progress.step == 40
    assert set(longer.scheduler.get_last_lr()) == {0.0}


# ── A disk that refuses ──────────────────────────────────────────────────────────────────────────────────────────

WRITE_POINTS = ["tempfile.mkdtemp", "save_file", "write_json", "share", "sync"]


def test_enospc_at_each_write_leaves_the_previous_checkpoint_and_the_run_goes_on(tmp_path, monkeypatch):
    uninterrupted = whole_run(tmp_path / "whole", epochs=3)
    calls = {"made": 0, "fails_at": 0}

    def breaking(function):
        def call(*arguments, **options):
            calls["made"] += 1
            if calls["made"] == calls["fails_at"]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **options)

        return call

    for point in WRITE_POINTS:
        owner, name = checkpointing, point
        if "." in point:
            owner, name = getattr(checkpointing, point.split(".")[0]), point.split(".")[1]
        monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
    monkeypatch.setattr(Path, "rename", breaking(Path.rename))

    counting, until = small_run(tmp_path / "count", every="10", epochs=3), []
    save = counting.keeper.save
    counting.keeper.save = lambda training: (save(training), until.append(calls["made"]))[0]
    train(counting)
    assert len(until) == 3 and until[0] > 10
    for point in range(1, until[1] - until[0] + 1):
        folder = tmp_path / str(point)
        calls.update(made=0, fails_at=until[0] + point)  # in the second checkpoint
        run = small_run(folder, every="10", epochs=3)
        train(run)
        assert len(run.keeper._reporter.warnings) == 1, point
        assert "No space left" in run.keeper._reporter.warnings[0]
        whole = [int(path.name[5:]) for path in checkpoints(folder / "checkpoints") if verify(path)]
        # The last sync follows the renaming: if that fails, the checkpoint is still there and intact.
        assert whole in ([30, 10], [30, 20, 10]), point
        assert not list(folder.glob("checkpoints/.writing-*")), point
        assert_same(weights(run), uninterrupted.weights)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_file_system_does_not_stop_the_run(tmp_path, uninterrupted):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    try:
        run = small_run(folder, every="2")
        train(run)
        assert run.keeper._reporter.warnings
        assert_same(weights(run), uninterrupted.weights)
        assert find_checkpoint("auto", folder, print) is not None
        assert not list(folder.glob("checkpoints/.writing-*"))
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_read_only_folder_is_refused_at_the_start(tmp_path):
    folder = tmp_path / "fixed"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(UserError, match="read-only"):
            choose_output_dir(str(folder / "run"), "mrpc", "lora", overwrite=False)
    finally:
        subprocess.run(["umount", folder], check=True)


class DyingExamples(torch.utils.data.Dataset):
    """Examples that kill their worker process when it asks for its 20th."""

    def __init__(self, examples) -> None:
        self.examples, self.asked = examples, 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, slots):
        self.asked += len(slots)
        if self.asked >= 20 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.examples.__getitems__(slots)


def test_a_data_worker_that_dies_ends_the_run_which_goes_on_from_its_checkpoint(tmp_path, uninterrupted):
    run = small_run(tmp_path, every="1")
    loader = run.loader
    dying = DataLoader(
        DyingExamples(loader.dataset),
        batch_sampler=run.batches,
        collate_fn=loader.collate_fn,
        num_workers=1,
        generator=torch.Generator(),
    )
    run.loader = run.accelerator.prepare(dying)
    with pytest.raises(
        RunError,
        match="use --dataloader_num_workers 0; a run with checkpoints continues with --resume_from_checkpoint auto",
    ):
        train(run)
    again = small_run(tmp_path)
    restore(again, find_checkpoint("auto", tmp_path, print))
    assert again.progress.step > 0
    assert again.watcher.facts == {"micro_batch_size": 2, "gradient_accumulation_steps": 2}
    train(again)
    assert_same(weights(again), uninterrupted.weights)


def test_the_checkpoint_that_a_run_goes_on_from_is_not_written_again(tmp_path):
    """It would be missing for a moment, in which a second signal could end the run."""
    train(small_run(tmp_path, every="10", limit=1))
    (newest,) = checkpoints(tmp_path / "checkpoints")
    again = small_run(tmp_path, every="10", limit=1)
    restore(again, newest)
    before = (newest / "manifest.json").stat().st_ino
    assert again.keeper.save(again)
    assert (newest / "manifest.json").stat().st_ino == before


def test_the_end_is_kept_as_well_since_the_result_has_yet_to_be_written(tmp_path):
    train(small_run(tmp_path, every="7"))
    assert [int(path.name[5:]) for path in checkpoints(tmp_path / "checkpoints")] == [20, 14, 7]
    train(small_run(tmp_path / "none"))
    assert not (tmp_path / "none" / "checkpoints").exists()


def test_a_signal_behind_the_last_update_loses_nothing(tmp_path, uninterrupted):
    run = small_run(tmp_path)
    run.interruption = Stop(run, 38)  # the last micro-batch: 2 epochs of 9 × 2 + 1
    with pytest.raises(Interrupted):
        train(run)
    again = small_run(tmp_path)
    restore(again, find_checkpoint("auto", tmp_path, print))
    assert again.progress.step == 20
    assert_same(weights(again), uninterrupted.weights)


def test_weights_spoilt_by_a_gradient_are_not_kept(tmp_path):
    """The loss of such an update is still finite."""
    run = small_run(tmp_path, every="1")
    bias = dict(run.model.named_parameters())["classifier.bias"]
    bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(RunError, match=r"no longer finite at step 1 \(classifier"):
        train(run)
    assert checkpoints(tmp_path / "checkpoints") == []


def test_a_spoilt_run_is_not_kept(tmp_path):
    run = small_run(tmp_path, every="1")
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))
    with pytest.raises(RunError, match=r"the loss is nan at step 1 .*; try --mixed_precision no, another base model"):
        train(run)
    assert checkpoints(tmp_path / "checkpoints") == []
