"""Flags of `scripts/train.py` for the base model and the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from peftlib.arguments.bounds import at_least
from peftlib.data.own_data import LABEL_COLUMN, SPLIT_NAMES, own_data_of
from peftlib.data.places import OwnData
from peftlib.data.tasks import DEFAULT_TASK, TASKS
from peftlib.errors import UserError
from peftlib.modeling import DEFAULT_MODEL

#: Per cent of the training data that may be held out.
_MOST_HELD_OUT = 99


@dataclass(frozen=True)
class ModelArguments:
    """Flags for the base model."""

    _argument_group_name: ClassVar[str] = "model"

    model_name_or_path: str = field(
        default=DEFAULT_MODEL,
        metadata={"help": "base model: a Hub id, a folder with a saved model, or the name of a packaged model"},
    )
    model_revision: str = field(default="main", metadata={"help": "branch, tag or commit of a model on the Hub"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "allow code that comes with the model to run on this machine"}
    )


@dataclass(frozen=True)
class DataArguments:
    """Flags for the data."""

    _argument_group_name: ClassVar[str] = "data"

    task_name: str | None = field(
        default=None,
        metadata={
            "help": f"task to train on; None means {DEFAULT_TASK}, or your own data if given",
            "choices": sorted(TASKS),
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "a dataset on the Hub, or a folder that load_dataset or load_from_disk can read"},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "the dataset's configuration; not needed if it has only one"}
    )
    train_split_name: str = field(
        default=SPLIT_NAMES["train_split_name"],
        metadata={"help": "split of the dataset to train on, or a slice such as train[:90%%]"},
    )
    validation_split_name: str = field(
        default=SPLIT_NAMES["validation_split_name"],
        metadata={"help": "split to evaluate on, or a slice such as train[90%%:]"},
    )
    test_split_name: str = field(
        default=SPLIT_NAMES["test_split_name"], metadata={"help": "split for predict.py, with labels or without"}
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "your own CSV, TSV, JSON or JSON Lines file to train on, with a text column and a label column"
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "a file of the same kind to evaluate on"})
    validation_split_percentage: int | None = field(
        default=None,
        metadata={
            "help": "hold out this percentage of your own training data to evaluate on, for want of a validation file "
            "or split; which rows does not depend on the seed"
        },
    )
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "text column of your own data, or two columns for sentence pairs, separated by a comma; None "
            "uses the only column besides the label"
        },
    )
    label_column_name: str = field(
        default=LABEL_COLUMN,
        metadata={
            "help": "label column of your own data: classes, lists of classes or numbers; or several columns of 1 "
            "and 0, one per class, separated by commas"
        },
    )
    label_delimiter: str | None = field(
        default=None,
        metadata={
            "help": "separator between the classes of a text in the label column; None for one class per text, and "
            "for lists"
        },
    )
    do_regression: bool = field(
        default=False, metadata={"help": "predict the numbers in the label column instead of classes"}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "a folder in GLUE's layout (DIR/MRPC/train.tsv); None reads the installed package or the Hub"
        },
    )
    max_length: int = field(
        default=128, metadata={"help": "truncate inputs to this many tokens, special tokens included"}
    )
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "pad every batch to max_length instead of its longest example"}
    )
    group_by_length: bool = field(
        default=True,
        metadata={"help": "put examples of similar length into the same update: less padding, still shuffled"},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on the first N examples only; None uses all"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "evaluate on the first N examples only; None uses all"}
    )
    dataloader_num_workers: int = field(
        default=0,
        metadata={"help": "worker processes that prepare batches; 0 prepares them in the training process"},
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "max_train_samples", "max_eval_samples", "validation_split_percentage")
        if self.validation_split_percentage is not None and self.validation_split_percentage > _MOST_HELD_OUT:
            raise UserError(
                f"--validation_split_percentage {self.validation_split_percentage}: must be at most {_MOST_HELD_OUT}"
            )
        at_least(self, 2, "max_length")
        at_least(self, 0, "dataloader_num_workers")

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Maximum number of training and of validation examples; None for all."""
        return self.max_train_samples, self.max_eval_samples

    @property
    def pad_to(self) -> int:
        """Tokens to pad every batch to; 0 pads to its longest example."""
        return self.max_length if self.pad_to_max_length else 0

    @property
    def own(self) -> OwnData | None:
        """The user's own data; None for a task in `TASKS`.

        Raises:
            UserError: one of their flags requires another, or contradicts it.
        """
        own = own_data_of(vars(self))
        for name in ("task_name", "data_dir") if own else ():
            if (value := getattr(self, name)) is not None:
                flag = "train_file" if self.dataset_name is None else "dataset_name"
                raise UserError(f"--{name} {value}: cannot be combined with --{flag}; leave one of them out")
        return own
