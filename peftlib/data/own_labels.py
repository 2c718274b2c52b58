"""Labels of the user's own data: one class, several classes (multi-label), or a score (regression)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from peftlib.data.places import OwnData
from peftlib.data.tables import Table, and_also, is_blank, refuse_halves, short
from peftlib.data.tasks import METRICS_OF_OWN_DATA, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Label, Task, in_a_list
from peftlib.errors import UserError, nearest

#: From this many labels on, more classes than half as many are taken for measured numbers.
_ENOUGH_TO_TELL = 20
#: What to do about multi-hot vectors, which would be read as lists of the classes 0 and 1.
_NO_MULTI_HOT = "list the names of a row's classes, or use a 0/1 column per class (--label_column_name a,b,c)"
#: Values of a column that stands for one class.
_YES_OR_NO = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}


def task_of_labels(name: str, table: Table, own: OwnData) -> Task:
    """Infer the task from the labels of the training split: its classes are those that it names, or else contains.

    Raises:
        UserError: a value is not a valid label, or there are fewer than two classes.
    """
    if own.regression:
        task = Task(name, (), METRICS_OF_OWN_DATA[REGRESSION], problem_type=REGRESSION, own=own)
        labels_of_rows(task, table, own)  # refuses what is no number
        return task
    kind = MULTI_LABEL if _has_several(table, own) else SINGLE_LABEL
    rows = list(_classes_of_rows(table, own, kind))
    found = [written for _, classes in rows for written in classes]
    classes, columns = set(found), _in_words(own)
    if table.classes is None and len(found) >= _ENOUGH_TO_TELL and len(classes) * 2 > len(found):
        raise UserError(
            f"{table.source}: {columns} has {len(classes):,} classes in {len(rows):,} rows; name the column of "
            "classes in --label_column_name, or use --do_regression if they are numbers to predict"
        )
    of_lists = kind == MULTI_LABEL and len(own.label_columns) == 1 and own.label_delimiter is None
    if of_lists and table.classes is None and found and classes <= {"0", "1", "false", "true"}:
        raise UserError(f"{table.source}: {columns} has lists of {', '.join(sorted(classes))} alone; {_NO_MULTI_HOT}")
    if own.label_delimiter is not None and all(len(classes) <= 1 for _, classes in rows):
        raise UserError(
            f"{table.source}: --label_delimiter {own.label_delimiter!r} is in none of {columns}; name the right one, "
            "or leave it out if each text has one class"
        )
    ordered = table.classes or (own.label_columns if len(own.label_columns) > 1 else _in_order(classes))
    if len(ordered if kind == MULTI_LABEL else classes) < 2:
        only = f"only {found[0]!r}" if found else "none"
        raise UserError(f"{table.source}: at least two classes are needed, {columns} has {only}")
    return Task(name, tuple(ordered), METRICS_OF_OWN_DATA[kind], problem_type=kind, own=own)


def labels_of_rows(task: Task, table: Table, own: OwnData) -> list[Label]:
    """Convert each row's label to the task's form.

    Raises:
        UserError: a row has no label, or one that is not in the task.
    """
    if task.regression:
        return list(_scores(table, task, own))
    places = {label: index for index, label in enumerate(task.labels)}
    if task.hub is not None or task.packaged:  # a task in `TASKS`, whose original data hold indices
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
    """Return whether the table has no labels: no label columns, or only empty ones."""
    there = [table.index_of(name) for name in own.label_columns if name in table.columns]
    if len(there) < len(own.label_columns):
        return not there
    return all(_is_hidden(row[place]) for _, row in table.rows for place in there)


def _is_hidden(value: Any) -> bool:
    """Whether a field is empty; datasets may hide labels as a list of -1, which names no class."""
    if isinstance(value, list):
        return bool(value) and all(name is None for name in value)
    return is_blank(value)


def _has_several(table: Table, own: OwnData) -> bool:
    """Whether the table is multi-label."""
    if len(own.label_columns) > 1 or own.label_delimiter is not None:
        return True
    place = table.index_for_flag(own.label_columns[0], "--label_column_name")
    return any(isinstance(row[place], list) for _, row in table.rows)


def _classes_of_rows(table: Table, own: OwnData, kind: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each row's place and its class names, one of them if the task is single-label."""
    places = [table.index_for_flag(name, "--label_column_name") for name in own.label_columns]
    if kind == SINGLE_LABEL and (empty := _without_class(table, places[0])):
        what = f"{table.source}, {empty[0]}: the {own.label_columns[0]}"
        raise UserError(f"{what} is empty; remove the row{and_also(empty[1:])}")
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
            classes = [_class(name, what, named=table.classes is not None) for name in names]
            if twice := [name for name in classes if classes.count(name) > 1]:
                raise UserError(f"{what} names {twice[0]!r} twice; {_NO_MULTI_HOT}")
            yield where, classes


