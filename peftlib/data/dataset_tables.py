"""Splits of datasets, as `datasets` reads them from the Hub or a folder; and tables of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from peftlib.data.tables import Table
from peftlib.errors import UserError
from peftlib.hub import hub_access

_STRINGS = ("string", "large_string")


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
    is_folder = Path(path).is_dir()
    offline = not is_folder and not hub_access(path, repo_type="dataset", flag=flag, ways_out=ways_out)
    import datasets  # a second to import, and only these tasks need it

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if is_folder and (Path(path) / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(path)
            if split not in saved:
                raise ValueError(f'Unknown split "{split}". Should be one of {list(saved)}.')
            return saved[split]
        cached = datasets.DownloadConfig(local_files_only=offline)
        return datasets.load_dataset(path, config, split=split, download_config=cached)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{flag}{split_flag}: cannot be read: {reason}") from error


def read_dataset(
    path: str, config: str | None, split: str, *, texts: tuple[str, ...] | None, label: str, split_flag: str
) -> Table:
    """A split's columns of texts, and the one of classes, if it has one; by their names where the dataset names them.

    Args:
        path, config, split, split_flag: as `load_split` takes them.
        texts: columns to read if they hold no texts, too.
        label: the column of classes.

    Raises:
        UserError: it cannot be had.
    """
    ways_out = "--train_file and --validation_file"
    flag, split_flag = f"--dataset_name {path}", f" {split_flag} {split}"
    rows = load_split(path, config, split, flag=flag, split_flag=split_flag, ways_out=ways_out)
    kinds = {name: getattr(feature, "dtype", None) for name, feature in rows.features.items()}
    columns = [name for name in rows.column_names if name in (label, *(texts or ())) or kinds[name] in _STRINGS]
    values = {name: rows[name][:] for name in columns}
    classes = getattr(rows.features.get(label), "names", None)
    if classes is not None:  # a class that is hidden is -1
        names = dict(enumerate(classes))
        values[label] = [names.get(index) for index in values[label]]
    lines = zip(*values.values(), strict=True) if values else [()] * len(rows)
    numbered = [(f"row {number}", list(line)) for number, line in enumerate(lines, 1)]
    source = f"{path}{f' ({config})' if config else ''}, {split}"
    return Table(source, columns, numbered, None if classes is None else tuple(classes))
