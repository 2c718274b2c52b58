"""Flags of `scripts/train.py` for training; a method's own flags are defined with the method."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peftlib.arguments.bounds import at_least
from peftlib.data.class_weights import NONE, canonical, refuse_misfits
from peftlib.data.tasks import Task
from peftlib.errors import UserError
from peftlib.strategies import STRATEGIES

_RATES = ", ".join(f"{kind.default_learning_rate:g} for {name}" for name, kind in STRATEGIES.items())


@dataclass(frozen=True)
class TrainingArguments:
    """Flags for training."""

    _argument_group_name: ClassVar[str] = "training"

    method: str = field(default="bitfit", metadata={"help": "fine-tuning method", "choices": list(STRATEGIES)})
    learning_rate: float | None = field(
        default=None, metadata={"help": f"peak learning rate; None uses the method's own default: {_RATES}"}
    )
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "training examples per micro-batch and process"}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "evaluation examples per batch and process"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "micro-batches per optimizer update"})
    num_train_epochs: float | None = field(
        default=None,
        metadata={"help": "passes over the training data, such as 3 or 0.5; None uses the task's default"},
    )
    max_train_steps: int | None = field(
        default=None,
        metadata={"help": "stop after N optimizer updates, overriding num_train_epochs; None means no limit"},
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = field(
        default="linear",
        metadata={"help": "learning-rate schedule after warm-up; linear and cosine decay to 0"},
    )
    num_warmup_steps: int | None = field(
        default=None, metadata={"help": "updates over which the learning rate rises from 0; None uses warmup_ratio"}
    )
    warmup_ratio: float = field(default=0.15, metadata={"help": "fraction of all updates used for warm-up, 0 to 1"})
    weight_decay: float = field(
        default=0.0,
        metadata={
            "help": "AdamW's decoupled weight decay; never applied to vectors, such as biases and LayerNorm's weights"
        },
    )
    dropout: float | None = field(
        default=None,
        metadata={
            "help": "dropout probability in the base model's layers and before its head; None uses the method's "
            "default, or else the model's"
        },
    )
    class_weights: str = field(
        default=NONE,
        metadata={
            "help": "weights of the classes in the training loss: none; balanced, in inverse proportion to their "
            "training examples; or a JSON object by class name, such as '{\"spam\": 9}', with 1 for the others"
        },
    )
    label_smoothing_factor: float = field(
        default=0.0,
        metadata={"help": "share of the uniform distribution over the classes in the training loss's targets, 0 to 1"},
    )
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "clip the gradient to this global L2 norm; 0 disables clipping"}
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = field(
        default="auto",
        metadata={
            "help": "auto follows `accelerate launch` if that was told fp16 or bf16; otherwise it is bf16 where the "
            "device is faster in it, else fp16 on CUDA, else no; `no` is fp32"
        },
    )
    acceleration: Literal["auto", "off"] = field(
        default="auto",
        metadata={
            "help": "auto replaces parts of the model by faster ones that compute the same up to rounding; off trains "
            "transformers' and PEFT's own modules, for instance to find out which part is at fault"
        },
    )
    frozen_dtype: Literal["auto", "fp32"] = field(
        default="auto",
        metadata={
            "help": "precision in which frozen Linear weights are stored; auto uses that of the forward pass, which "
            "computes the same with fewer casts and less memory"
        },
    )
    cuda_graphs: bool = field(
        default=True,
        metadata={
            "help": "on GPUs, record forward and backward once per batch shape and replay them as CUDA graphs; "
            "use false for models that wait for the device, which cannot be recorded"
        },
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={
            "help": "keep only the input of each layer and compute the layer again in the backward pass: less memory, "
            "but slower; for long texts of which not even one fits"
        },
    )
    eval_steps: int | None = field(
        default=None, metadata={"help": "evaluate every N updates; None evaluates at the end of each epoch"}
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "stop after N evaluations without improvement; 0 disables early stopping"}
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "metric, or loss, that selects the saved state and decides early stopping; None uses the task's "
            "first metric: accuracy, for cola matthews_correlation, for stsb pearson"
        },
    )
    auto_find_batch_size: bool = field(
        default=True,
        metadata={
            "help": "if memory runs out at the start, halve the micro-batch and double the accumulation, which keeps "
            "the effective batch size; likewise halve the evaluation batch"
        },
    )
    seed: int = field(default=42, metadata={"help": "random seed for head initialisation, data order and dropout"})
    num_cpu_threads: int = field(
        default=0,
        metadata={"help": "CPU threads per process; 0 divides the physical cores among the processes"},
    )

    def __post_init__(self) -> None:
        at_least(
            self, 1, "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "max_train_steps", "eval_steps",
        )  # fmt: skip
        at_least(self, 0, "learning_rate", "num_train_epochs", above=True)
        at_least(
            self, 0, "num_warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm",
            "early_stopping_patience", "seed", "num_cpu_threads", "dropout", "label_smoothing_factor",
        )  # fmt: skip
        object.__setattr__(self, "class_weights", canonical(self.class_weights))
        for name in ("num_train_epochs", "max_train_steps"):
            if (getattr(self, name) or 0) > 1e9:  # the total number of updates would overflow
                raise UserError(f"--{name} {getattr(self, name):g}: must be at most 1e9")
        for name in ("dropout", "label_smoothing_factor"):
            if (getattr(self, name) or 0) >= 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be less than 1")
        if self.warmup_ratio > 1:
            raise UserError(
                f"--warmup_ratio {self.warmup_ratio}: must be at most 1; for a number of updates use --num_warmup_steps"
            )
        cores = os.cpu_count() or 1
        if self.num_cpu_threads > 4 * cores:  # they would wait for each other; very many cannot even be started
            raise UserError(
                f"--num_cpu_threads {self.num_cpu_threads}: this machine has {cores} cores; 0 uses them all"
            )
        if self.seed >= 2**31:  # NumPy needs less than 2**32, and each process adds its rank
            raise UserError(f"--seed {self.seed}: must be less than 2**31")

    def refuse_misfits(self, task: Task) -> None:
        """Refuse a metric that the task lacks, and changes of the loss that do not apply to it.

        Raises:
            UserError: names the flag and the task.
        """
        task.best_metric(self.metric_for_best_model)
        refuse_misfits(self.class_weights, task)
        if self.label_smoothing_factor and task.regression:
            raise UserError(
                f"--label_smoothing_factor {self.label_smoothing_factor:g}: {task.name} is a regression, without "
                "classes; leave it out"
            )

    @property
    def accelerates(self) -> bool:
        """Whether parts of the model may be replaced by faster ones."""
        return self.acceleration == "auto"

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Examples per batch and process, in training and in evaluation."""
        return self.per_device_train_batch_size, self.per_device_eval_batch_size

    @property
    def warmup(self) -> tuple[int | None, float]:
        """Updates, or else the share of all updates, over which the learning rate rises."""
        return self.num_warmup_steps, self.warmup_ratio