def _without_class(table: Table, place: int) -> list[str]:
    """The places of the rows without a class; a class that the table declares may be an empty text."""
    declared = table.classes is not None
    return [where for where, row in table.rows if row[place] is None or (is_blank(row[place]) and not declared)]


def _several(written: Any, what: str, delimiter: str | None) -> list[Any]:
    """Parse a multi-label field."""
    if delimiter is not None and isinstance(written, str):
        return [name for name in written.split(delimiter) if name.strip()]
    if not isinstance(written, list):
        wanted = f"classes separated by {delimiter!r}"
        if delimiter is None:
            wanted = "a list of classes, or a text with --label_delimiter between them"
        raise UserError(f"{what} is {'empty' if written is None else short(written)}; it must be {wanted}")
    return written


def _applies(written: Any, what: str) -> int:
    """Parse the field of a column that stands for one class: 1 if the row has the class, else 0."""
    said = _YES_OR_NO.get(str(written).strip().lower())
    if said is None:
        found = "empty" if is_blank(written) else short(written)
        raise UserError(f"{what} is {found}; with several --label_column_name it must be 1 or 0")
    return said


#: Ends the message about a decimal number.
_OF_DECIMALS = ": write 1, not 1.0; for numbers to predict, train with --do_regression"


def _class(label: Any, what: str, *, named: bool) -> str:
    """Parse a class name; whole numbers and JSON's true and false are names as written.

    Args:
        named: whether the table names its classes: then any text is valid.
    """
    if label is None or (not named and isinstance(label, str) and not label.strip()):
        raise UserError(f"{what} is empty; remove the row")
    if isinstance(label, int):
        return json.dumps(label)
    if not isinstance(label, str):
        way = _OF_DECIMALS if isinstance(label, float) else ""
        raise UserError(f"{what} is {short(label)}; a class must be a name or a whole number{way}")
    if named:
        return label
    refuse_halves(label, what)
    if re.fullmatch(r"\s*\[.*\]\s*", label) and isinstance(_literal(label), list):
        raise UserError(
            f"{what} is the list {short(label.strip())} as a text; write JSON, or names with --label_delimiter between"
        )
    if re.fullmatch(r"\s*[-+]?([0-9]+\.[0-9]*|\.[0-9]+)\s*", label):  # refused like a JSON number with a point
        raise UserError(f"{what} is {label.strip()}; a class must be a name or a whole number{_OF_DECIMALS}")
    return label.strip()


def _literal(text: str) -> Any:
    """The value of a Python literal, such as pandas writes into cells; None for any other text."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _scores(table: Table, task: Task, own: OwnData) -> Iterator[float]:
    (column,) = own.label_columns
    place = table.index_for_flag(column, "--label_column_name")
    for where, row in table.rows:
        score = task.parse_score(row[place])
        if score is None:
            found = f"{table.source}, {where}: the {column} is {short(row[place])}"
            if own.regression:
                way = "name their column in --label_column_name"
                written = str(row[place])
                thousands = re.fullmatch(r"-?\d{1,3}(,\d{3})+", written)
                if not thousands and task.parse_score(written.replace(",", ".")) is not None:
                    way = "write a decimal point"
                raise UserError(f"{found}; regression needs numbers: {way}")
            raise UserError(f"{found}; {task.name} has {task.scores_in_words()}")
        yield score


def _in_order(labels: Iterable[str]) -> list[str]:
    """Sort labels numerically if all are whole numbers, else alphabetically."""
    labels = list(labels)
    numbers = all(re.fullmatch(r"-?\d{1,100}", label) for label in labels)  # Python refuses to parse 5,000 digits
    return sorted(labels, key=lambda label: (int(label) if numbers else 0, label))


def _in_words(own: OwnData) -> str:
    return ", ".join(map(repr, own.label_columns))


def _some(names: tuple[str, ...], most: int = 10) -> str:
    """Join at most `most` names, and count the rest."""
    return ", ".join(map(in_a_list, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")
