"""Rows of one's own data: CSV and TSV with a header, JSON, JSON Lines, datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftlib.data.dataset_tables import read_dataset
from peftlib.data.tables import Table, read_delimited, read_json
from peftlib.data.tasks import METRICS_OF_OWN_DATA, TASKS, OwnData, Task
from peftlib.errors import UserError, nearest

#: Of the column of classes, when nobody says otherwise.
LABEL_COLUMN = "label"
#: What the splits of a dataset are called, when nobody says otherwise.
SPLIT_NAMES = {"train_split_name": "train", "validation_split_name": "validation", "test_split_name": "test"}
_DEFAULTS: dict[str, str | None] = {
    "dataset_name": None,
    "dataset_config_name": None,
    **SPLIT_NAMES,
    "train_file": None,
    "validation_file": None,
    "text_column_names": None,
    "label_column_name": LABEL_COLUMN,
}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_KINDS = (*_DELIMITERS, ".json", ".jsonl")
#: From so many examples on, classes that are more than half as many are taken for numbers that were measured.
_ENOUGH_TO_TELL = 20


def own_data_of(flags: Mapping[str, Any]) -> OwnData | None:
    """What train.py's flags say of data of one's own; None if they name none.

    Args:
        flags: name -> value; what is missing is at its default.

    Raises:
        UserError: one of the flags lacks another, or contradicts it.
    """
    said: dict[str, Any] = {
        name: default if flags.get(name) is None else flags[name] for name, default in _DEFAULTS.items()
    }
    chosen = [name for name, default in _DEFAULTS.items() if said[name] != default]
    files = [name for name in ("train_file", "validation_file") if name in chosen]
    if said["dataset_name"] is not None:
        if files:
            raise UserError(
                f"--{files[0]} {said[files[0]]}: --dataset_name brings its own data; leave one of the two out"
            )
    elif of_dataset := [name for name in ("dataset_config_name", *SPLIT_NAMES) if name in chosen]:
        raise UserError(f"--{of_dataset[0]}: is of a --dataset_name; name that too")
    elif not chosen:
        return None
    elif len(files) < 2:
        raise UserError(
            f"--{chosen[0]}: data of one's own are a --train_file and a --validation_file, or a --dataset_name"
        )
    label, columns = said["label_column_name"], said["text_column_names"]
    texts = None if columns is None else columns_of(columns, label)
    if files:
        return OwnData(said["train_file"], said["validation_file"], texts, label)
    train, validation, test = (said[name] for name in SPLIT_NAMES)
    return OwnData(train, validation, texts, label, test, (said["dataset_name"], said["dataset_config_name"]))


def columns_of(text_column_names: str, label_column: str) -> tuple[str, ...]:
    """One name, or two with a comma between.

    Raises:
        UserError: it is something else, or the label's column.
    """
    columns = tuple(name.strip() for name in text_column_names.split(","))
    if len({*columns, label_column} - {""}) != len(columns) + 1 or len(columns) > 2:
        raise UserError(
            f"--text_column_names {text_column_names}: must be one column's name, or two with a comma between, and "
            f"none of them the classes' ({label_column})"
        )
    return columns


def task_in_table(flags: Mapping[str, Any]) -> Task | None:
    """The entry of `TASKS` that a run's flags name; None for data of one's own, whatever they are called.

    Args:
        flags: name -> value; what is missing is at its default.
    """
    own = flags.get("train_file") or flags.get("dataset_name")
    return None if own else TASKS.get(flags.get("task_name") or "")


def name_of_own_data(own: OwnData) -> str:
    """What a task is called that has no name: as its dataset or training file, or the folder of a file called train."""
    if own.dataset is not None:
        name = plain_name(Path(own.dataset[0]).resolve().name)
        return f"{name}-dataset" if name in TASKS else name
    path = Path(own.train)
    name = plain_name(path.resolve().parent.name if path.stem.lower().startswith("train") else path.stem)
    return f"{name}-file" if name in TASKS else name


def plain_name(text: str) -> str:
    """`text` as a folder may be called."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "files"


