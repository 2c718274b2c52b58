"""A class, any number of classes, or a score: what rows of one's own data are labelled with."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftlib.data.own_data import own_data_of
from peftlib.data.sources import find_task, load_examples
from peftlib.data.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task
from peftlib.errors import UserError

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="|,"), min_size=1, max_size=5).map(
    str.strip
)
#: Names of classes, and for some rows which of them each has.
SETS = st.lists(NAMES.filter(lambda name: name[:1].isalpha()), min_size=2, max_size=5, unique=True).flatmap(
    lambda names: st.tuples(
        st.just(sorted(names)),
        st.lists(st.lists(st.booleans(), min_size=len(names), max_size=len(names)), min_size=1, max_size=6),
    )
)


def read(train: Path, split: str = "validation", **flags: Any) -> tuple[Task, list[Any]]:
    own = own_data_of({"train_file": str(train), "validation_file": str(train), **flags})
    task = find_task("", own)
    return task, load_examples(task, split).labels


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SETS)
def test_the_same_classes_in_any_of_the_forms(tmp_path: Path, sets: tuple[list[str], list[list[bool]]]) -> None:
    """A column for each, lists, and names with something between; the first row has all, so that all are known."""
    names, rows = sets
    rows = [[True] * len(names), *rows]
    chosen = [[name for name, has in zip(names, row, strict=True) if has] for row in rows]
    expected = [tuple(map(int, row)) for row in rows]
    columns = [{f"of {name}": int(has) for name, has in zip(names, row, strict=True)} for row in rows]
    of_columns = ",".join(columns[0])
    files: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
        ("a.json", [{"text": "x", "label": some} for some in chosen], {}),
        ("b.csv", [{"text": "x", "label": " | ".join(some)} for some in chosen], {"label_delimiter": "|"}),
        ("c.csv", [{"text": "x", **row} for row in columns], {"label_column_name": of_columns}),
        ("d.json", [{"text": "x", **{k: bool(v) for k, v in row.items()}} for row in columns],
         {"label_column_name": of_columns}),
    ]  # fmt: skip
    for name, content, flags in files:
        task, labels = read(written(tmp_path / name, content), **flags)
        assert (task.problem_type, labels) == (MULTI_LABEL, expected), name
        assert task.labels == (tuple(columns[0]) if "label_column_name" in flags else tuple(names))
        assert task.written(labels[-1]) == "|".join(
            [f"of {one}" for one in chosen[-1]] if "label_column_name" in flags else chosen[-1]
        )


def test_lists_of_a_dataset_s_own_classes(tmp_path: Path) -> None:
    """The classes are those that it names, in its order, whether a row has them or not."""
    rows = {"text": ["a", "b", "c"], "tags": [[2], [], [0, 2]]}
    of_tags = datasets.List(datasets.ClassLabel(names=["news", "ad", "1.0"]))
    features = datasets.Features({"text": datasets.Value("string"), "tags": of_tags})
    kept = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": kept, "validation": kept}).save_to_disk(tmp_path / "mails")
    own = own_data_of({"dataset_name": str(tmp_path / "mails"), "label_column_name": "tags"})
    task = find_task("", own)
    assert (task.labels, task.problem_type) == (("news", "ad", "1.0"), MULTI_LABEL)
    assert load_examples(task, "validation").labels == [(0, 0, 1), (0, 0, 0), (1, 0, 1)]


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        ('[{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": "x"}]', {}, "row 2: the label is 'x'; it must"),
        ('[{"text": "a", "label": ["x", "y"]}, {"text": "b"}]', {}, "row 2: the label is empty; it must be"),
        ('[{"text": "a", "label": ["x", 0.5]}]', {}, "row 1: the label is 0.5; a class must be"),
        ('[{"text": "a", "label": ["x", null]}]', {}, "row 1: the label is empty; remove the row"),
        ('[{"text": "a", "label": ["x"]}]', {}, "at least two classes are needed, 'label' has only 'x'"),
        ('[{"text": "a", "label": [1, 1, 0]}]', {}, "row 1: the label names '1' twice; list the"),
        ('[{"text": "a", "label": [0, 1]}, {"text": "b", "label": [1, 0]}]', {}, "lists of 0, 1 alone; list the names"),
        ('[{"text": "a", "label": [true, false]}]', {}, "lists of false, true alone; list"),
        ('[{"text": "a", "label": ["x", "y", "x"]}]', {}, "row 1: the label names 'x' twice; list the names of a row"),
        ('[{"text": "a", "label": []}]', {}, "at least two classes are needed, 'label' has none"),
        ('[{"text": "a", "label": 3}]', {"label_delimiter": ","}, "the label is 3; it must be classes sep"),
        ('[{"text": "a", "label": "x;y"}, {"text": "b", "label": "x"}]', {"label_delimiter": "|"}, "'|' is in none of"),
        ('[{"text": "a", "label": "x;y"}, {"text": "b", "label": ""}]', {"label_delimiter": "|"}, "'|' is in none of"),
        ("""[{"text": "a", "label": "['x', 'y']"}]""", {}, "is the list \"['x', 'y']\" as a text; write JSON, or"),
        ('[{"text": "a", "label": "1."}]', {}, "the label is 1.; a class must be a name or a whole number"),
        ('[{"text": "a", "p": 1, "q": 2}]', {"label_column_name": "p,q"}, "the q is 2; with several"),
        ('[{"text": "a", "p": 1, "q": ""}]', {"label_column_name": "p,q"}, "the q is empty; with several"),
        ('[{"text": "a", "p": 1}]', {"label_column_name": "p,q"}, "no column 'q' (there are: text, p); name"),
        ('[{"text": "a", "label": "x"}]', {"do_regression": True}, "the label is 'x'; regression needs numbers"),
        ('[{"text": "a", "label": "1,5"}]', {"do_regression": True}, "is '1,5'; regression needs numbers: write"),
        ('[{"text": "a", "label": "1,000"}]', {"do_regression": True}, "is '1,000'; regression needs numbers: name"),
        ('[{"text": "a", "label": 1e39}]', {"do_regression": True}, "is 1e+39; regression needs numbers"),
    ],
)  # fmt: skip
def test_what_is_no_such_label_is_one_line(tmp_path: Path, content: str, flags: dict[str, Any], said: str) -> None:
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "own.json", **flags)
    assert said in str(caught.value) and str(tmp_path / "own.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"label_delimiter": "|", "label_column_name": "a,b"}, "--label_delimiter '|': applies to a single"),
        ({"label_delimiter": "|", "do_regression": True}, "--label_delimiter '|': applies to a single"),
        ({"label_delimiter": " "}, "--label_delimiter ' ': must not be blank; leave it out"),
        ({"do_regression": True, "label_column_name": "a,b"}, "--do_regression: needs one label column"),
        ({"label_column_name": "a,,b"}, "--label_column_name a,,b: must be one column"),
        ({"label_column_name": "a,a"}, "--label_column_name a,a: must be one column"),
        ({"text_column_names": "b", "label_column_name": "a,b"}, "not a label column (a, b)"),
    ],
)  # fmt: skip
def test_flags_that_contradict_each_other_are_one_line(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        own_data_of({"train_file": "a.csv", "validation_file": "b.csv", **flags})
    assert said in str(caught.value)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_any_numbers_are_scores(tmp_path: Path, numbers: list[float]) -> None:
    path = written(tmp_path / "own.csv", [{"text": "x", "label": number} for number in numbers])
    task, labels = read(path, do_regression=True)
    assert (task.problem_type, task.labels, task.metrics) == (REGRESSION, (), ("r2", "pearson", "spearmanr"))
    assert labels == np.asarray(numbers, np.float32).tolist()


def test_labels_that_are_kept_back_are_told_from_scores_below_0(tmp_path: Path) -> None:
    path = written(tmp_path / "own.csv", [{"text": "x", "label": score} for score in (-1, -2.5)])
    own = own_data_of({"train_file": str(path), "validation_file": str(path), "do_regression": True})
    examples = load_examples(find_task("", own), "validation")
    assert (examples.labels, examples.labelled) == ([-1.0, -2.5], True)


@pytest.mark.parametrize(
    ("flags", "content", "expected"),
    [
        ({"label_column_name": "p,q"}, "text,p,q\nx,1,0\ny,1,1\n", (-1, -1)),
        ({"label_delimiter": ";"}, "text,label\nx,p;q\ny,\n", (-1, -1)),
        ({"do_regression": True}, "text,label\nx,1.5\ny,2\n", math.nan),
        ({}, "text,label\nx,p\ny,q\n", -1),
    ],
)
def test_a_test_file_may_lack_them(tmp_path: Path, flags: dict[str, Any], content: str, expected: Any) -> None:
    for name, text in (("own.csv", content), ("new.csv", "text\nx\n"), ("old.csv", content.replace("y", "z"))):
        (tmp_path / name).write_text(text)
    own = own_data_of({"train_file": str(tmp_path / "own.csv"), "validation_file": str(tmp_path / "own.csv"), **flags})
    task = find_task("", own)
    hidden = load_examples(replace(task, own=replace(task.own, test=str(tmp_path / "new.csv"))), "test")
    assert not hidden.labelled
    assert hidden.labels == [expected] or math.isnan(hidden.labels[0])
    known = load_examples(replace(task, own=replace(task.own, test=str(tmp_path / "old.csv"))), "test")
    assert known.labelled and known.labels == load_examples(task, "train").labels


def test_one_class_is_what_it_was(tmp_path: Path) -> None:
    """A comma or a bar in a class's name is a part of it where nobody says otherwise."""
    rows = [{"text": "x", "label": label} for label in ("a|b", "a, b")]
    task, labels = read(written(tmp_path / "own.csv", rows))
    assert (task.problem_type, task.labels, labels) == (SINGLE_LABEL, ("a, b", "a|b"), [1, 0])
