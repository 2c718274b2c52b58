"""What `scripts/train.py` is asked for beside a method's own flags: one dataclass per concern."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peftlib.arguments.bounds import at_least
from peftlib.data.own_data import LABEL_COLUMN, SPLIT_NAMES, own_data_of
from peftlib.data.tasks import DEFAULT_TASK, TASKS, OwnData
from peftlib.errors import UserError
from peftlib.modeling import DEFAULT_MODEL
from peftlib.strategies import STRATEGIES


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
    label_column_name: str = field(default=LABEL_COLUMN, metadata={"help": "the column of classes in one's own data"})
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


@dataclass(frozen=True)
class TrainingArguments:
    """How it trains."""

    _argument_group_name: ClassVar[str] = "training"

    method: str = field(default="bitfit", metadata={"help": "what trains", "choices": list(STRATEGIES)})
    learning_rate: float | None = field(
        default=None, metadata={"help": "peak learning rate; None takes the method's own default"}
    )
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "examples per micro-batch and process in training"}
    )
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "examples per batch and process in evaluation"}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "micro-batches per optimizer update"})
    num_train_epochs: int | None = field(
        default=None, metadata={"help": "passes over the training data; None takes the task's own number"}
    )
    max_train_steps: int | None = field(
        default=None,
        metadata={"help": "stop after N optimizer updates, whatever the epochs; None means no limit"},
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = field(
        default="linear",
        metadata={"help": "shape of the learning rate after warm-up; linear and cosine end at 0"},
    )
    num_warmup_steps: int | None = field(
        default=None, metadata={"help": "updates over which the rate rises from 0; None takes warmup_ratio"}
    )
    warmup_ratio: float = field(default=0.15, metadata={"help": "share of all updates that is warm-up, 0..1"})
    weight_decay: float = field(
        default=0.0, metadata={"help": "AdamW's decoupled decay; never on biases and normalisation weights"}
    )
    dropout: float | None = field(
        default=None,
        metadata={
            "help": "probability in the base model's layers and before its head; None takes the method's own, or else "
            "the model's"
        },
    )
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "clip the gradient to this global L2 norm; 0 does not clip"}
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = field(
        default="auto",
        metadata={
            "help": "auto takes what `accelerate launch` was told (fp16, bf16), else bf16 where the device has it "
            "natively, else fp16 on CUDA, else no; `no` is fp32"
        },
    )
    frozen_dtype: Literal["auto", "fp32"] = field(
        default="auto",
        metadata={
            "help": "precision in which frozen Linear weights are kept: auto is the forward pass's own, which computes "
            "the same with fewer casts and less memory"
        },
    )
    cuda_graphs: bool = field(
        default=True,
        metadata={
            "help": "on one GPU, record forward and backward once per batch shape and launch them as a whole; false "
            "is for models that wait for the device, which cannot be recorded"
        },
    )
    eval_steps: int | None = field(
        default=None, metadata={"help": "evaluate every N updates; None evaluates at the end of each epoch"}
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "stop after N evaluations without a better score; 0 never stops early"}
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "the metric by which the saved state is chosen, and by which early stopping goes; None takes the "
            "task's first, which is accuracy"
        },
    )
    auto_find_batch_size: bool = field(
        default=True,
        metadata={
            "help": "when memory runs out at the start, halve the micro-batch and double the accumulation, which keeps "
            "the effective batch size"
        },
    )
    seed: int = field(default=42, metadata={"help": "of the head's start, the order of the data and dropout"})
    num_cpu_threads: int = field(
        default=0,
        metadata={"help": "threads per process on a CPU; 0 shares the physical cores between processes"},
    )

    def __post_init__(self) -> None:
        at_least(
            self, 1, "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "num_train_epochs", "max_train_steps", "eval_steps",
        )  # fmt: skip
        at_least(self, 0, "learning_rate", above=True)
        at_least(
            self, 0, "num_warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm",
            "early_stopping_patience", "seed", "num_cpu_threads", "dropout",
        )  # fmt: skip
        if self.dropout is not None and self.dropout >= 1:
            raise UserError(f"--dropout {self.dropout}: must be less than 1")
        if self.warmup_ratio > 1:
            raise UserError(
                f"--warmup_ratio {self.warmup_ratio}: must be at most 1; for a number of updates use --num_warmup_steps"
            )
        if self.seed >= 2**31:  # NumPy takes less than 2**32, and each process adds its number
            raise UserError(f"--seed {self.seed}: must be less than 2**31")


@dataclass(frozen=True)
class OutputArguments:
    """What it leaves behind, and who watches."""

    _argument_group_name: ClassVar[str] = "output and checkpoints"

    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "where the results go; None means outputs/<task>-<method>-<time>, or outputs/sweeps/<sweep>/<run> "
            "inside a sweep"
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "replace the results of an earlier run in output_dir"}
    )
    checkpointing_steps: str | None = field(
        default=None,
        metadata={
            "help": "write a checkpoint every N updates, or at the end of each 'epoch'; None writes one only when a "
            "signal stops the run"
        },
    )
    checkpoints_total_limit: int | None = field(
        default=None, metadata={"help": "keep the newest N checkpoints only; None keeps all"}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "auto goes on from the newest whole checkpoint in output_dir, or starts afresh when there is none; "
            "or a checkpoint's folder; None starts afresh, or means auto where a sweep names the folder"
        },
    )
    extend_training: bool = field(
        default=False, metadata={"help": "let a resumed run have more epochs or steps than it was started with"}
    )
    report_to: str = field(
        default="auto",
        metadata={
            "help": "a comma-separated list of accelerate's trackers (wandb, tensorboard, ...), all, or none; auto "
            "means wandb inside a W&B sweep or with WANDB_API_KEY or WANDB_MODE set, else none"
        },
    )
    project_name: str | None = field(
        default=None,
        metadata={"help": "the trackers' project; None takes $WANDB_PROJECT, else peft-text-classification"},
    )
    run_name: str | None = field(
        default=None, metadata={"help": "the run's name in the trackers; None takes the output folder's name"}
    )
    logging_steps: int = field(default=10, metadata={"help": "log the training loss every N updates"})

    def __post_init__(self) -> None:
        at_least(self, 1, "logging_steps", "checkpoints_total_limit")
        if self.checkpointing_steps is not None and self.checkpointing_steps != "epoch":
            try:
                valid = int(self.checkpointing_steps) >= 1
            except ValueError:
                valid = False
            if not valid:
                raise UserError(
                    f"--checkpointing_steps {self.checkpointing_steps}: must be epoch, or a number from 1 on"
                )
        if self.resume_from_checkpoint == "auto" and self.output_dir is None:
            raise UserError("--resume_from_checkpoint auto: needs the run's folder; add --output_dir")
