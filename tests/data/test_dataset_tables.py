"""Datasets as `datasets` reads them, from folders: a test has no Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from peftlib.data import dataset_tables
from peftlib.data.dataset_tables import read_dataset
from peftlib.data.own_data import own_data_of
from peftlib.data.sources import find_task, load_examples
from peftlib.data.tasks import Task
from peftlib.errors import UserError

NAMES = ["sport", "business", "sci-tech"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(**more: datasets.Features) -> datasets.Dataset:
    """Eight rows with ids, as most datasets have them, and named classes, of which the last does not occur."""
    features = {
        "idx": datasets.Value("int32"),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=NAMES),
    }
    rows = {"idx": list(range(8)), "text": [f" text {i} " for i in range(8)], "label": [i % 2 for i in range(8)]}
    for name, feature in more.items():
        features[name], rows[name] = feature, [[f"x{i}"] for i in range(8)]
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """As `save_to_disk` writes it, with a test split whose classes are hidden."""
    hidden = table().map(lambda row: {**row, "label": -1})
    splits = {"train": table(), "validation": table().select([3, 0]), "test": hidden}
    folder = tmp_path / "news"
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def task_of(folder: Path, **flags: Any) -> Task:
    return find_task("", own_data_of({"dataset_name": str(folder), **flags}))


def test_a_saved_dataset_keeps_its_classes_and_their_order(saved: Path) -> None:
    task = task_of(saved)
    assert (task.name, task.labels) == ("news", tuple(NAMES))
    assert task.own is not None and task.own.text_columns == ("text",)
    validation = load_examples(task, "validation")
    assert (validation.texts, validation.labels) == ([("text 3",), ("text 0",)], [1, 0])
    assert validation.source == f"{saved}, validation"
    hidden = load_examples(task, "test")
    assert (len(hidden), hidden.labelled) == (8, False)


def test_slices_of_a_saved_dataset_and_one_without_splits(tmp_path: Path, saved: Path) -> None:
    flags = {"train_split_name": "train[:75%]", "validation_split_name": "train[6:]+validation"}
    task = task_of(saved, **flags)
    assert len(load_examples(task, "train")) == 6
    assert load_examples(task, "validation").texts == [(f"text {i}",) for i in (6, 7, 3, 0)]
    table().save_to_disk(tmp_path / "single")
    single = task_of(tmp_path / "single", validation_split_name="train[-2:]")
    assert load_examples(single, "validation").texts == [("text 6",), ("text 7",)]


@pytest.mark.parametrize("how", [{"type": "numpy", "columns": ["label"]}, {"type": "torch"}])
def test_the_format_that_a_dataset_was_saved_in_is_of_no_matter(tmp_path: Path, how: dict[str, Any]) -> None:
    rows = table()
    rows.set_format(**how)
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "news")
    examples = load_examples(task_of(tmp_path / "news"), "train")
    assert (examples.texts[1], examples.labels[:2]) == (("text 1",), [0, 1])


@pytest.mark.parametrize("names", [["0.5", "1.0"], ["neg ", " pos"]])
def test_names_of_classes_are_the_dataset_s_own(tmp_path: Path, names: list[str]) -> None:
    rows = table().cast_column("label", datasets.ClassLabel(names=names))
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "news")
    task = task_of(tmp_path / "news")
    assert task.labels == tuple(names)
    assert load_examples(task, "validation").labels == [0, 1] * 4


def test_a_folder_of_files_in_slices(tmp_path: Path) -> None:
    """As `load_dataset` reads it; classes without names are called as they are written."""
    folder = tmp_path / "mails"
    folder.mkdir()
    rows = [f"subject {i},body {i},{('ham', 'spam')[i % 2]}" for i in range(10)]
    (folder / "train.csv").write_text("\n".join(["subject,body,kind", *rows]))
    columns = {"text_column_names": "body,subject", "label_column_name": "kind"}
    task = task_of(folder, train_split_name="train[:60%]", validation_split_name="train[60%:]", **columns)
    train, validation = (load_examples(task, split) for split in ("train", "validation"))
    assert task.labels == ("ham", "spam")
    assert (len(train), len(validation)) == (6, 4)
    assert (validation.texts[0], validation.labels) == (("body 6", "subject 6"), [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"validation_split_name": "dev"}, "news --validation_split_name dev: cannot be read: Unknown split"),
        (
            {"validation_split_name": "dev"},
            ". Name another one, or use --validation_split_percentage 10 to hold out a part of the training data",
        ),
        (
            {"label_column_name": "topic"},
            ", train: no column 'topic' (there are: idx, text, label, tags); name it in --lab",
        ),
        (
            {"text_column_names": "idx"},
            ", train, row 1: the idx is not a text (0); write it in quotes, or name another in",
        ),
        ({"train_split_name": "test"}, ", test, row 1: the label is empty; remove the row"),
        ({"dataset_config_name": "en"}, "cannot be read: a dataset written by save_to_disk has no configuration en"),
        ({"train_split_name": "train[:1]"}, "at least two classes are needed, 'label' has only 'sport'"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path: Path, flags: dict[str, str], message: str) -> None:
    hidden = table().map(lambda row: {**row, "label": -1})
    tagged = table(tags=datasets.List(datasets.Value("string")))
    datasets.DatasetDict({"train": tagged, "validation": tagged, "test": hidden}).save_to_disk(tmp_path / "news")
    with pytest.raises(UserError) as caught:
        load_examples(task_of(tmp_path / "news", **flags), "validation")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_data_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--dataset_name .*empty --train_split_name train: cannot be read: ") as caught:
        task_of(tmp_path / "empty")
    assert "\n" not in str(caught.value)


def test_what_datasets_says_of_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--dataset_name /.*gone: no such folder$"):
        task_of(tmp_path / "gone")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("class Old: ...")
    with pytest.raises(UserError, match="Dataset scripts are no longer supported"):
        task_of(tmp_path / "old")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "train.csv").write_text("text,label\na,b\na,b,c,d\n")
    with pytest.raises(UserError, match=r"cannot be read: .*Expected 2 fields in line 3, saw 4"):
        task_of(tmp_path / "odd")


def test_a_folder_called_as_a_reader_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text("text,label\na,x\nb,y\n")
    monkeypatch.chdir(tmp_path)
    assert task_of(Path("csv")).labels == ("x", "y")


def test_an_unreachable_hub_names_the_way_out() -> None:
    with pytest.raises(UserError, match=r"--dataset_name me/mails: the Hugging Face Hub cannot be reached") as caught:
        task_of(Path("me/mails"))
    assert str(caught.value).endswith("use --train_file and --validation_file")


@pytest.mark.parametrize("reached", [True, False])
def test_the_hub_s_cache_is_what_there_is_without_it(monkeypatch: pytest.MonkeyPatch, reached: bool) -> None:
    asked: list[Any] = []

    def load_dataset(path: str, config: str | None, *, split: str, download_config: Any) -> datasets.Dataset:
        asked.append((path, config, split, download_config.local_files_only))
        return table()

    monkeypatch.setattr(dataset_tables, "hub_access", lambda *words, **options: reached)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_dataset("me/news", "en", "train", texts=None, labels=("label",), split_flag="--train_split_name")
    assert asked == [("me/news", "en", "train", not reached)]
    assert (found.source, found.columns, found.classes) == (
        "me/news (en), train",
        ["idx", "text", "label"],
        tuple(NAMES),
    )
    assert found.texts == ("text",)
    assert found.rows[1] == ("row 2", [None, " text 1 ", "business"])  # what nobody asked for is not read


@pytest.mark.parametrize("reached", [True, False])
def test_the_hub_is_asked_once_for_all_splits(monkeypatch: pytest.MonkeyPatch, reached: bool) -> None:
    asked: list[str] = []

    def hub_access(path: str, **options: Any) -> bool:
        asked.append(path)
        return reached

    monkeypatch.setattr(dataset_tables, "hub_access", hub_access)
    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **options: table())
    for name in ("train", "validation", "train"):
        read_dataset("me/news", None, name, texts=None, labels=("label",), split_flag=f"--{name}_split_name")
    assert asked == ["me/news"]