def task_of_own_data(own: OwnData) -> Task:
    """The task that the training split describes: its classes are the labels in it, or those that the dataset names.

    Raises:
        UserError: it cannot be read, or holds no texts with classes.
    """
    table = _read(own, own.train, "train")
    found = _labels(table, own)
    own = replace(own, text_columns=_text_columns(table, own))
    _texts(table, own)
    name = name_of_own_data(own)
    labels = set(found)
    numbers = all(re.fullmatch(r"-?\d{1,100}", label) for label in labels)  # Python reads no number of 5,000 digits
    if len(labels) < 2:
        raise UserError(f"{table.source}: at least two classes are needed, {own.label_column!r} has only {found[0]!r}")
    if table.classes is None and len(found) >= _ENOUGH_TO_TELL and len(labels) * 2 > len(found):
        raise UserError(
            f"{table.source}: {own.label_column!r} has {len(labels):,} classes in {len(found):,} rows; name the column "
            "of classes in --label_column_name"
        )
    if table.classes is not None:
        return Task(name, table.classes, METRICS_OF_OWN_DATA, own=own)
    ordered = sorted(labels, key=lambda label: (int(label) if numbers else 0, label))
    return Task(name, tuple(ordered), METRICS_OF_OWN_DATA, own=own)


def rows_of_own_data(task: Task, split: str) -> tuple[list[tuple[str, ...]], list[int] | list[float], str]:
    """Texts, indices of classes or scores, and the place of one split. The test split may lack them: all are -1 then.

    Args:
        task: one with data of one's own.

    Raises:
        UserError: there is no such split, or it cannot be read, or holds something else.
    """
    own = task.own
    assert own is not None
    place = {"train": own.train, "validation": own.validation, "test": own.test}[split]
    if place is None:
        raise UserError(f"{task.name} is read from files, and has no {split} split; name its file in --{split}_file")
    table = _read(own, place, split)
    usual = task.hub.text_columns if task.hub is not None else ("text",) * task.packaged
    own = replace(own, text_columns=_text_columns(table, own, usual))
    texts = _texts(table, own)
    if split == "test" and _has_no_classes(table, own.label_column):
        return texts, [-1] * len(texts), table.source
    if task.regression:
        return texts, _scores(table, task, own.label_column), table.source
    places = {label: index for index, label in enumerate(task.labels)}
    if task.hub is not None or task.packaged:  # a task of the table, whose own data hold the indices
        places |= {str(index): index for index in range(len(task.labels))}
    labels = _labels(table, own)
    for (where, _), label in zip(table.rows, labels, strict=True):
        if label not in places:
            raise UserError(
                f"{table.source}, {where}: the {own.label_column} {label!r} is no class of {task.name}"
                f"{nearest(label, task.labels)} (known: {_some(task.labels)})"
            )
    return texts, [places[label] for label in labels], table.source


def _scores(table: Table, task: Task, column: str) -> list[float]:
    place = _place(table, column, "--label_column_name")
    scores = []
    for where, row in table.rows:
        score = task.score(row[place])
        if score is None:
            found = f"{table.source}, {where}: the {column} is {_short(row[place])}"
            raise UserError(f"{found}; {task.name} has {task.scores_in_words()}")
        scores.append(score)
    return scores


