"""The task table: each task's name, labels, metrics, and the layout of its rows in every data source."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlib.data.places import GlueFolder, HubDataset, OwnData
from peftlib.errors import UserError, nearest

SPLITS = ("train", "validation", "test")
#: Additional splits of MNLI.
MISMATCHED_SPLITS = ("validation_mismatched", "test_mismatched")
#: GLUE's diagnostics (section 4 of its paper), under their name on the Hub: sentence pairs for models trained on MNLI.
DIAGNOSTICS = "ax"
#: Splits whose labels GLUE may hide.
HIDABLE_SPLITS = ("test", "test_mismatched", DIAGNOSTICS)
#: The default; its data are in an installed package.
DEFAULT_TASK = "rotten_tomatoes"
#: The values of `problem_type` in transformers' configurations.
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
#: Metrics for the user's own data. No binary F1, since the positive class is unknown. Regression has R² first, which a
#: wrong scale lowers: a correlation would select a state whose predictions are all twice too high.
METRICS_OF_OWN_DATA = {
    SINGLE_LABEL: ("accuracy", "macro_f1"),
    MULTI_LABEL: ("micro_f1", "macro_f1", "subset_accuracy"),
    REGRESSION: ("r2", "pearson", "spearmanr"),
}
#: The loss of evaluations, by which a run may choose its best state too; unlike metrics, it is better when smaller.
LOSS = "loss"
#: Separator of an example's class names in one field.
BETWEEN_CLASSES = "|"
#: The range of fp32, for scores without a range of their own.
_ANY_SCORE = (-3.4028234663852886e38, 3.4028234663852886e38)

#: A class index; a multi-hot tuple for multi-label tasks; or a score for regression.
Label = int | tuple[int, ...] | float


@dataclass(frozen=True)
class Task:
    """One task: text classification or regression.

    Attributes:
        labels: the class names, in the order of their indices; empty for regression.
        metrics: names from `evaluation/metrics.py`, larger is better; the first one selects the best state by default.
        num_train_epochs: default number of passes over the training data.
        packaged: whether an installed package contains the rows.
        mismatched: whether there are second validation and test splits, of genres other than the training split's.
        diagnostics: whether GLUE's diagnostics apply to its models.
        problem_type: `SINGLE_LABEL`, `MULTI_LABEL` or `REGRESSION`.
        score_range: lowest and highest possible score; None for classification, and if any number is allowed.
    """

    name: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    num_train_epochs: int = 3
    packaged: bool = False
    mismatched: bool = False
    problem_type: str = SINGLE_LABEL
    diagnostics: bool = False
    score_range: tuple[float, float] | None = None
    hub: HubDataset | None = None
    glue: GlueFolder | None = None
    own: OwnData | None = None

    @property
    def regression(self) -> bool:
        """Whether it predicts a score: one output, trained with the mean squared error."""
        return self.problem_type == REGRESSION

    @property
    def multi_label(self) -> bool:
        """Whether a text may have any number of classes: one decision per class, trained with binary cross-entropy."""
        return self.problem_type == MULTI_LABEL

    @property
    def hidden_label(self) -> Label:
        """Placeholder for a hidden label: -1, for regression NaN, since -1 may be a score."""
        if self.regression:
            return math.nan
        return (-1,) * len(self.labels) if self.multi_label else -1

    @property
    def texts_per_example(self) -> int:
        """2 for sentence pairs, else 1."""
        columns = None if self.own is None else self.own.text_columns
        return len((columns if self.hub is None else self.hub.text_columns) or ("text",))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits."""
        return SPLITS + MISMATCHED_SPLITS * self.mismatched + (DIAGNOSTICS,) * self.diagnostics

    def published_split(self, split: str) -> str:
        """Return a split's public name: MNLI's end in "_matched"."""
        return f"{split}_matched" if self.mismatched and split in ("validation", "test") else split

    def split_on_hub(self, split: str) -> tuple[str, str]:
        """Return a split's configuration and name on the Hub, where the diagnostics have their own configuration."""
        assert self.hub is not None, self.name
        return (DIAGNOSTICS, "test") if split == DIAGNOSTICS else (self.hub.config, self.published_split(split))

    def file_in_glue(self, split: str) -> str:
        """Return a split's file in the classic GLUE download."""
        assert self.glue is not None, self.name
        if split == DIAGNOSTICS:
            return "diagnostic/diagnostic.tsv"
        return f"{self.glue.folder}/{self.published_split(split).replace('validation', 'dev')}.tsv"

    def parse_score(self, written: object) -> float | None:
        """Parse a score; None if it is not a number within the range."""
        if not self.regression or not isinstance(written, str | int | float) or isinstance(written, bool):
            return None
        if isinstance(written, str) and "_" in written:  # which Python reads as 1000 in 1_000
            return None
        try:
            score = float(written)
        except (ValueError, OverflowError):
            return None
        low, high = self.score_range or _ANY_SCORE
        return score if low <= score <= high else None

    def scores_in_words(self) -> str:
        """Describe the possible scores, for messages."""
        return "numbers" if self.score_range is None else "scores from {:g} to {:g}".format(*self.score_range)

    def written(self, label: Label) -> str:
        """Format a label for people: the class name, several class names, or the score."""
        if isinstance(label, Sequence):
            names = [name for name, has in zip(self.labels, label, strict=True) if has]
            if any(BETWEEN_CLASSES in name for name in self.labels):
                return json.dumps(names, ensure_ascii=False)
            return BETWEEN_CLASSES.join(names)
        return f"{label:g}" if self.regression else self.labels[int(label)]

    def classes_in_glue(self) -> tuple[str, ...]:
        """Return the classes as GLUE's files and server write them, in order."""
        named = self.glue is not None and self.glue.named
        return self.labels if named else tuple(str(index) for index in range(len(self.labels)))

    def glue_answers(self, split: str) -> str | None:
        """Return the name of the file that GLUE's server expects for a split; None for other tasks.

        The names are those of the sample submission at https://gluebenchmark.com/submit.
        """
        if self.glue is None:
            return None
        if split == DIAGNOSTICS:
            return "AX.tsv"
        ending = {"test_matched": "-m", "test_mismatched": "-mm"}.get(self.published_split(split), "")
        return f"{self.glue.folder}{ending}.tsv"

    def best_metric(self, wanted: str | None) -> str:
        """Return what decides early stopping and the best state, a metric or `LOSS`; None means the first metric.

        Raises:
            UserError: the task lacks this metric.
        """
        known = (*self.metrics, LOSS)
        if wanted is not None and wanted not in known:
            hint = nearest(wanted.removeprefix("eval_"), known)
            raise UserError(f"--metric_for_best_model {wanted}: {self.name} is scored by {', '.join(known)}{hint}")
        return wanted or self.metrics[0]


