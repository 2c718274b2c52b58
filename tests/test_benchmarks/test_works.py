"""The works are commands of scripts/train.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import speed
from benchmarks.speed import groups
from benchmarks.works import Setting, contenders, free_micro_batch, works
from peftlib.arguments import parse_train_arguments

SETTING = Setting(Path("glue"), "all-MiniLM-L6-v2", threads=0, updates=3)


@pytest.mark.parametrize("work", works(glue=True), ids=lambda work: work.name)
@pytest.mark.parametrize("processes", [1, 2])
def test_every_work_has_64_examples_an_update(work, processes):
    how = parse_train_arguments(SETTING.flags(work, processes=processes)).training
    assert how.per_device_train_batch_size * how.gradient_accumulation_steps * processes == 64


def test_trainer_may_do_fewer_updates_of_the_same_work():
    setting, work = Setting(Path("glue"), "all-MiniLM-L6-v2", threads=0, updates=3, of_trainer=2), works(glue=True)[0]
    theirs, ours = (parse_train_arguments(setting.job(work, system).argv()) for system in ("trainer", "ours"))
    assert (theirs.data.max_train_samples, ours.data.max_train_samples) == (2 * 64, 3 * 64)
    assert SETTING.job(work, "trainer").flags == SETTING.job(work, "ours").flags
    more = Setting(Path("glue"), "all-MiniLM-L6-v2", threads=0, updates=3, of_trainer=20)
    assert more.job(work, "trainer").flags == more.job(work, "ours").flags
    # As many untimed ones as timed ones, where those of ours are timed after whole epochs.
    assert [more.job(work, system).warmup for system in ("trainer", "ours")] == [3, 2]
    assert SETTING.job(work, "trainer").warmup == 2


def test_a_free_micro_batch_takes_them_in_one_pass():
    how = parse_train_arguments(SETTING.flags(free_micro_batch(works(glue=True)[0]))).training
    assert (how.per_device_train_batch_size, how.gradient_accumulation_steps) == (64, 1)


def test_the_plain_path_has_no_length_grouping():
    plain = parse_train_arguments(SETTING.job(works(glue=True)[0], "plain").argv())
    ours = parse_train_arguments(SETTING.job(works(glue=True)[0]).argv())
    assert not plain.data.group_by_length and ours.data.group_by_length
    assert plain.data.max_train_samples == ours.data.max_train_samples == 3 * 64


def test_without_glue_the_packaged_data_is_used():
    setting = Setting(None, "all-MiniLM-L6-v2", threads=1, updates=0)
    for work in works(glue=False):
        data = parse_train_arguments(setting.flags(work)).data
        assert (data.task_name, data.data_dir, data.max_train_samples) == ("rotten_tomatoes", None, None)


def test_on_a_gpu_both_halves_are_compared():
    work = works(glue=True)[0]
    assert [one.name for one in contenders(True, work)] == ["Trainer fp16", "Trainer bf16", "ours fp16", "ours bf16"]
    assert [one.name for one in contenders(True, free_micro_batch(work))] == ["ours fp16", "ours bf16"]
    assert [one.precision for one in contenders(False, work)] == ["no", "bf16", "auto"]


def test_a_gpu_s_contenders_do_all_their_works_in_one_process():
    chosen = [works(glue=True)[0], free_micro_batch(works(glue=True)[0])]
    shared = groups(chosen, cuda=True, backwards=False)
    assert [{one.name for _, one in group} for group in shared] == [
        {"Trainer fp16"}, {"Trainer bf16"}, {"ours fp16"}, {"ours bf16"}
    ]  # fmt: skip
    assert [len(group) for group in shared] == [1, 1, 2, 2]
    some = groups(chosen, ["ours fp16", "Trainer fp16"], cuda=True, backwards=True)
    assert [[one.name for _, one in group] for group in some] == [["ours fp16"] * 2, ["Trainer fp16"]]
    both = groups([*chosen, works(glue=True)[1]], ["ours fp16", "Trainer fp16"], cuda=True, backwards=False)
    assert [[work.name for work, _ in group] for group in both] == [
        ["MRPC BitFit", "MRPC LoRA r=16"], ["MRPC BitFit", "MRPC BitFit, 64×1"], ["MRPC LoRA r=16"]
    ], "one process of ours for each method"  # fmt: skip
    alone = groups(chosen, cuda=False, backwards=True)
    assert [len(group) for group in alone] == [1] * 6
    assert [group[0][1].name for group in alone[:3]] == ["ours", "Trainer bf16", "Trainer fp32"]


@pytest.mark.parametrize(("flag", "known"), [("--only", "rotten_tomatoes BitFit"), ("--contender", "Trainer fp32")])
def test_names_that_are_in_no_table_are_refused(monkeypatch, capsys, flag, known):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["speed.py", flag, known, flag, "nobody"])
    with pytest.raises(SystemExit) as ended:
        speed.main()
    assert ended.value.code == 2
    assert f"{flag} nobody: unknown (known: " in capsys.readouterr().err