def _some(names: tuple[str, ...], most: int = 20) -> str:
    """As many names as a line has room for."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _has_no_classes(table: Table, column: str) -> bool:
    """No such column, or an empty one, for somebody to fill in."""
    if column not in table.columns:
        return True
    place = table.place(column)
    return all(row[place] is None or str(row[place]).strip() == "" for _, row in table.rows)


def _text_columns(table: Table, own: OwnData, usual: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Those that are named, or the one beside the label. A column without a name is an index that pandas wrote.

    Args:
        usual: what the task's own data call them.
    """
    if own.text_columns is not None:
        return own.text_columns
    if usual and set(usual) <= set(table.columns):
        return usual
    columns = table.columns if table.texts is None else table.texts
    others = [column for column in columns if column not in (own.label_column, "")]
    if len(others) != 1:
        raise UserError(
            f"{table.source}: the columns beside {own.label_column!r} are {', '.join(map(repr, others)) or 'none'}; "
            "name the text's, or a pair's with a comma between, in --text_column_names"
        )
    return (others[0],)


def _texts(table: Table, own: OwnData) -> list[tuple[str, ...]]:
    names = own.text_columns or ()
    places = [_place(table, name, "--text_column_names") for name in names]
    texts = []
    for where, row in table.rows:
        for name, place in zip(names, places, strict=True):
            if not isinstance(row[place], str) or not row[place].strip():
                blank = row[place] is None or isinstance(row[place], str)
                what = "empty" if blank else f"no text ({_short(row[place])})"
                raise UserError(f"{table.source}, {where}: the {name} is {what}; leave the row out")
            _refuse_halves(row[place], f"{table.source}, {where}: the {name}")
        texts.append(tuple(row[place].strip() for place in places))
    return texts


def _labels(table: Table, own: OwnData) -> list[str]:
    if table.classes is not None:  # names as the dataset has them
        place = table.place(own.label_column)
        if lost := [where for where, row in table.rows if row[place] is None]:
            raise UserError(f"{table.source}, {lost[0]}: the {own.label_column} is empty; leave the row out")
        return [row[place] for _, row in table.rows]
    place = _place(table, own.label_column, "--label_column_name")
    return [_class(row[place], f"{table.source}, {where}: the {own.label_column}") for where, row in table.rows]


def _class(label: Any, what: str) -> str:
    """A class's name; whole numbers and JSON's true and false are names as they are written."""
    if isinstance(label, int):
        return json.dumps(label)
    if label is None or (isinstance(label, str) and not label.strip()):
        raise UserError(f"{what} is empty; leave the row out")
    if not isinstance(label, str):
        raise UserError(f"{what} is {_short(label)}; a class is a name or a whole number")
    _refuse_halves(label, what)
    if re.fullmatch(r"\s*[-+]?[0-9]+\.[0-9]+\s*", label):  # as JSON has them without quotes
        raise UserError(f"{what} is {label.strip()}; a class is a name or a whole number: write 1, not 1.0")
    return label.strip()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}…"


def _refuse_halves(text: str, what: str) -> None:
    """JSON can hold half of a character, where a text was cut between a pair of UTF-16's words."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} has half a character at {error.start}; mend it or leave the row out") from error


def _place(table: Table, name: str, flag: str) -> int:
    if table.source.lower().endswith(".csv") and len(table.columns) == 1 and ";" in table.columns[0]:
        raise UserError(f"{table.source}: has semicolons between its columns; write commas, or tabs in a .tsv file")
    header = (
        ", or write a first line with the columns' names" if Path(table.source).suffix.lower() in _DELIMITERS else ""
    )
    return table.place(name, f"; name it in {flag}{header}")


def _read(own: OwnData, place: str, split: str) -> Table:
    """A file, or a split of the dataset."""
    if own.dataset is None:
        flag = f"--{split}_file"
        table = _read_file(Path(place), flag)
    else:
        flag = f"--{split}_split_name"
        table = read_dataset(*own.dataset, place, texts=own.text_columns, label=own.label_column, split_flag=flag)
    if not table.rows:
        raise UserError(f"{flag} {place}: has no rows")
    return table


def _read_file(path: Path, flag: str) -> Table:
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise UserError(f"{flag} {path}: its name must end in {', '.join(_KINDS)}")
    try:
        return read_delimited(path, _DELIMITERS[kind]) if kind in _DELIMITERS else read_json(path)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror})") from error
