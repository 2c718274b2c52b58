"""Rows of one's own files: CSV and TSV with a header, JSON, JSON Lines."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftlib.data.tables import Table, read_delimited, read_json
from peftlib.data.tasks import METRICS_OF_FILES, TASKS, Files, Task
from peftlib.errors import UserError, nearest

#: Of the column of classes, when nobody says otherwise.
LABEL_COLUMN = "label"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_KINDS = (*_DELIMITERS, ".json", ".jsonl")
#: From so many examples on, classes that are more than half as many are taken for numbers that were measured.
_ENOUGH_TO_TELL = 20


def files_of(
    train_file: str | None = None,
    validation_file: str | None = None,
    text_column_names: str | None = None,
    label_column_name: str = LABEL_COLUMN,
) -> Files | None:
    """The files that train.py's flags of these names say; None if they name none.

    Raises:
        UserError: one of the flags lacks another.
    """
    if train_file is None or validation_file is None:
        given = {"train_file": train_file, "validation_file": validation_file, "text_column_names": text_column_names}
        alone = [name for name, value in given.items() if value is not None]
        alone += ["label_column_name"] * (label_column_name != LABEL_COLUMN)
        if alone:
            raise UserError(f"--{alone[0]}: files of one's own are a --train_file and a --validation_file; give both")
        return None
    columns = None if text_column_names is None else columns_of(text_column_names, label_column_name)
    return Files(train_file, validation_file, columns, label_column_name)


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


def name_of_files(files: Files) -> str:
    """What a task is called that has no name: as its training file, or the folder of one that is called train."""
    path = Path(files.train)
    name = plain_name(path.resolve().parent.name if path.stem.lower().startswith("train") else path.stem)
    return f"{name}-file" if name in TASKS else name


def plain_name(text: str) -> str:
    """`text` as a folder may be called."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "files"


def task_of_files(files: Files) -> Task:
    """The task that the training file describes: its classes are the labels in it.

    Raises:
        UserError: the file cannot be read, or holds no texts with classes.
    """
    table = _read(files.train, "--train_file")
    found = _labels(table, files)
    files = replace(files, text_columns=_text_columns(table, files))
    _texts(table, files)
    labels = set(found)
    numbers = all(re.fullmatch(r"-?\d+", label) for label in labels)
    if len(labels) < 2:
        raise UserError(f"{table.path}: at least two classes are needed, {files.label_column!r} has only {found[0]!r}")
    if len(found) >= _ENOUGH_TO_TELL and len(labels) * 2 > len(found):
        raise UserError(
            f"{table.path}: {files.label_column!r} has {len(labels):,} classes in {len(found):,} rows; name the column "
            "of classes in --label_column_name"
        )
    ordered = sorted(labels, key=lambda label: (int(label) if numbers else 0, label))
    return Task(name_of_files(files), tuple(ordered), METRICS_OF_FILES, files=files)


def rows_of_files(task: Task, split: str) -> tuple[list[tuple[str, ...]], list[int], str]:
    """Texts, indices of classes, and the path of one split. The test split may lack classes: they are all -1 then.

    Args:
        task: one with files.

    Raises:
        UserError: there is no such split, or its file cannot be read, or holds something else.
    """
    files = task.files
    assert files is not None
    path = {"train": files.train, "validation": files.validation, "test": files.test}[split]
    if path is None:
        raise UserError(f"{task.name} is read from files, and has no {split} split; name its file in --{split}_file")
    table = _read(path, f"--{split}_file")
    files = replace(files, text_columns=_text_columns(table, files))
    texts = _texts(table, files)
    if split == "test" and _has_no_classes(table, files.label_column):
        return texts, [-1] * len(texts), path
    places = {label: index for index, label in enumerate(task.labels)}
    if task.name in TASKS:  # whose own data hold the indices
        places |= {str(index): index for index in range(len(task.labels))}
    labels = _labels(table, files)
    for (where, _), label in zip(table.rows, labels, strict=True):
        if label not in places:
            raise UserError(
                f"{path}, {where}: the {files.label_column} {label!r} is no class of {task.name}"
                f"{nearest(label, task.labels)} (known: {', '.join(task.labels)})"
            )
    return texts, [places[label] for label in labels], path


def _has_no_classes(table: Table, column: str) -> bool:
    """No such column, or an empty one, for somebody to fill in."""
    if column not in table.columns:
        return True
    place = table.place(column)
    return all(row[place] is None or str(row[place]).strip() == "" for _, row in table.rows)


def _text_columns(table: Table, files: Files) -> tuple[str, ...]:
    """Those that are named, or the one beside the label. A column without a name is an index that pandas wrote."""
    if files.text_columns is not None:
        return files.text_columns
    others = [column for column in table.columns if column not in (files.label_column, "")]
    if len(others) != 1:
        raise UserError(
            f"{table.path}: the columns beside {files.label_column!r} are {', '.join(map(repr, others)) or 'none'}; "
            "name the text's, or a pair's with a comma between, in --text_column_names"
        )
    return (others[0],)


def _texts(table: Table, files: Files) -> list[tuple[str, ...]]:
    names = files.text_columns or ()
    places = [_place(table, name, "--text_column_names") for name in names]
    texts = []
    for where, row in table.rows:
        for name, place in zip(names, places, strict=True):
            if not isinstance(row[place], str) or not row[place].strip():
                blank = row[place] is None or isinstance(row[place], str)
                what = "empty" if blank else f"no text ({_short(row[place])})"
                raise UserError(f"{table.path}, {where}: the {name} is {what}; leave the row out")
            _refuse_halves(row[place], f"{table.path}, {where}: the {name}")
        texts.append(tuple(row[place].strip() for place in places))
    return texts


def _labels(table: Table, files: Files) -> list[str]:
    place = _place(table, files.label_column, "--label_column_name")
    return [_class(row[place], f"{table.path}, {where}: the {files.label_column}") for where, row in table.rows]


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
        raise UserError(f"{what} is {label.strip()}; a class is a name or a whole number")
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
    if table.path.suffix.lower() == ".csv" and len(table.columns) == 1 and ";" in table.columns[0]:
        raise UserError(f"{table.path}: has semicolons between its columns; write commas, or tabs in a .tsv file")
    return table.place(name, f"; name it in {flag}")


def _read(name: str, flag: str) -> Table:
    path = Path(name)
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise UserError(f"{flag} {path}: its name must end in {', '.join(_KINDS)}")
    try:
        table = read_delimited(path, _DELIMITERS[kind]) if kind in _DELIMITERS else read_json(path)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror})") from error
    if not table.rows:
        raise UserError(f"{flag} {path}: has no rows")
    return table
