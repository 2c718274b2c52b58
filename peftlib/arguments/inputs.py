"""What a run is made from: the base model and the data. Flags of `scripts/train.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from peftlib.arguments.bounds import at_least
from peftlib.data.own_data import LABEL_COLUMN, SPLIT_NAMES, own_data_of
from peftlib.data.places import OwnData
from peftlib.data.tasks import DEFAULT_TASK, TASKS
from peftlib.errors import UserError
from peftlib.modeling import DEFAULT_MODEL


@dataclass(frozen=True)
class ModelArguments:
    """Which base model."""

    _argument_group_name: ClassVar[str] = "model"

    model_name_or_path: str = field(
        default=DEFAULT_MODEL,
        metadata={"help": "a Hub id, a folder with a saved model, or a packaged model's name"},
    )
    model_revision: str = field(default="main", metadata={"help": "branch, tag or commit of a model on the Hub"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "let code that comes with the model run on this machine"}
    )


@dataclass(frozen=True)
class DataArguments:
    """On what it trains."""

    _argument_group_name: ClassVar[str] = "data"

    task_name: str | None = field(
        default=None,
        metadata={
            "help": f"the task to train on; None means {DEFAULT_TASK}, or the task of one's own data",
            "choices": sorted(TASKS),
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "a dataset on the Hub, or a folder that load_dataset or load_from_disk takes"},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "its configuration; None for a dataset that has one"}
    )
    train_split_name: str = field(
        default=SPLIT_NAMES["train_split_name"],
        metadata={"help": "the dataset's split to train on, or a slice: train[:90%%]"},
    )
    validation_split_name: str = field(
        default=SPLIT_NAMES["validation_split_name"],
        metadata={"help": "the one to score on, or a slice: train[90%%:]"},
    )
    test_split_name: str = field(
        default=SPLIT_NAMES["test_split_name"], metadata={"help": "the one for predict.py, with classes or without"}
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "a CSV, TSV, JSON or JSON Lines file of one's own to train on, with a column of texts and one of "
            "classes"
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "such a file to score on"})
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "the column of texts in one's own data, or two of sentence pairs with a comma between; None takes "
            "the one beside the classes"
        },
    )
    label_column_name: str = field(
        default=LABEL_COLUMN,
        metadata={
            "help": "the column of classes, lists of classes or numbers in one's own data; or several with commas "
            "between, one for each class, of 1 and 0"
        },
    )
    label_delimiter: str | None = field(
        default=None,
        metadata={"help": "what stands between an example's classes in that column; None for one class, and for lists"},
    )
    do_regression: bool = field(default=False, metadata={"help": "predict that column's numbers, not classes"})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "a folder in GLUE's layout (DIR/MRPC/train.tsv); None reads the package or the Hub"},
    )
    max_length: int = field(
        default=128, metadata={"help": "truncate examples to so many tokens, special ones included"}
    )
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "pad every batch to max_length, not to its longest example"}
    )
    group_by_length: bool = field(
        default=True,
        metadata={"help": "form updates from examples of similar lengths: less padding, still random"},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on the first N examples only; None means all"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "evaluate on the first N examples only; None means all"}
    )
    dataloader_num_workers: int = field(
        default=0,
        metadata={"help": "processes that prepare batches; 0 prepares them in the training process"},
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "max_train_samples", "max_eval_samples")
        at_least(self, 2, "max_length")
        at_least(self, 0, "dataloader_num_workers")

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Examples of the training and the validation split at most; None for all."""
        return self.max_train_samples, self.max_eval_samples

    @property
    def pad_to(self) -> int:
        """Tokens to pad every batch to; 0 pads to its longest example."""
        return self.max_length if self.pad_to_max_length else 0

    @property
    def own(self) -> OwnData | None:
        """Data of one's own; None for a task from the table.

        Raises:
            UserError: one of the flags for them lacks another, or contradicts it.
        """
        own = own_data_of(vars(self))
        for name in ("task_name", "data_dir") if own else ():
            if (value := getattr(self, name)) is not None:
                flag = "train_file" if self.dataset_name is None else "dataset_name"
                raise UserError(f"--{name} {value}: --{flag} brings its own data; leave one of the two out")
        return own
