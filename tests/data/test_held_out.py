"""The validation part of the training rows: its size, who is in it, and that nothing but the rows decides."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlib.data.held_out import held_out
from peftlib.data.own_data import own_data_of
from peftlib.data.sources import Examples, find_task, load_examples
from peftlib.errors import UserError

PERCENTAGES = st.integers(1, 99)
#: Texts that are all different, with a class each.
ROWS = st.lists(st.integers(0, 4), max_size=200).map(
    lambda classes: [((f"text {row}",), label) for row, label in enumerate(classes)]
)
#: Texts that may occur several times, with one class or another.
ANY_ROWS = st.lists(st.tuples(st.tuples(st.sampled_from("abcdefghijklmnop")), st.integers(0, 2)), max_size=40)


def parts(rows: list[tuple[tuple[str, ...], int]], percentage: int) -> tuple[list, list]:
    """The rows for training, and those held out."""
    chosen = held_out([text for text, _ in rows], [label for _, label in rows], percentage)
    return tuple([row for row, held in zip(rows, chosen, strict=True) if held == wanted] for wanted in (False, True))


@given(rows=ROWS, percentage=PERCENTAGES)
def test_classes_are_in_proportion_and_each_is_trained_on(rows, percentage):
    train, validation = parts(rows, percentage)
    all_of, trained, held = (Counter(label for _, label in part) for part in (rows, train, validation))
    assert all(trained[label] >= 1 for label in all_of)
    share = percentage / 100
    # Of small classes and large shares: what cannot be taken there is taken elsewhere, or nowhere.
    last_ones = sum(max(0.0, count * share - (count - 1)) for count in all_of.values())
    for label, count in all_of.items():
        assert abs(held[label] - count * share) <= 1 + last_ones
    assert abs(len(validation) - len(rows) * share) <= 0.5 + last_ones


@given(rows=ANY_ROWS, percentage=PERCENTAGES, seed=st.integers())
def test_a_text_is_on_one_side_and_the_order_of_the_rows_does_not_matter(rows, percentage, seed):
    train, validation = parts(rows, percentage)
    assert not {text for text, _ in train} & {text for text, _ in validation}
    assert Counter(train + validation) == Counter(rows)
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert Counter(parts(shuffled, percentage)[1]) == Counter(validation)


@pytest.mark.parametrize("dominated", [0, 1, 2])
def test_a_class_of_one_repeated_text_takes_nothing_from_the_others(dominated):
    """It cannot be divided itself."""
    rows = [(("hello",), dominated)] * 100
    rows += [((f"{label} {row}",), label) for label in {0, 1, 2} - {dominated} for row in range(20)]
    held = Counter(label for _, label in parts(rows, 10)[1])
    assert held.keys() == {0, 1, 2} - {dominated} and all(count in (2, 3) for count in held.values())


@given(rows=ANY_ROWS, percentage=PERCENTAGES)
def test_no_class_gives_more_than_its_share_and_half_a_text(rows, percentage):
    copies = Counter(text for text, _ in rows)
    classes = {text: min(label for other, label in rows if other == text) for text in copies}
    held = Counter(classes[text] for text, _ in parts(rows, percentage)[1])
    for label in {*classes.values()}:
        of_class = [copies[text] for text in copies if classes[text] == label]
        assert held[label] <= percentage / 100 * sum(of_class) + 0.5 + max(of_class) / 2


def test_it_is_the_same_part_in_every_version():
    chosen = held_out([(f"text {i}", "b") for i in range(20)], [i % 2 for i in range(20)], 20)
    assert [i for i, held in enumerate(chosen) if held] == [1, 6, 13, 14]


@pytest.mark.parametrize("labels", [[0.5, 1.5, 2.5, 3.5] * 10, [(0, 1), (1, 1), (0, 0), (1, 0)] * 10])
def test_scores_and_several_classes_are_drawn_from_all_rows(labels):
    assert sum(held_out([(str(i),) for i in range(40)], labels, 25)) == 10


def split(path: Path, percentage: int) -> list[Examples]:
    task = find_task("", own_data_of({"train_file": str(path), "validation_split_percentage": percentage}))
    return [load_examples(task, name) for name in ("train", "validation")]


def test_the_splits_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mails.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{'ham' if i % 4 else 'spam'}\n" for i in range(40)))
    train, validation = split(path, 25)
    assert (len(train), len(validation), sum(validation.labels)) == (30, 10, 2)  # spam: 2.5 of 10
    assert sorted(train.texts + validation.texts) == sorted((f"text {i}",) for i in range(40))
    assert train.texts == sorted(train.texts, key=lambda text: int(text[0][5:]))  # in the file's order
    assert (train.source, validation.source) == (f"{path} without held-out rows", f"{path}, held-out rows")
    with pytest.raises(UserError, match=f"^--validation_split_percentage 1: of the 40 rows of {path}, that is none$"):
        split(path, 1)


def test_a_test_split_of_the_dataset_stays_as_it_is(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("test", 4)):
        rows = "".join(f"{name} {i},{'ab'[i % 2]}\n" for i in range(count))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    task = find_task("", own_data_of({"dataset_name": str(tmp_path), "validation_split_percentage": 20}))
    sizes = [len(load_examples(task, name)) for name in ("train", "validation", "test")]
    assert sizes == [8, 2, 4]
