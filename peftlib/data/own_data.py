"""Read the user's own data: CSV and TSV with a header, JSON, JSON Lines, datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

from peftlib.data.dataset_tables import read_dataset
from peftlib.data.held_out import held_out
from peftlib.data.own_labels import are_missing, labels_of_rows, task_of_labels
from peftlib.data.places import OwnData
from peftlib.data.tables import DELIMITERS, Table, and_also, is_blank, read_delimited, read_json, refuse_halves, short
from peftlib.data.tasks import TASKS, Label, Task
from peftlib.errors import UserError
from peftlib.files import plain_name
from peftlib.flags import name_own_data

#: Default name of the label column.
LABEL_COLUMN = "label"
#: Flag -> default name of the dataset's split.
SPLIT_NAMES = {"train_split_name": "train", "validation_split_name": "validation", "test_split_name": "test"}
_DEFAULTS: dict[str, str | bool | None] = {
    "dataset_name": None,
    "dataset_config_name": None,
    **SPLIT_NAMES,
    "train_file": None,
    "validation_file": None,
    "validation_split_percentage": None,
    "text_column_names": None,
    "label_column_name": LABEL_COLUMN,
    "label_delimiter": None,
    "do_regression": False,
}
#: All flags on which it depends what is trained on and scored.
DATA_FLAGS = (*_DEFAULTS, "task_name", "data_dir", "max_train_samples", "max_eval_samples")
_KINDS = (*DELIMITERS, ".json", ".jsonl")
#: Files of tables that `datasets` reads.
_FOR_DATASETS = (".parquet", ".arrow")
#: What to do for want of a validation split.
_HOLD_OUT = "--validation_split_percentage 10 to hold out a part of the training data"


def own_data_of(flags: Mapping[str, Any]) -> OwnData | None:
    """Parse train.py's flags for the user's own data; None if they name none.

    Args:
        flags: name -> value; missing ones have their defaults.

    Raises:
        UserError: a flag requires another one, or contradicts it.
    """
    said: dict[str, Any] = {
        name: default if flags.get(name) is None else flags[name] for name, default in _DEFAULTS.items()
    }
    chosen = [name for name, default in _DEFAULTS.items() if said[name] != default]
    files = [name for name in ("train_file", "validation_file") if name in chosen]
    held_out = said["validation_split_percentage"]
    for name in ("validation_file", "validation_split_name"):
        if held_out is not None and name in chosen:
            raise UserError(
                f"--{name} {said[name]}: cannot be combined with --validation_split_percentage; leave one of them out"
            )
    if said["dataset_name"] is not None:
        if files:
            raise UserError(
                f"--{files[0]} {said[files[0]]}: cannot be combined with --dataset_name; leave one of them out"
            )
    elif of_dataset := [name for name in ("dataset_config_name", *SPLIT_NAMES) if name in chosen]:
        raise UserError(f"--{of_dataset[0]} requires --dataset_name")
    elif not chosen:
        return None
    elif said["train_file"] is None:
        raise UserError(f"--{chosen[0]} requires --train_file or --dataset_name")
    elif said["validation_file"] is None and held_out is None:
        raise UserError(f"--train_file {said['train_file']}: requires --validation_file, or {_HOLD_OUT}")
    labels, columns = label_columns_of(said["label_column_name"]), said["text_column_names"]
    texts = None if columns is None else columns_of(columns, labels)
    delimiter, regression = said["label_delimiter"], bool(said["do_regression"])
    if delimiter is not None and (not delimiter.strip() or len(labels) > 1 or regression):
        why = "applies to a single label column of classes" if delimiter.strip() else "must not be blank"
        raise UserError(f"--label_delimiter {delimiter!r}: {why}; leave it out")
    if regression and len(labels) > 1:
        raise UserError(f"--do_regression: needs one label column of numbers, not {', '.join(labels)}")
    kind = {"label_delimiter": delimiter, "regression": regression, "held_out": held_out}
    if files:
        return OwnData(said["train_file"], said["validation_file"] or said["train_file"], texts, labels, **kind)
    train, validation, test = (said[name] for name in SPLIT_NAMES)
    dataset = (said["dataset_name"], said["dataset_config_name"])
    return OwnData(train, validation if held_out is None else train, texts, labels, test, dataset, **kind)


def columns_of(text_column_names: str, label_columns: tuple[str, ...]) -> tuple[str, ...]:
    """Parse the text columns: one name, or two separated by a comma.

    Raises:
        UserError: it is something else, or names a label column.
    """
    columns = tuple(name.strip() for name in text_column_names.split(","))
    if len({*columns, *label_columns} - {""}) != len(columns) + len(label_columns) or len(columns) > 2:
        raise UserError(
            f"--text_column_names {text_column_names}: must be one column, or two separated by a comma, and "
            f"not a label column ({', '.join(label_columns)})"
        )
    return columns


def label_columns_of(label_column_name: str) -> tuple[str, ...]:
    """Parse the label columns: one name, or several separated by commas.

    Raises:
        UserError: a name is empty or repeated.
    """
    columns = tuple(name.strip() for name in label_column_name.split(","))
    if len({*columns} - {""}) != len(columns):
        raise UserError(
            f"--label_column_name {label_column_name}: must be one column, or several different ones separated by "
            "commas, one per class"
        )
    return columns


def task_in_table(flags: Mapping[str, Any]) -> Task | None:
    """Return the entry of `TASKS` that a run's flags name; None for the user's own data, whatever its name.

    Args:
        flags: name -> value; missing ones have their defaults.
    """
    return None if name_own_data(flags) else TASKS.get(flags.get("task_name") or "")


def name_of_own_data(own: OwnData) -> str:
    """Return the task's name: the dataset's or the training file's, or its folder's if the file is called train*.

    A suffix keeps it apart from the names in `TASKS`.
    """
    if own.dataset is not None:
        name = plain_name(Path(own.dataset[0]).resolve().name, otherwise="files")
        return f"{name}-dataset" if name in TASKS else name
    path = Path(own.train)
    stem = path.resolve().parent.name if path.stem.lower().startswith("train") else path.stem
    name = plain_name(stem, otherwise="files")
    return f"{name}-file" if name in TASKS else name


def task_of_own_data(own: OwnData) -> Task:
    """Infer the task from the training split, see `own_labels.task_of_labels`.

    Raises:
        UserError: the split cannot be read, or holds no texts with labels.
    """
    table = _read(own, own.train, "train")
    for name in own.label_columns:  # first, since the text column is found as the one that is no label
        table.index_for_flag(name, "--label_column_name")
    own = replace(own, text_columns=_text_columns(table, own))
    _texts(table, own)
    return task_of_labels(name_of_own_data(own), table, own)


def rows_of_own_data(task: Task, split: str) -> tuple[list[tuple[str, ...]], list[Label], str]:
    """Read the texts, labels and source of one split. A test split without labels gets the task's hidden label.

    Args:
        task: a task on the user's own data.

    Raises:
        UserError: there is no such split, it cannot be read, or its rows do not fit the task.
    """
    own = task.own
    assert own is not None
    place = {"train": own.train, "validation": own.validation, "test": own.test}[split]
    if place is None:
        raise UserError(f"{task.name} is read from files and has no {split} split; give one with --{split}_file")
    share = None if split == "test" else own.held_out
    table = _read(own, place, split if share is None else "train")
    usual = task.hub.text_columns if task.hub is not None else ("text",) * task.packaged
    texts = _texts(table, replace(own, text_columns=_text_columns(table, own, usual)))
    if split == "test" and (own.unscored or are_missing(table, own)):
        return texts, [task.hidden_label] * len(texts), table.source
    try:
        labels = labels_of_rows(task, table, own)
    except UserError as error:
        if split != "test" or own.dataset is not None:
            raise
        raise UserError(f"{error}; to predict without scores, add --ignore_labels") from error
    if share is None:
        return texts, labels, table.source
    held = held_out(texts, labels, share)
    if not any(held):
        raise UserError(
            f"--validation_split_percentage {share}: of the {len(held):,} rows of {table.source}, that is none"
        )
    if split == "train":
        held = [not row for row in held]
    source = table.source + (", held-out rows" if split == "validation" else " without held-out rows")
    return [*compress(texts, held)], [*compress(labels, held)], source


def _text_columns(table: Table, own: OwnData, usual: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The named text columns, or else the only one besides the label. A column without a name is pandas' index.

    Args:
        usual: the text columns of the task in the table, preferred if the file has them.
    """
    if own.text_columns is not None:
        return own.text_columns
    if usual and set(usual) <= set(table.columns):
        return usual
    columns = table.columns if table.texts is None else table.texts
    others = [column for column in columns if column not in (*own.label_columns, "")]
    if len(others) != 1:
        labels = ", ".join(map(repr, own.label_columns))
        raise UserError(
            f"{table.source}: the columns besides {labels} are {', '.join(map(repr, others)) or 'none'}; "
            "name the text column, or two for sentence pairs, in --text_column_names"
        )
    return (others[0],)


