"""Data sources of a task: a GLUE folder, the Hub, or the user's own data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GlueFolder:
    """A task's files in the classic GLUE download: `DIR/<folder>/{train,dev,test}.tsv`.

    Attributes:
        label_column: label column of the splits whose labels are known.
        named: whether the files and GLUE's server write class names; otherwise indices.
        columns: columns of files without a header, which are all but the test split's; None if every file has one.
        broken: whether line breaks in texts cut some rows in two. The Hub omits such rows, and so do we.
    """

    folder: str
    text_columns: tuple[str, ...]
    label_column: str
    named: bool = False
    columns: tuple[str, ...] | None = None
    broken: bool = False


@dataclass(frozen=True)
class HubDataset:
    """A task's dataset on the Hugging Face Hub."""

    path: str
    config: str
    text_columns: tuple[str, ...]
    label_column: str = "label"


@dataclass(frozen=True)
class OwnData:
    """The user's own data: files, or a dataset on the Hub or in a folder.

    Attributes:
        train, validation, test: CSV, TSV, JSON or JSON Lines files, told apart by their suffix; or split names of the
            dataset. The test split may lack label columns.
        text_columns: one or two names; None means the only column besides the label.
        label_columns: one column of classes, lists of classes or scores; or several of 1 and 0, one per class.
        dataset: name on the Hub or folder, and configuration; None for files.
        label_delimiter: separator between the classes of an example; None for one class per example, and for lists.
        regression: whether the labels are scores.
        held_out: percentage of the training rows that are the validation split; None if that is a place of its own.
        unscored: whether the test split is to be read as if it had no labels: those are other than the task's.
    """

    train: str
    validation: str
    text_columns: tuple[str, ...] | None
    label_columns: tuple[str, ...]
    test: str | None = None
    dataset: tuple[str, str | None] | None = None
    label_delimiter: str | None = None
    regression: bool = False
    held_out: int | None = None
    unscored: bool = False
