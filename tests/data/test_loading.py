"""Splits that a run can learn from."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from peftlib.data.loading import build_eval_loader, build_loaders, load_splits, longest_batch, longest_inputs
from peftlib.data.places import OwnData
from peftlib.data.sources import find_task
from peftlib.errors import UserError
from peftlib.modeling import DEFAULT_MODEL, find_model, load_tokenizer


def test_the_first_rows_of_a_file_that_is_sorted_by_class_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sorted.csv"
    path.write_text("text,label\n" + "".join(f"so {n},{label}\n" for label in ("ham", "spam") for n in range(20)))
    task = find_task("sorted", OwnData(str(path), str(path), None, ("label",)))
    tokenizer = load_tokenizer(find_model(DEFAULT_MODEL))

    def first(count: int | None) -> int:
        return len(load_splits(task, tokenizer, None, 16, count, None).train)

    with pytest.raises(UserError, match=r"^--max_train_samples 16: the first 16 .*sorted.csv are all ham; shuffle"):
        first(16)
    assert (first(21), first(None)) == (21, 40)
    assert first(2) == 2  # for a look at one example or two
    with pytest.raises(UserError, match=r"^--max_eval_samples 20: the first 20 .*sorted.csv are all ham; shuffle"):
        load_splits(task, tokenizer, None, 16, None, 20)
    assert len(load_splits(task, tokenizer, None, 16, None, 2).validation) == 2


def test_a_slice_of_a_dataset_that_is_sorted_by_class_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = ["ham", "spam"]
    rows = {"text": [f"so {n}" for n in range(40)], "label": [int(n > 20) for n in range(40)]}
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(tmp_path / "sorted")
    own = OwnData("train[:60%]", "train[60%:]", None, ("label",), dataset=(str(tmp_path / "sorted"), None))
    tokenizer = load_tokenizer(find_model(DEFAULT_MODEL))
    with pytest.raises(UserError, match=r"^16 examples of .*sorted, train\[60%:\] are all spam; shuffle the rows"):
        load_splits(find_task("x", own), tokenizer, None, 16, None, None)


def test_a_split_that_is_scored_again_is_laid_out_as_it_was_in_training(tmp_path: Path) -> None:
    """In batches of other widths a matrix product may round otherwise."""
    (tmp_path / "train.csv").write_text("text,label\na b c d e f g h i j k,x\na,y\n")
    (tmp_path / "dev.csv").write_text("text,label\na b c,x\na,y\n")
    own = OwnData(str(tmp_path / "train.csv"), str(tmp_path / "dev.csv"), None, ("label",))
    tokenizer = load_tokenizer(find_model(DEFAULT_MODEL))
    splits = load_splits(find_task("x", own), tokenizer, None, 64, None, None)
    assert [split["longest"] for split in splits.facts().values()] == [13, 5]
    for pad_to in (0, 20):
        _, in_training, _ = build_loaders(
            splits, tokenizer, (2, 2), 1, 1, seed=1, group_by_length=True, pad_to=pad_to, num_workers=0
        )
        again = build_eval_loader(splits.validation, tokenizer, 2, 1, pad_to=pad_to, widest=13)
        for one, other in zip(in_training, again, strict=True):
            assert one["input_ids"].shape == other["input_ids"].shape == (2, pad_to or 8)


def test_class_weights_are_those_of_the_examples_that_are_used(tmp_path: Path) -> None:
    path = tmp_path / "mails.csv"
    path.write_text("text,label\n" + "a,ham\n" * 3 + "b,spam\n" + "c,spam\n" * 9)
    task = find_task("mails", OwnData(str(path), str(path), None, ("label",)))
    tokenizer = load_tokenizer(find_model(DEFAULT_MODEL))

    def shares(*asked: str) -> tuple[dict[str, float] | None, list[float]]:
        splits = load_splits(task, tokenizer, None, 16, 4, None, *asked)
        train, dev, _ = build_loaders(
            splits, tokenizer, (4, 4), 1, 1, seed=1, group_by_length=True, pad_to=0, num_workers=0
        )
        for batch in dev:  # the last window is short
            assert len(set(batch["weight"].tolist())) == 1
        (batch,) = train
        assert "class_weights" not in splits.facts()["validation"]
        return splits.facts()["train"].get("class_weights"), batch["weight"][batch["example"].argsort()].tolist()

    assert shares() == shares("none") == (None, [0.25] * 4)
    assert shares("balanced") == ({"ham": 4 / 6, "spam": 2.0}, pytest.approx([1 / 6] * 3 + [1 / 2]))
    assert shares('{"spam": 9}') == ({"ham": 1.0, "spam": 9.0}, pytest.approx([1 / 12] * 3 + [9 / 12]))


def test_validation_texts_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\none film,a\none sea,b\none town,a\n")
    (tmp_path / "dev.csv").write_text("text,label\none sea,a\none sea,b\none hill,a\none town,a\n")
    own = OwnData(str(tmp_path / "train.csv"), str(tmp_path / "dev.csv"), None, ("label",))
    task = find_task("x", own)
    for most, leaked in ((None, 3), (2, 2)):
        splits = load_splits(task, load_tokenizer(find_model(DEFAULT_MODEL)), None, 16, most, None)
        assert splits.facts()["validation"]["leaked"] == leaked and "leaked" not in splits.facts()["train"]


def test_the_examples_of_each_class_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": ["y", "z"]}\n')
    (tmp_path / "dev.jsonl").write_text('{"text": "c", "label": ["x"]}\n')
    (tmp_path / "single.csv").write_text("text,label\na,z\nb,x\nc,z\n")
    (tmp_path / "scores.csv").write_text("text,label\na,1\n")
    tokenizer = load_tokenizer(find_model(DEFAULT_MODEL))

    def counts(train: str, dev: str, **how: bool) -> list[list[int] | None]:
        own = OwnData(str(tmp_path / train), str(tmp_path / dev), None, ("label",), **how)
        facts = load_splits(find_task("x", own), tokenizer, None, 16, None, None).facts()
        return [facts[split].get("class_counts") for split in ("train", "validation")]

    assert counts("train.jsonl", "dev.jsonl") == [[1, 2, 1], [1, 0, 0]]
    assert counts("single.csv", "single.csv") == [[1, 2], [1, 2]]
    assert counts("scores.csv", "scores.csv", regression=True) == [None, None]


def test_the_extent_of_splits_is_that_of_the_longer_one(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na b c d,x\na,y\n")
    (tmp_path / "dev.csv").write_text("text,label\na zebra,x\n")
    own = OwnData(str(tmp_path / "train.csv"), str(tmp_path / "dev.csv"), None, ("label",))
    tokenizer = load_tokenizer(find_model(DEFAULT_MODEL))
    splits = load_splits(find_task("x", own), tokenizer, None, 16, None, None)
    zebra = tokenizer.convert_tokens_to_ids("zebra")
    assert (splits.extent(), splits.extent(5), splits.extent(9)) == ((zebra, 6), (zebra, 6), (zebra, 9))


def test_the_longest_examples_as_the_collator_lays_them_out(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,label\na,x\na b c,y\na b,x\n")
    tokenizer = load_tokenizer(find_model(DEFAULT_MODEL))
    splits = load_splits(
        find_task("x", OwnData(str(path), str(path), None, ("label",))), tokenizer, None, 16, None, None
    )
    loader, _, _ = build_loaders(
        splits, tokenizer, (2, 2), 1, 1, seed=1, group_by_length=True, pad_to=9, num_workers=0
    )  # fmt: skip
    batch = longest_batch(loader, 2)
    assert batch["example"].tolist() == [1, 2] and batch["weight"].tolist() == [0.0, 0.0]
    inputs = longest_inputs(loader)
    assert inputs["attention_mask"].tolist() == [[1] * 5 + [0] * 4]
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