def _texts(table: Table, own: OwnData) -> list[tuple[str, ...]]:
    names = own.text_columns or ()
    places = [table.index_for_flag(name, "--text_column_names") for name in names]
    for name, place in zip(names, places, strict=True):
        if empty := [where for where, row in table.rows if is_blank(row[place])]:
            raise UserError(f"{table.source}, {empty[0]}: the {name} is empty; remove the row{and_also(empty[1:])}")
    texts = []
    for where, row in table.rows:
        for name, place in zip(names, places, strict=True):
            if not isinstance(row[place], str):
                way = "write it in quotes, or name another in --text_column_names"
                raise UserError(f"{table.source}, {where}: the {name} is not a text ({short(row[place])}); {way}")
            refuse_halves(row[place], f"{table.source}, {where}: the {name}")
        texts.append(tuple(row[place].strip() for place in places))
    return texts


def _read(own: OwnData, place: str, split: str) -> Table:
    """Read a file, or a split of the dataset."""
    if own.dataset is None:
        flag = f"--{split}_file"
        table = _read_file(Path(place), flag)
    else:
        flag = f"--{split}_split_name"
        try:
            table = read_dataset(*own.dataset, place, texts=own.text_columns, labels=own.label_columns, split_flag=flag)
        except UserError as error:
            if split == "validation" and "Unknown split" in str(error):  # what datasets calls it
                raise UserError(f"{error} Name another one, or use {_HOLD_OUT}") from error
            raise
    if not table.rows:
        raise UserError(f"{flag} {place}: has no rows")
    return table


def _read_file(path: Path, flag: str) -> Table:
    kind = path.suffix.lower()
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; name a file in it, or use --dataset_name for a saved dataset")
    if kind not in _KINDS:
        way = "; name its folder in --dataset_name instead" if kind in _FOR_DATASETS else ""
        raise UserError(f"{flag} {path}: its name must end in {', '.join(_KINDS)}{way}")
    try:
        return read_delimited(path, DELIMITERS[kind]) if kind in DELIMITERS else read_json(path)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror})") from error
