"""Where a task's rows are: in a GLUE folder, on the Hub, or in data of one's own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GlueFolder:
    """A task's place in the classic GLUE download: `DIR/<folder>/{train,dev,test}.tsv`.

    Attributes:
        label_column: of the splits whose classes are known.
        named: whether classes stand there by their names, and go to GLUE's server by them; otherwise by their indices.
        columns: of files without a header, all but the test split's; None where every file has one.
        broken: whether some rows are cut in two by a line break in a text. The Hub leaves them out, and so do we.
    """

    folder: str
    text_columns: tuple[str, ...]
    label_column: str
    named: bool = False
    columns: tuple[str, ...] | None = None
    broken: bool = False


@dataclass(frozen=True)
class HubDataset:
    """A task's place on the Hugging Face Hub."""

    path: str
    config: str
    text_columns: tuple[str, ...]
    label_column: str = "label"


@dataclass(frozen=True)
class OwnData:
    """A task's place in data of one's own: files, or a dataset on the Hub or in a folder.

    Attributes:
        train, validation, test: files, which are CSV, TSV, JSON or JSON Lines as their names end; or the names of the
            dataset's splits. The last one may lack the label's column.
        text_columns: one or two; None takes the one beside the label's.
        label_columns: one, of classes, lists of classes or scores; or several, one of each class, of 1 and 0.
        dataset: its name on the Hub or folder, and its configuration; None for files.
        label_delimiter: what stands between the names of an example's classes; None for one class, and for lists.
        regression: whether the labels are scores.
    """

    train: str
    validation: str
    text_columns: tuple[str, ...] | None
    label_columns: tuple[str, ...]
    test: str | None = None
    dataset: tuple[str, str | None] | None = None
    label_delimiter: str | None = None
    regression: bool = False
