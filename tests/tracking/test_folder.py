"""The folder that a run writes into: it never replaces the user's files, or a run that could be resumed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from peftlib.errors import UserError
from peftlib.tracking.folder import (
    RUN_FILES,
    choose_output_dir,
    choose_resume,
    lock_folder,
    refuse_busy,
    sweep_of_run,
)


def test_the_default_folder_names_task_method_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = choose_output_dir(None, "mrpc", "lora", overwrite=False)
    assert folder.parent.name == "outputs"
    assert folder.name.startswith("mrpc-lora-20")
    assert list(tmp_path.iterdir()) == []  # nothing is created yet


def test_a_folder_in_use_is_refused_and_names_the_flag(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "failed"}))
    with pytest.raises(UserError, match=r"contains a run; .*--overwrite_output_dir"):
        choose_output_dir(str(tmp_path), "mrpc", "lora", overwrite=False)
    assert choose_output_dir(str(tmp_path), "mrpc", "lora", overwrite=True) == tmp_path


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_folder_without_a_run_is_nobodys_to_clear(tmp_path, overwrite, resume):
    """A project's README.md or a base model's config.json would be replaced."""
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds files, and none of a run; name another folder$"):
        choose_output_dir(str(tmp_path), "mrpc", "lora", overwrite, resume=resume)


def test_an_empty_or_new_folder_is_taken(tmp_path):
    assert choose_output_dir(str(tmp_path), "mrpc", "lora", overwrite=False) == tmp_path
    assert choose_output_dir(str(tmp_path / "a" / "b"), "mrpc", "lora", overwrite=False) == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


def test_going_on_takes_a_folder_that_holds_a_run(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "interrupted"}))
    assert choose_output_dir(str(tmp_path), "mrpc", "lora", overwrite=False, resume="auto") == tmp_path


def test_going_on_takes_what_a_run_killed_at_its_start_has_left(tmp_path):
    for name in (".lock", "metrics.jsonl", ".run.json.abc.tmp"):
        (tmp_path / name).write_text("")
    assert choose_output_dir(str(tmp_path), "mrpc", "lora", overwrite=False, resume="auto") == tmp_path


def test_a_look_at_a_folder_finds_who_writes_there_and_leaves_it_free(tmp_path):
    refuse_busy(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with lock_folder(tmp_path), pytest.raises(UserError, match="another run is writing there"):
        refuse_busy(tmp_path)
    refuse_busy(tmp_path)
    lock_folder(tmp_path).close()


def test_going_on_does_not_throw_a_finished_run_away(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(UserError, match="a finished run that kept no checkpoint"):
        choose_output_dir(str(tmp_path), "mrpc", "lora", overwrite=False, resume="auto")
    monkeypatch.setenv("PEFTLIB_SWEEP_ID", "q")  # was killed before it learnt that the run had finished
    assert choose_output_dir(str(tmp_path), "mrpc", "lora", overwrite=False, resume="auto") == tmp_path
    monkeypatch.delenv("PEFTLIB_SWEEP_ID")
    (tmp_path / "checkpoints").mkdir()
    assert choose_output_dir(str(tmp_path), "mrpc", "lora", overwrite=False, resume="auto") == tmp_path


@pytest.mark.parametrize(
    ("record", "taken"),
    [
        ({"status": "finished", "arguments": {}}, True),
        ({"status": "interrupted", "arguments": {"resume_from_checkpoint": None}}, True),
        ({"status": "interrupted", "arguments": {"resume_from_checkpoint": "BRANCH"}}, False),  # the same command again
        ({"status": "finished", "arguments": {"resume_from_checkpoint": "BRANCH"}}, True),
    ],
)
def test_a_branch_does_not_replace_another_run(tmp_path, record, taken):
    checkpoint, folder = tmp_path / "b" / "checkpoints" / "step_00000050", tmp_path / "a"
    checkpoint.mkdir(parents=True)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record).replace("BRANCH", str(checkpoint)))
    choose = partial(choose_output_dir, str(folder), "mrpc", "lora", resume=str(checkpoint))
    if taken:
        with pytest.raises(UserError, match=r"contains a run, and .*step_00000050 is not of it; .*--overwrite_output"):
            choose(overwrite=False)
    else:
        assert choose(overwrite=False) == folder
    assert choose(overwrite=True) == folder
    own = folder / "checkpoints" / "step_00000001"
    for mine in (own, folder):
        assert choose_output_dir(str(folder), "mrpc", "lora", overwrite=False, resume=str(mine)) == folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_folder(tmp_path, overwrite):
    (tmp_path / "file").write_text("")
    for below in ("", "a/b"):
        with pytest.raises(UserError, match="file is a file; name another folder"):
            choose_output_dir(str(tmp_path / "file" / below), "mrpc", "lora", overwrite=overwrite)


def test_a_name_that_no_folder_can_have_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^--output_dir .{60}…: File name too long; name another folder$"):
        choose_output_dir(str(tmp_path / ("x" * 300)), "mrpc", "lora", overwrite=False)


def test_everything_that_a_saved_tokenizer_leaves_is_a_runs_own_file(tiny_folder):
    assert {path.name for path in tiny_folder("roberta").iterdir()} <= set(RUN_FILES)


@pytest.mark.parametrize(
    ("variables", "sweep"),
    [
        ({}, None),
        ({"PEFTLIB_SWEEP_ID": "quick-1", "PEFTLIB_TRIAL": "3"}, {"id": "quick-1", "trial": "3"}),
        ({"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "xyz"}, {"id": "abc", "trial": "xyz"}),
        # A local sweep whose runs W&B tracks.
        ({"PEFTLIB_SWEEP_ID": "q", "PEFTLIB_TRIAL": "0", "WANDB_SWEEP_ID": "abc"}, {"id": "q", "trial": "0"}),
    ],
)
def test_a_run_knows_its_sweep(variables, sweep, monkeypatch, tmp_path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert sweep_of_run() == sweep
    folder = choose_output_dir(None, "mrpc", "lora", False)
    # Two agents may start runs of one method in the same second.
    assert (folder == Path("outputs", "sweeps", *sweep.values())) if sweep else folder.name.startswith("mrpc-lora-")


@pytest.mark.parametrize(
    ("wanted", "output_dir", "overwrite", "sweep", "resume"),
    [
        (None, None, False, "s1", "auto"),  # the folder is the run's own
        (None, None, False, "", None),
        (None, "out", False, "s1", None),  # another run's, for all we know
        (None, None, True, "s1", None),
        ("a/checkpoint", None, False, "s1", "a/checkpoint"),
    ],
)
def test_inside_a_sweep_a_run_goes_on_from_what_lies_in_its_own_folder(
    wanted, output_dir, overwrite, sweep, resume, monkeypatch
):
    monkeypatch.setenv("WANDB_SWEEP_ID", sweep)
    assert choose_resume(wanted, output_dir, overwrite) == resume
