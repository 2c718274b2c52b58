"""The table of tasks: what a task is called, what its rows look like everywhere they come from, how it is scored."""

from __future__ import annotations

from dataclasses import dataclass

from peftlib.errors import UserError, nearest

SPLITS = ("train", "validation", "test")
#: What is trained on when nobody says otherwise; an installed package carries it.
DEFAULT_TASK = "rotten_tomatoes"
#: Of tasks from files: which of two classes would be the one that counts, nobody has said.
METRICS_OF_FILES = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class GlueFolder:
    """A task's place in the classic GLUE download: `DIR/<folder>/{train,dev,test}.tsv`."""

    folder: str
    text_columns: tuple[str, ...]
    label_column: str


@dataclass(frozen=True)
class HubDataset:
    """A task's place on the Hugging Face Hub."""

    path: str
    config: str
    text_columns: tuple[str, ...]
    label_column: str = "label"


@dataclass(frozen=True)
class Files:
    """A task's place in files of one's own: CSV, TSV, JSON or JSON Lines, as their names end.

    Attributes:
        text_columns: one or two; None takes the one beside the label's.
        test: may lack the label's column.
    """

    train: str
    validation: str
    text_columns: tuple[str, ...] | None
    label_column: str
    test: str | None = None


@dataclass(frozen=True)
class Task:
    """One text-classification task.

    Attributes:
        labels: the class names; a row's label is an index into them.
        metrics: names from `evaluation/metrics.py`, larger is better; the first one chooses the best model by default.
        num_train_epochs: passes over the training data when nobody says otherwise.
        packaged: whether an installed package carries the rows.
    """

    name: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    num_train_epochs: int = 3
    packaged: bool = False
    hub: HubDataset | None = None
    glue: GlueFolder | None = None
    files: Files | None = None

    def best_metric(self, wanted: str | None) -> str:
        """The metric that early stopping and the best model go by; None takes the task's own.

        Raises:
            UserError: the task is not scored by it.
        """
        if wanted is not None and wanted not in self.metrics:
            known = ", ".join(self.metrics)
            raise UserError(
                f"--metric_for_best_model {wanted}: {self.name} is scored by {known}{nearest(wanted, self.metrics)}"
            )
        return wanted or self.metrics[0]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            # Pang and Lee, 2005 (https://aclanthology.org/P05-1015): sentences from film reviews.
            name="rotten_tomatoes",
            labels=("negative", "positive"),
            metrics=("accuracy",),
            num_train_epochs=2,  # a third brings BitFit nothing
            packaged=True,
        ),
        Task(
            # Dolan and Brockett, 2005 (https://aclanthology.org/I05-5002): are two sentences paraphrases?
            name="mrpc",
            labels=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            hub=HubDataset("nyu-mll/glue", "mrpc", ("sentence1", "sentence2")),
            glue=GlueFolder("MRPC", ("#1 String", "#2 String"), "Quality"),
        ),
        Task(
            # Socher et al., 2013 (https://aclanthology.org/D13-1170): phrases and sentences from film reviews.
            name="sst2",
            labels=("negative", "positive"),
            metrics=("accuracy",),
            hub=HubDataset("nyu-mll/glue", "sst2", ("sentence",)),
            glue=GlueFolder("SST-2", ("sentence",), "label"),
        ),
    )
}
