"""Splits of datasets, as `datasets` reads them from the Hub or a folder; and tables of them."""

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
#: What `save_to_disk` leaves of several splits, and of one.
_SAVED = ("dataset_dict.json", "state.json")


def load_split(path: str, config: str | None, split: str, *, flag: str, split_flag: str = "", ways_out: str) -> Any:
    """A `datasets.Dataset`.

    Args:
        path: a name on the Hub, or a folder that `load_dataset` or `load_from_disk` takes.
        config: of the dataset's configurations; None where there is one.
        split: its name, or a slice such as `train[:90%]`.
        flag, split_flag: what asked for it, for errors.
        ways_out: what else the user can do, for errors.

    Raises:
        UserError: it cannot be had.
    """
    folder = Path(path)
    if not folder.is_dir() and folder.is_absolute():
        raise UserError(f"{flag}: no such folder")
    offline = not folder.is_dir() and not _hub_answers(path, flag, ways_out)
    import datasets  # a second to import, and only these tasks need it

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if folder.is_dir() and any((folder / name).is_file() for name in _SAVED):
            return _saved_split(folder, config, split)
        # The whole path: datasets has readers called csv and text, say.
        place = str(folder.resolve()) if folder.is_dir() else path
        cached = datasets.DownloadConfig(local_files_only=offline)
        return datasets.load_dataset(place, config, split=split, download_config=cached)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
        raise UserError(f"{flag}{split_flag}: cannot be read: {reason}") from error


@functools.cache
def _hub_answers(path: str, flag: str, ways_out: str) -> bool:
    """Asked once for all splits: each time takes a request, or without an answer eight seconds and a warning."""
    return hub_access(path, repo_type="dataset", flag=flag, ways_out=ways_out)


def _saved_split(folder: Path, config: str | None, split: str) -> Any:
    """Of what `save_to_disk` has written; a dataset without splits is all "train"."""
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
    """A split's columns of texts, and those of labels that it has; classes by their names where it names them.

    Args:
        path, config, split, split_flag: as `load_split` takes them.
        texts: the columns to read; None for all that hold texts.
        labels: the columns of labels.

    Raises:
        UserError: it cannot be had.
    """
    ways_out = "--train_file and --validation_file"
    flag, split_flag = f"--dataset_name {path}", f" {split_flag} {split}"
    rows = load_split(path, config, split, flag=flag, split_flag=split_flag, ways_out=ways_out)
    rows = rows.with_format(None)  # it may have been saved as one of tensors, or of some columns
    texts_there = tuple(name for name, feature in rows.features.items() if getattr(feature, "dtype", None) in _STRINGS)
    needed = {*labels, *(texts_there if texts is None else texts)}
    values = {name: rows[name][:] if name in needed else [None] * len(rows) for name in rows.column_names}
    classes: tuple[str, ...] | None = None
    if len(labels) == 1 and labels[0] in values:
        feature = rows.features[labels[0]]
        each = getattr(feature, "feature", feature)  # of lists, what is in them
        if hasattr(each, "names"):
            classes = tuple(each.names)
            values[labels[0]] = [_by_name(value, classes) for value in values[labels[0]]]
    numbered = [(f"row {number}", list(line)) for number, line in enumerate(zip(*values.values(), strict=True), 1)]
    source = f"{path}{f' ({config})' if config else ''}, {split}"
    return Table(source, rows.column_names, numbered, classes, texts_there)


def _by_name(value: Any, classes: tuple[str, ...]) -> Any:
    """A class, or a list of classes, by their names. One that is hidden is -1."""
    if isinstance(value, list):
        return [_by_name(one, classes) for one in value]
    return classes[value] if value is not None and 0 <= value < len(classes) else None
