"""What the rows of one's own data are labelled with: a class, any number of classes, or a score."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from peftlib.data.places import OwnData
from peftlib.data.tables import Table, refuse_halves, short
from peftlib.data.tasks import METRICS_OF_OWN_DATA, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Label, Task
from peftlib.errors import UserError, nearest

#: From so many rows on, classes that are more than half as many are taken for numbers that were measured.
_ENOUGH_TO_TELL = 20
#: How columns of one class each say whether it is one of the row's.
_YES_OR_NO = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}


def task_of_labels(name: str, table: Table, own: OwnData) -> Task:
    """The task that the training split's labels describe: its classes are those in it, or those that it names.

    Raises:
        UserError: they are no labels, or fewer than two classes.
    """
    if own.regression:
        _scores(table, Task(name, (), (), problem_type=REGRESSION, own=own), own)
        return Task(name, (), METRICS_OF_OWN_DATA[REGRESSION], problem_type=REGRESSION, own=own)
    kind = MULTI_LABEL if _has_several(table, own) else SINGLE_LABEL
    rows = list(_classes_of_rows(table, own, kind))
    found = [written for _, classes in rows for written in classes]
    classes, columns = set(found), _in_words(own)
    if table.classes is None and len(found) >= _ENOUGH_TO_TELL and len(classes) * 2 > len(found):
        raise UserError(
            f"{table.source}: {columns} has {len(classes):,} classes in {len(rows):,} rows; name the column of "
            "classes in --label_column_name, or use --do_regression if they are numbers to predict"
        )
    ordered = table.classes or (own.label_columns if len(own.label_columns) > 1 else _in_order(classes))
    if len(ordered if kind == MULTI_LABEL else classes) < 2:
        only = f"only {found[0]!r}" if found else "none"
        raise UserError(f"{table.source}: at least two classes are needed, {columns} has {only}")
    return Task(name, tuple(ordered), METRICS_OF_OWN_DATA[kind], problem_type=kind, own=own)


def labels_of_rows(task: Task, table: Table, own: OwnData) -> list[Label]:
    """Each row's label, as `task` has them.

    Raises:
        UserError: a row has none, or one that the task does not know.
    """
    if task.regression:
        return list(_scores(table, task, own))
    places = {label: index for index, label in enumerate(task.labels)}
    if task.hub is not None or task.packaged:  # a task of the table, whose own data hold the indices
        places |= {str(index): index for index in range(len(task.labels))}
    labels: list[Label] = []
    for where, classes in _classes_of_rows(table, own, task.problem_type):
        for written in classes:
            if written not in places:
                raise UserError(
                    f"{table.source}, {where}: the {own.label_columns[0]} {written!r} is not a class of {task.name}"
                    f"{nearest(written, task.labels)} (known: {_some(task.labels)})"
                )
        chosen = {places[written] for written in classes}
        labels.append(
            tuple(int(index in chosen) for index in range(len(task.labels))) if task.multi_label else chosen.pop()
        )
    return labels


def are_missing(table: Table, own: OwnData) -> bool:
    """No such columns, or empty ones, for somebody to fill in."""
    there = [table.place(name) for name in own.label_columns if name in table.columns]
    if len(there) < len(own.label_columns):
        return not there
    return all(row[place] is None or str(row[place]).strip() == "" for _, row in table.rows for place in there)


def _has_several(table: Table, own: OwnData) -> bool:
    """Whether a row has any number of classes."""
    if len(own.label_columns) > 1 or own.label_delimiter is not None:
        return True
    place = table.place_of(own.label_columns[0], "--label_column_name")
    return any(isinstance(row[place], list) for _, row in table.rows)


def _classes_of_rows(table: Table, own: OwnData, kind: str) -> Iterator[tuple[str, list[str]]]:
    """Where each row stands, and the names of its classes: of a single label, one."""
    places = [table.place_of(name, "--label_column_name") for name in own.label_columns]
    for where, row in table.rows:
        if len(places) > 1:
            cells = zip(own.label_columns, places, strict=True)
            yield where, [name for name, at in cells if _applies(row[at], f"{table.source}, {where}: the {name}")]
            continue
        written, what = row[places[0]], f"{table.source}, {where}: the {own.label_columns[0]}"
        if kind == SINGLE_LABEL:
            yield where, [_class(written, what, named=table.classes is not None)]
        else:
            names = _several(written, what, own.label_delimiter)
            yield where, [_class(name, what, named=table.classes is not None) for name in names]


def _several(written: Any, what: str, delimiter: str | None) -> list[Any]:
    """What stands in a field of any number of classes."""
    if delimiter is not None and isinstance(written, str):
        return [name for name in written.split(delimiter) if name.strip()]
    if not isinstance(written, list):
        wanted = "a list of classes" if delimiter is None else f"classes separated by {delimiter!r}"
        raise UserError(f"{what} is {'empty' if written is None else short(written)}; it must be {wanted}")
    return written


def _applies(written: Any, what: str) -> int:
    """Whether a column's class is one of the row's."""
    said = _YES_OR_NO.get(str(written).strip().lower())
    if said is None:
        blank = written is None or str(written).strip() == ""
        raise UserError(
            f"{what} is {'empty' if blank else short(written)}; with several --label_column_name it must be 1 or 0"
        )
    return said


def _class(label: Any, what: str, *, named: bool) -> str:
    """A class's name; whole numbers and JSON's true and false are names as they are written.

    Args:
        named: whether the table names its classes: any text may be one.
    """
    if label is None or (not named and isinstance(label, str) and not label.strip()):
        raise UserError(f"{what} is empty; remove the row")
    if isinstance(label, int):
        return json.dumps(label)
    if not isinstance(label, str):
        raise UserError(f"{what} is {short(label)}; a class must be a name or a whole number")
    if named:
        return label
    refuse_halves(label, what)
    if re.fullmatch(r"\s*[-+]?[0-9]+\.[0-9]+\s*", label):  # as JSON has them without quotes
        raise UserError(
            f"{what} is {label.strip()}; a class must be a name or a whole number: write 1, not 1.0, or use "
            "--do_regression"
        )
    return label.strip()


def _scores(table: Table, task: Task, own: OwnData) -> Iterator[float]:
    (column,) = own.label_columns
    place = table.place_of(column, "--label_column_name")
    for where, row in table.rows:
        score = task.score(row[place])
        if score is None:
            found = f"{table.source}, {where}: the {column} is {short(row[place])}"
            raise UserError(f"{found}; {task.name} has {task.scores_in_words()}")
        yield score


def _in_order(labels: Iterable[str]) -> list[str]:
    """Numbers in theirs, names in alphabetical order."""
    labels = list(labels)
    numbers = all(re.fullmatch(r"-?\d{1,100}", label) for label in labels)  # Python reads no number of 5,000 digits
    return sorted(labels, key=lambda label: (int(label) if numbers else 0, label))


def _in_words(own: OwnData) -> str:
    return ", ".join(map(repr, own.label_columns))


def _some(names: tuple[str, ...], most: int = 20) -> str:
    """As many names as a line has room for."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
