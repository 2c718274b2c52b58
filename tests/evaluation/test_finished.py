"""Reading a finished run from its folder: its model, its task, and files in place of its test split."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlib.data.own_data import own_data_of
from peftlib.data.sources import find_task, load_examples
from peftlib.data.tasks import METRICS_OF_OWN_DATA, SINGLE_LABEL, TASKS, Task
from peftlib.errors import UserError
from peftlib.evaluation.finished import Finished
from peftlib.fingerprint import Fingerprint
from peftlib.strategies import STRATEGIES, Strategy
from peftlib.strategies.lora import LoRA
from peftlib.strategies.peft_method import PeftMethod
from tests.conftest import write_glue
from tests.strategies.classifiers import METHODS, classifier, logits, update

KINDS: dict[str, Strategy] = {**METHODS, "dora": LoRA(lora_r=4, use_dora=True)}
OWN = {"train_file": "mails/train.csv", "validation_file": "mails/dev.csv", "task_name": "mails"}


def record(strategy: Strategy = METHODS["lora"], base: object = "nowhere", **changes: Any) -> dict[str, Any]:
    method = next(name for name, kind in STRATEGIES.items() if kind is type(strategy))
    arguments = {"method": method, "task_name": "mrpc", "max_length": 128, **dataclasses.asdict(strategy)}
    return {
        "status": "finished",
        "arguments": arguments | changes.pop("arguments", {}),
        "labels": list(TASKS["mrpc"].labels),
        "data": {"validation": {"fingerprint": changes.pop("fingerprint", "")}},
        "model": {"name": str(base)},
        "precision": {"name": "no"},
        "results": {},
        **changes,
    }


def left(folder: Path, content: object) -> Finished:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(content))
    return Finished.read(folder)


@pytest.mark.parametrize("name", KINDS)
def test_the_model_answers_as_it_did_when_it_was_saved(
    tiny_folder: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    base, strategy = tiny_folder(), KINDS[name]
    model, head = classifier(base)
    adapted = strategy.apply(model, head)
    update(adapted)
    strategy.save(adapted, tmp_path, head)
    run = left(tmp_path, record(strategy, base))
    torch.manual_seed(5)  # for the initial head, which the saved one replaces
    assert run.strategy == strategy
    assert torch.equal(logits(run.load()), logits(adapted))


def test_the_base_model_may_have_moved(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model, head = classifier(tiny_folder())
    METHODS["head"].apply(model, head)
    METHODS["head"].save(model, tmp_path, head)
    run = left(tmp_path, record(METHODS["head"], base="./gone"))
    with pytest.raises(UserError, match=r"--model_name_or_path ./gone: no such folder"):
        run.load()
    moved = shutil.copytree(tiny_folder(), tmp_path / "moved")
    assert torch.equal(logits(run.load(str(moved))), logits(model))


def test_another_base_model_is_refused(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """With the same shapes, in the same folder, an adapter would load, and its predictions would be wrong."""
    base = shutil.copytree(tiny_folder(), tmp_path / "base")
    model, head = classifier(base)
    content = record(METHODS["bitfit"], base)
    content["model"]["fingerprint"] = Fingerprint.of(model, head).weights  # of a checkpoint without a head
    METHODS["bitfit"].apply(model, head)
    METHODS["bitfit"].save(model, tmp_path, head)
    left(tmp_path, content).load()
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    weights[name][0, 0] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"^--model_name_or_path .*base: its weights differ from those that .* trained on;"
    ):
        left(tmp_path, content).load()


def test_no_pickle_and_no_damaged_adapter_is_loaded(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model, head = classifier(tiny_folder())
    METHODS["head"].apply(model, head)
    METHODS["head"].save(model, tmp_path, head)
    run, weights = left(tmp_path, record(METHODS["head"], tiny_folder())), tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="its adapter cannot be loaded") as caught:
        run.load()
    assert "\n" not in str(caught.value)
    torch.save({}, tmp_path / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match=r"has no adapter_model.safetensors; train it again"):
        run.load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "run.json: cannot be read (it holds no object)"),
        ({"status": "finished"}, "run.json: is not a training run's record"),
        (record(labels="yes"), "run.json: is not a training run's record"),
        ({"status": "interrupted", "arguments": {}}, "has not finished (status interrupted); continue it with"),
        (record(status="failed", error="the loss is inf"), "has failed (the loss is inf); mend that, and continue it"),
        (record(status="running"), "has not finished (status running); continue it with --resume_from_checkpoint auto"),
    ],
)
def test_what_is_no_finished_run(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        left(tmp_path, content)
    assert message in str(caught.value)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: cannot be read"):
        Finished.read(tmp_path)


def test_the_task_is_the_table_s_or_that_of_files_of_one_s_own(tmp_path: Path) -> None:
    assert left(tmp_path, record()).task == TASKS["mrpc"]
    run = left(tmp_path, record(arguments=OWN, labels=["a", "b", "c"]))
    files = run.task.own
    assert run.task == Task("mails", ("a", "b", "c"), METRICS_OF_OWN_DATA[SINGLE_LABEL], own=files)
    assert files is not None and (files.train, files.validation, files.label_columns) == (
        *list(OWN.values())[:2],
        ("label",),
    )
    for unknown in (record(arguments={"task_name": "cola"}), record(labels=["no", "yes"])):
        with pytest.raises(UserError, match="this version has no task"):
            left(tmp_path, unknown).task  # noqa: B018 - the access must fail
    with pytest.raises(UserError, match="this version has no method prefix"):
        left(tmp_path, record(arguments={"method": "prefix"})).strategy  # noqa: B018


def test_scores_in_a_file_beside_sts_b(tmp_path: Path) -> None:
    run = left(tmp_path / "run", record(arguments={"task_name": "stsb"}, labels=[]))
    assert run.task == TASKS["stsb"]

    def asked(name: str, text: str, **options: str) -> Any:
        (tmp_path / name).write_text(text)
        return run.examples("test", test_file=str(tmp_path / name), text_columns="a,b", **options)

    assert asked("one.csv", "a,b,label\nx,y,4\nx,z, 0.5 \n").labels == [4.0, 0.5]
    assert asked(
        "two.json", '[{"a": "x", "b": "y", "s": 3}, {"a": "x", "b": "y", "s": 2.5}]', label_column="s"
    ).labels == [
        3.0,
        2.5,
    ]
    hidden = asked("three.csv", "a,b\nx,y\n")
    assert math.isnan(*hidden.labels) and not hidden.labelled
    for row, found in (("x,y,7", "'7'"), ("x,y,alike", "'alike'"), ("x,y,", "''"), ("x,y,-1", "'-1'")):
        with pytest.raises(UserError) as caught:
            asked("four.csv", f"a,b,label\nx,y,1\n{row}\n")
        advice = "to predict without scores, add --ignore_labels"
        said = f"four.csv, line 3: the label is {found}; stsb has scores from 0 to 5; {advice}"
        assert str(caught.value).endswith(said)


def test_the_splits_of_a_dataset_and_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_dict({"mail": ["so", "no"], "note": ["x", "y"], "label": ["a", "b"]})
    datasets.DatasetDict({"dev": rows, "held_out": rows.select([1])}).save_to_disk(tmp_path / "mails")
    names = {"validation_split_name": "dev", "test_split_name": "held_out", "task_name": "mails"}
    arguments = {"dataset_name": str(tmp_path / "mails"), "text_column_names": "mail", **names}
    run = left(tmp_path / "run", record(arguments=arguments, labels=["a", "b"]))
    assert run.examples("test").texts == [("no",)]
    path = tmp_path / "new.csv"
    path.write_text("mail,label\nyes,a\n")
    assert run.examples("test", test_file=str(path)).texts == [("yes",)]
    fewer = left(tmp_path / "fewer", record(arguments=arguments, labels=["a", "c"]))
    path.write_text("mail,label\nyes,b\n")
    for how, advised in (({}, False), ({"test_file": str(path)}, True)):
        with pytest.raises(UserError, match="'b' is not a class of mails") as caught:
            fewer.examples("test", **how)
        assert ("to predict without scores, add --ignore_labels" in str(caught.value)) == advised
    unscored = fewer.examples("test", test_file=str(path), ignore_labels=True)
    assert unscored.texts == [("yes",)] and not unscored.labelled


def test_a_dataset_s_folder_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_dict({"text": ["so", "no"], "label": ["a", "b"]})
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "mails")
    arguments = {"dataset_name": "mails", "task_name": "mails"}
    run = left(tmp_path / "run", record(arguments=arguments, labels=["a", "b"], dataset_folder=str(tmp_path / "mails")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(run.examples("test")) == 2


@pytest.mark.parametrize(
    ("padded", "splits", "expected"),
    [
        (False, {"train": {"longest": 31}, "validation": {"longest": 13}}, {"pad_to": 0, "widest": 31}),
        (True, {"train": {"longest": 31}, "validation": {"longest": 130}}, {"pad_to": 128, "widest": 130}),
        (False, {"train": {}, "validation": {}}, {"pad_to": 0, "widest": 0}),
    ],
)
def test_batches_are_laid_out_as_in_training(
    tmp_path: Path, padded: bool, splits: dict[str, Any], expected: dict[str, int]
) -> None:
    assert left(tmp_path, record(arguments={"pad_to_max_length": padded}, data=splits)).layout == expected


def test_it_is_accelerated_as_it_was_trained(tmp_path: Path) -> None:
    other = {"frozen_dtype": "fp32", "acceleration": "off", "gradient_checkpointing": True}
    expected = {"frozen_dtype": "fp32", "reads_frozen": True, "enabled": False, "recompute": True}
    assert left(tmp_path, record(PeftMethod("hira"), arguments=other)).acceleration == expected
    usual = {"frozen_dtype": "auto", "reads_frozen": False, "enabled": True, "recompute": False}
    assert left(tmp_path, record()).acceleration == usual, "a run of 0.1.0"


def test_of_one_s_own_data_there_are_two_splits_to_predict(tmp_path: Path) -> None:
    files = {"task_name": "mails", "train_file": "a.csv", "validation_file": "b.csv"}
    run = left(tmp_path, record(arguments=files))
    with pytest.raises(UserError, match=r"^--split ax: mails has the splits validation and test alone$"):
        run.examples("ax")


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(UserError, match=r"a\.csv: is a file; name the run's folder$"):
        Finished.read(tmp_path / "a.csv")


def test_prompts_are_not_merged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"PEFT prefix_tuning has no weights to merge; .* --adapter --push_to_hub$"):
        left(tmp_path, record(PeftMethod("prefix_tuning"))).refuse_what_cannot_be_merged()
    left(tmp_path, record(PeftMethod("loha"))).refuse_what_cannot_be_merged()


def test_virtual_tokens_take_positions(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    method, (model, head) = PeftMethod("prompt_tuning"), classifier(tiny_folder())
    method.save(method.apply(model, head), tmp_path, head)
    run = left(tmp_path, record(method, tiny_folder()))
    run.load(extent=(5, 120))
    with pytest.raises(UserError, match=r"^--max_length must be at most 120: .* 140 positions, 20 of which "):
        run.load(extent=(5, 121))


def test_its_evaluation_batches_are_those_that_fitted(tmp_path: Path) -> None:
    """In batches of other sizes a matrix product may round differently, and larger ones did not fit."""
    asked = record(arguments={"per_device_eval_batch_size": 64})
    assert left(tmp_path / "asked", asked).eval_batch_size == 64
    assert left(tmp_path / "fitted", asked | {"eval_batch_size": 16}).eval_batch_size == 16


def test_a_whole_model_takes_no_base(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model, head = classifier(tiny_folder())
    METHODS["full"].save(METHODS["full"].apply(model, head), tmp_path, head)
    run = left(tmp_path, record(METHODS["full"], tiny_folder()))
    with pytest.raises(UserError, match=r"--model_name_or_path other: .* has the whole model; leave the flag out"):
        run.load("other")


def test_its_own_validation_split_is_what_it_was_scored_on(tmp_path: Path) -> None:
    here, there = write_glue(tmp_path / "here", dev=5), write_glue(tmp_path / "there", dev=7)
    scored = load_examples(TASKS["mrpc"], "validation", here).first(3).fingerprint()
    arguments = {"data_dir": str(here), "max_eval_samples": 3}
    run = left(tmp_path / "run", record(arguments=arguments, fingerprint=scored))
    assert len(run.examples("validation")) == 3
    assert run.examples("validation", str(there)).source.startswith(str(there))
    path = here / "MRPC" / "dev.tsv"
    path.write_text(path.read_text(encoding="utf-8-sig").replace("said", "sang"), encoding="utf-8")
    with pytest.raises(UserError, match=r"dev.tsv: has changed since .*run was scored on it; restore"):
        run.examples("validation")


def test_rows_that_were_held_out_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "mails.csv"
    path.write_text("body,label\n" + "".join(f"mail {row},{'ab'[row % 2]}\n" for row in range(20)))
    own = {"train_file": str(path), "validation_split_percentage": 20, "task_name": "mails"}
    held = load_examples(find_task("", own_data_of(own)), "validation")
    run = left(tmp_path / "run", record(arguments=own, labels=["a", "b"], fingerprint=held.fingerprint()))
    assert run.examples("validation") == held and len(held) == 4
    path.write_text(f"{path.read_text()}mail 20,a\nmail 21,b\nmail 22,a\n")  # more rows: another part
    with pytest.raises(UserError, match=r"mails.csv, held-out rows: has changed since .*run was scored on it; restore"):
        run.examples("validation")


def test_a_folder_of_glue_that_the_run_was_given_from_elsewhere(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run = left(tmp_path, record(arguments={"data_dir": "glue"}))
    said = r"glue is not a folder.*; give --data_dir, or change to the directory in which the run was started$"
    with pytest.raises(UserError, match=said):
        run.examples("validation")
    with pytest.raises(UserError) as given:
        run.examples("validation", "elsewhere")
    assert "started" not in str(given.value)


def test_where_files_of_one_s_own_were_and_its_tokenizer(tmp_path: Path) -> None:
    run = left(tmp_path, record(arguments=OWN, labels=["a", "b"]))
    with pytest.raises(UserError, match=r"dev.csv: cannot be read .*; change to the directory in which the run was"):
        run.examples("validation")
    with pytest.raises(UserError, match=r"tokenizer.json is missing"):
        run.tokenizer()


def test_a_test_file_has_as_many_texts_and_the_classes_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("a,b,label\nx,y,equivalent\nx,z,0\n")
    run = left(tmp_path / "run", record())
    examples = run.examples("test", test_file=str(path), text_columns="b,a")
    assert (examples.texts, examples.labels) == ([("y", "x"), ("z", "x")], [1, 0])
    with pytest.raises(UserError, match=r"new.csv: mrpc has 2 texts per example, not 1; name that many columns in"):
        run.examples("test", test_file=str(path), text_columns="a")
    with pytest.raises(UserError, match=r"new.csv: no column 'verdict'; leave --label_column_name out"):
        run.examples("test", test_file=str(path), text_columns="a,b", label_column="verdict")


def test_a_test_file_of_a_run_on_files(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("subject,body,folder\nx,y,b\nx,z,a\n")
    (tmp_path / "bare.jsonl").write_text('{"body": "y"}\n')
    own = {**OWN, "text_column_names": "body", "label_column_name": "folder"}
    run = left(tmp_path / "run", record(arguments=own, labels=["a", "b"]))
    examples = run.examples("test", test_file=str(tmp_path / "new.csv"))
    assert (examples.texts, examples.labels, examples.labelled) == ([("y",), ("z",)], [1, 0], True)
    bare = run.examples("test", test_file=str(tmp_path / "bare.jsonl"))
    assert (bare.texts, bare.labels, bare.labelled) == ([("y",)], [-1], False)
    with pytest.raises(UserError, match="mails is read from files and has no test split; give one with --test_file"):
        run.examples("test")


def test_a_test_file_of_a_task_has_the_task_s_columns(tmp_path: Path) -> None:
    """The Hub's column names, which people use for pairs."""
    run = left(tmp_path / "run", record(arguments={"task_name": "mrpc"}, labels=["not_equivalent", "equivalent"]))
    (tmp_path / "new.csv").write_text("id,sentence1,sentence2\n1,a,b\n")
    assert run.examples("test", test_file=str(tmp_path / "new.csv")).texts == [("a", "b")]
    packaged = left(
        tmp_path / "packaged", record(arguments={"task_name": "rotten_tomatoes"}, labels=["negative", "positive"])
    )
    (tmp_path / "reviews.csv").write_text("id,text\n1,a\n")
    assert packaged.examples("test", test_file=str(tmp_path / "reviews.csv")).texts == [("a",)]
    (tmp_path / "other.csv").write_text("left,right\na,b\n")
    with pytest.raises(UserError, match=r"other.csv: the columns besides 'label' are 'left', 'right'; name the"):
        run.examples("test", test_file=str(tmp_path / "other.csv"))


def test_the_column_that_training_took_is_the_one_of_a_test_file(tmp_path: Path) -> None:
    """Training had only one; a new file may have more, and its ids must not be taken for texts."""
    run = left(tmp_path / "run", record(arguments=OWN, labels=["a", "b"], text_columns=["body"]))
    (tmp_path / "new.csv").write_text("id,body,label\n1,y,b\n")
    assert run.examples("test", test_file=str(tmp_path / "new.csv")).texts == [("y",)]
    (tmp_path / "ids.csv").write_text("id\n1\n")
    with pytest.raises(UserError, match=r"ids.csv: no column 'body' .*; name it in --text_column_names"):
        run.examples("test", test_file=str(tmp_path / "ids.csv"))
    assert run.examples("test", test_file=str(tmp_path / "ids.csv"), text_columns="id").texts == [("1",)]