def in_a_list(name: str) -> str:
    """Return a class's name as it stands among others: quoted if a comma, a line break or a space would mislead."""
    return repr(name) if "," in name or name != name.strip() or not name.isprintable() else name


def is_better(metric: str, value: float, than: float) -> bool:
    """Return whether a metric's value, or the loss, is better; NaN never is, and any number is better than NaN."""
    if math.isnan(value) or math.isnan(than):
        return math.isnan(than) and not math.isnan(value)
    return value < than if metric == LOSS else value > than


def problem_type_of(record: Mapping[str, Any]) -> str:
    """Return a run's problem type. Version 0.1.0 did not record it; its regression runs are those with a score range.

    Args:
        record: the content of `run.json`.
    """
    return str(record.get("problem_type", REGRESSION if "score_range" in record else SINGLE_LABEL))


_ENTAILMENT = ("entailment", "not_entailment")
_GLUE = "nyu-mll/glue"

#: Name -> task: rotten_tomatoes, and all nine tasks of GLUE (Wang et al., 2019, https://arxiv.org/abs/1804.07461).
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            # Pang and Lee, 2005 (https://aclanthology.org/P05-1015): sentences from film reviews.
            name="rotten_tomatoes",
            labels=("negative", "positive"),
            metrics=("accuracy",),
            num_train_epochs=2,  # a third does not improve BitFit
            packaged=True,
        ),
        Task(
            # Dolan and Brockett, 2005 (https://aclanthology.org/I05-5002): are two sentences paraphrases?
            name="mrpc",
            labels=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            hub=HubDataset(_GLUE, "mrpc", ("sentence1", "sentence2")),
            glue=GlueFolder("MRPC", ("#1 String", "#2 String"), "Quality"),
        ),
        Task(
            # Socher et al., 2013 (https://aclanthology.org/D13-1170): phrases and sentences from film reviews.
            name="sst2",
            labels=("negative", "positive"),
            metrics=("accuracy",),
            hub=HubDataset(_GLUE, "sst2", ("sentence",)),
            glue=GlueFolder("SST-2", ("sentence",), "label"),
        ),
        Task(
            # Warstadt et al., 2019 (https://arxiv.org/abs/1805.12471): is a sentence grammatical English?
            name="cola",
            labels=("unacceptable", "acceptable"),
            metrics=("matthews_correlation", "accuracy"),
            hub=HubDataset(_GLUE, "cola", ("sentence",)),
            glue=GlueFolder("CoLA", ("sentence",), "label", columns=("source", "label", "mark", "sentence")),
        ),
        Task(
            # Cer et al., 2017 (https://arxiv.org/abs/1708.00055): how similar in meaning are two sentences?
            name="stsb",
            labels=(),
            metrics=("pearson", "spearmanr"),
            problem_type=REGRESSION,
            score_range=(0.0, 5.0),
            hub=HubDataset(_GLUE, "stsb", ("sentence1", "sentence2")),
            glue=GlueFolder("STS-B", ("sentence1", "sentence2"), "score"),
        ),
        Task(
            # Iyer et al., 2017: do two questions on Quora ask the same?
            name="qqp",
            labels=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            hub=HubDataset(_GLUE, "qqp", ("question1", "question2")),
            glue=GlueFolder("QQP", ("question1", "question2"), "is_duplicate", broken=True),
        ),
        Task(
            # Williams et al., 2018 (https://arxiv.org/abs/1704.05426): does one sentence follow from another?
            name="mnli",
            labels=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            mismatched=True,
            diagnostics=True,
            hub=HubDataset(_GLUE, "mnli", ("premise", "hypothesis")),
            glue=GlueFolder("MNLI", ("sentence1", "sentence2"), "gold_label", named=True),
        ),
        Task(
            # Rajpurkar et al., 2016 (https://arxiv.org/abs/1606.05250), recast: does a sentence hold the answer?
            name="qnli",
            labels=_ENTAILMENT,
            metrics=("accuracy",),
            hub=HubDataset(_GLUE, "qnli", ("question", "sentence")),
            glue=GlueFolder("QNLI", ("question", "sentence"), "label", named=True),
        ),
        Task(
            # Dagan et al., 2005, and three more challenges: does one sentence follow from another?
            name="rte",
            labels=_ENTAILMENT,
            metrics=("accuracy",),
            hub=HubDataset(_GLUE, "rte", ("sentence1", "sentence2")),
            glue=GlueFolder("RTE", ("sentence1", "sentence2"), "label", named=True),
        ),
        Task(
            # Levesque et al., 2012, recast: what does a pronoun stand for? Its dev split is adversarial.
            name="wnli",
            labels=("not_entailment", "entailment"),
            metrics=("accuracy",),
            hub=HubDataset(_GLUE, "wnli", ("sentence1", "sentence2")),
            glue=GlueFolder("WNLI", ("sentence1", "sentence2"), "label"),
        ),
    )
}
