"""How a run trains. Flags of `scripts/train.py`; a method's own stand with the method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peftlib.arguments.bounds import at_least
from peftlib.errors import UserError
from peftlib.strategies import STRATEGIES

_RATES = ", ".join(f"{kind.default_learning_rate:g} for {name}" for name, kind in STRATEGIES.items())


@dataclass(frozen=True)
class TrainingArguments:
    """How it trains."""

    _argument_group_name: ClassVar[str] = "training"

    method: str = field(default="bitfit", metadata={"help": "what trains", "choices": list(STRATEGIES)})
    learning_rate: float | None = field(
        default=None, metadata={"help": f"peak learning rate; None takes the method's own default: {_RATES}"}
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
            "task's first: accuracy, of cola matthews_correlation, of stsb pearson"
        },
    )
    auto_find_batch_size: bool = field(
        default=True,
        metadata={
            "help": "when memory runs out at the start, halve the micro-batch and double the accumulation, which keeps "
            "the effective batch size; and halve the batch of evaluations"
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

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Examples per batch and process, in training and in evaluation."""
        return self.per_device_train_batch_size, self.per_device_eval_batch_size
