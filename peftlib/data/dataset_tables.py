"""Load splits from the Hub or a folder with `datasets`, and read them as tables."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

from peftlib.data.tables import Table
from peftlib.errors import UserError
from peftlib.hub import hub_access

_STRINGS = ("string", "large_string")
#: Files by which a folder from `save_to_disk` is recognised: of a DatasetDict, and of a single Dataset.
_SAVED = ("dataset_dict.json", "state.json")


def load_split(path: str, config: str | None, split: str, *, flag: str, split_flag: str = "", ways_out: str) -> Any:
    """Load a split as a `datasets.Dataset`.

    Args:
        path: a name on the Hub, or a folder that `load_dataset` or `load_from_disk` can read.
        config: the dataset's configuration; None if it has only one.
        split: its name, or a slice such as `train[:90%]`.
        flag, split_flag: the flags that asked for it, for error messages.
        ways_out: the user's alternatives, for error messages.

    Raises:
        UserError: it cannot be loaded.
    """
    folder = Path(path)
    if not folder.is_dir() and folder.is_absolute():
        raise UserError(f"{flag}: no such folder")
    offline = not folder.is_dir() and not _hub_answers(path, flag, ways_out)
    import datasets  # takes a second to import, and only these tasks need it

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if folder.is_dir() and any((folder / name).is_file() for name in _SAVED):
            return _saved_split(folder, config, split)
        # Absolute, since datasets would take a folder called csv or text for its reader of that name.
        place = str(folder.resolve()) if folder.is_dir() else path
        cached = datasets.DownloadConfig(local_files_only=offline)
        return datasets.load_dataset(place, config, split=split, download_config=cached)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
        raise UserError(f"{flag}{split_flag}: cannot be read: {reason}") from error


@functools.cache
def _hub_answers(path: str, flag: str, ways_out: str) -> bool:
    """Whether the Hub answers; cached, since each check takes a request, or eight seconds and a warning if it fails."""
    return hub_access(path, repo_type="dataset", flag=flag, ways_out=ways_out)


def _saved_split(folder: Path, config: str | None, split: str) -> Any:
    """A split from a folder that `save_to_disk` has written; a single Dataset counts as "train"."""
    import datasets

    if config is not None:
        raise ValueError(f"a dataset written by save_to_disk has no configuration {config}")
    saved = datasets.load_from_disk(str(folder))
    splits = saved if isinstance(saved, dict) else {"train": saved}
    sizes = {name: len(rows) for name, rows in splits.items()}
    name = re.split(r"[\[+]", split)[0]
    if name not in sizes:
        raise ValueError(f'Unknown split "{name}". Should be one of {list(sizes)}.')
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    places = [range(*slice(part.from_, part.to).indices(sizes[part.splitname])) for part in parts]
    chosen = [splits[part.splitname].select(rows) for part, rows in zip(parts, places, strict=True)]
    return datasets.concatenate_datasets(chosen)


def read_dataset(
    path: str,
    config: str | None,
    split: str,
    *,
    texts: tuple[str, ...] | None,
    labels: tuple[str, ...],
    split_flag: str,
) -> Table:
    """Read a split's text columns, and its label columns if present; ClassLabel indices become class names.

    Args:
        path, config, split, split_flag: as for `load_split`.
        texts: the text columns to read; None for all string columns.
        labels: the label columns.

    Raises:
        UserError: it cannot be loaded.
    """
    ways_out = "--train_file and --validation_file"
    flag, split_flag = f"--dataset_name {path}", f" {split_flag} {split}"
    rows = load_split(path, config, split, flag=flag, split_flag=split_flag, ways_out=ways_out)
    rows = rows.with_format(None)  # it may have been saved with a format, such as tensors, or only some columns
    texts_there = tuple(name for name, feature in rows.features.items() if getattr(feature, "dtype", None) in _STRINGS)
    needed = {*labels, *(texts_there if texts is None else texts)}
    values = {name: rows[name][:] if name in needed else [None] * len(rows) for name in rows.column_names}
    classes: tuple[str, ...] | None = None
    if len(labels) == 1 and labels[0] in values:
        feature = rows.features[labels[0]]
        each = getattr(feature, "feature", feature)  # of a list, the type of its items
        if hasattr(each, "names"):
            classes = tuple(each.names)
            values[labels[0]] = [_by_name(value, classes) for value in values[labels[0]]]
    numbered = [(f"row {number}", list(line)) for number, line in enumerate(zip(*values.values(), strict=True), 1)]
    source = f"{path}{f' ({config})' if config else ''}, {split}"
    return Table(source, rows.column_names, numbered, classes, texts_there)


def _by_name(value: Any, classes: tuple[str, ...]) -> Any:
    """The class name of an index, or the names of a list of indices; None for -1, which marks a hidden label."""
    if isinstance(value, list):
        return [_by_name(index, classes) for index in value]
    return classes[value] if value is not None and 0 <= value < len(classes) else None
