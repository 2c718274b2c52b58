"""The table of tasks: what a task is called, what its rows look like everywhere they come from, how it is scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlib.data.places import GlueFolder, HubDataset, OwnData
from peftlib.errors import UserError, nearest

SPLITS = ("train", "validation", "test")
#: What MNLI has beside them.
MISMATCHED_SPLITS = ("validation_mismatched", "test_mismatched")
#: GLUE's diagnostics (section 4 of its paper), as the Hub calls them: sentence pairs for models trained on MNLI.
DIAGNOSTICS = "ax"
#: Whose labels GLUE may keep to itself.
HIDABLE_SPLITS = ("test", "test_mismatched", DIAGNOSTICS)
#: What is trained on when nobody says otherwise; an installed package carries it.
DEFAULT_TASK = "rotten_tomatoes"
#: What a model answers with, as transformers' configurations call it: a class, any number of classes, or a score.
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
#: Of data of one's own. No F1 of two classes: nobody has said which of them it is about. Of scores first the metric
#: that a wrong scale lowers: a correlation would choose a state whose scores are all twice as high.
METRICS_OF_OWN_DATA = {
    SINGLE_LABEL: ("accuracy", "macro_f1"),
    MULTI_LABEL: ("micro_f1", "macro_f1", "subset_accuracy"),
    REGRESSION: ("r2", "pearson", "spearmanr"),
}
#: Between the names of an example's classes where they stand in one field.
BETWEEN_CLASSES = "|"
#: Scores without a range of their own: the numbers that fp32 holds.
_ANY_SCORE = (-3.4028234663852886e38, 3.4028234663852886e38)

#: The index of a class; for each class whether it is one of the example's, 1 or 0; or a score.
Label = int | tuple[int, ...] | float


@dataclass(frozen=True)
class Task:
    """One task: texts to sort into classes, or, in regression, to score.

    Attributes:
        labels: the class names; a row's label is an index into them, or, where a text may have several, says for each
            whether it is one of them. None of them in regression: there it is a number.
        metrics: names from `evaluation/metrics.py`, larger is better; the first one chooses the best model by default.
        num_train_epochs: passes over the training data when nobody says otherwise.
        packaged: whether an installed package carries the rows.
        mismatched: whether there is a second validation and test split, of other genres than were trained on.
        diagnostics: whether GLUE's diagnostics are for its models.
        problem_type: `SINGLE_LABEL`, `MULTI_LABEL` or `REGRESSION`.
        score_range: the lowest and the highest score that there is; None of classes, and where any number is one.
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
        """Whether it is about scores in place of classes: one output, trained to the least mean squared error."""
        return self.problem_type == REGRESSION

    @property
    def multi_label(self) -> bool:
        """Whether a text has any number of the classes: a decision for each, trained to the least cross-entropy."""
        return self.problem_type == MULTI_LABEL

    @property
    def hidden_label(self) -> Label:
        """What stands for a label that is kept back. Of scores NaN, for -1 may be one."""
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
        """What its rows are divided into."""
        return SPLITS + MISMATCHED_SPLITS * self.mismatched + (DIAGNOSTICS,) * self.diagnostics

    def published_split(self, split: str) -> str:
        """What a split is called in public: MNLI's say "matched" in full."""
        return f"{split}_matched" if self.mismatched and split in ("validation", "test") else split

    def split_on_hub(self, split: str) -> tuple[str, str]:
        """A split's configuration and name on the Hub, where the diagnostics are a configuration of their own."""
        assert self.hub is not None, self.name
        return (DIAGNOSTICS, "test") if split == DIAGNOSTICS else (self.hub.config, self.published_split(split))

    def file_in_glue(self, split: str) -> str:
        """A split's file in the classic GLUE download."""
        assert self.glue is not None, self.name
        if split == DIAGNOSTICS:
            return "diagnostic/diagnostic.tsv"
        return f"{self.glue.folder}/{self.published_split(split).replace('validation', 'dev')}.tsv"

    def score(self, written: object) -> float | None:
        """A score from how it is written; None for what is no number, or none within the range."""
        if not self.regression or not isinstance(written, str | int | float) or isinstance(written, bool):
            return None
        try:
            score = float(written)
        except (ValueError, OverflowError):
            return None
        low, high = self.score_range or _ANY_SCORE
        return score if low <= score <= high else None

    def scores_in_words(self) -> str:
        """Which scores there are."""
        return "numbers" if self.score_range is None else "scores from {:g} to {:g}".format(*self.score_range)

    def written(self, label: Label) -> str:
        """A label as people read it: the class's name, the names of several, or the score."""
        if isinstance(label, Sequence):
            return BETWEEN_CLASSES.join(name for name, has in zip(self.labels, label, strict=True) if has)
        return f"{label:g}" if self.regression else self.labels[int(label)]

    def classes_in_glue(self) -> tuple[str, ...]:
        """How GLUE's files and its server write the classes, in order."""
        named = self.glue is not None and self.glue.named
        return self.labels if named else tuple(str(index) for index in range(len(self.labels)))

    def glue_answers(self, split: str) -> str | None:
        """What the file is called that GLUE's server takes for a split; None for other tasks.

        As in the sample submission of https://gluebenchmark.com/submit.
        """
        if self.glue is None:
            return None
        if split == DIAGNOSTICS:
            return "AX.tsv"
        ending = {"test_matched": "-m", "test_mismatched": "-mm"}.get(self.published_split(split), "")
        return f"{self.glue.folder}{ending}.tsv"

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


def problem_type_of(record: Mapping[str, Any]) -> str:
    """What a run's model answers with, as its record says; of 0.1.0's, which does not, as STS-B's range tells.

    Args:
        record: the content of `run.json`.
    """
    return str(record.get("problem_type", REGRESSION if "score_range" in record else SINGLE_LABEL))


_ENTAILMENT = ("entailment", "not_entailment")
_GLUE = "nyu-mll/glue"

#: Of GLUE (Wang et al., 2019, https://arxiv.org/abs/1804.07461) all nine tasks.
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
