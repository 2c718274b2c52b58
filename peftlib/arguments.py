"""The command line of `scripts/train.py`: typed dataclasses, one per concern, from flags or from YAML.

Seen by the scripts alone, which hand flat values down. The strategies' own dataclasses are parsed beside these:
a new method brings its flags along. Nothing here imports torch, so a wrong flag is answered at once.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import sys
from argparse import SUPPRESS, ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from transformers.hf_argparser import HfArgumentParser

from peftlib.data.tasks import DEFAULT_TASK, TASKS
from peftlib.errors import UserError, nearest
from peftlib.modeling import DEFAULT_MODEL
from peftlib.strategies import STRATEGIES, Strategy


def _at_least(arguments: Any, bound: float, *names: str, above: bool = False) -> None:
    """Refuse values under `bound` (or, with `above`, at it), and those that are no finite numbers."""
    for name in names:
        value = getattr(arguments, name)
        if value is None:
            continue
        if not math.isfinite(value) or value < bound or (above and value == bound):
            raise UserError(f"--{name} {value}: must be {'greater than' if above else 'at least'} {bound}")


@dataclass(frozen=True)
class ModelArguments:
    """Which base model."""

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

    task_name: str = field(default=DEFAULT_TASK, metadata={"help": "the task to train on", "choices": sorted(TASKS)})
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
        _at_least(self, 1, "max_train_samples", "max_eval_samples")
        _at_least(self, 2, "max_length")
        _at_least(self, 0, "dataloader_num_workers")


@dataclass(frozen=True)
class TrainingArguments:
    """How it trains."""

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
        _at_least(
            self, 1, "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "num_train_epochs", "max_train_steps", "eval_steps",
        )  # fmt: skip
        _at_least(self, 0, "learning_rate", above=True)
        _at_least(
            self, 0, "num_warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm",
            "early_stopping_patience", "seed", "num_cpu_threads", "dropout",
        )  # fmt: skip
        if self.dropout is not None and self.dropout >= 1:
            raise UserError(f"--dropout {self.dropout}: must be less than 1")
        if self.warmup_ratio > 1:
            raise UserError(
                f"--warmup_ratio {self.warmup_ratio}: must be at most 1; for a number of updates use --num_warmup_steps"
            )
        if self.seed >= 2**32:
            raise UserError(f"--seed {self.seed}: must be less than 2**32")


@dataclass(frozen=True)
class OutputArguments:
    """What it leaves behind, and who watches."""

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
        _at_least(self, 1, "logging_steps", "checkpoints_total_limit")
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


@dataclass(frozen=True)
class TrainArguments:
    """Everything that `scripts/train.py` was asked for.

    Attributes:
        strategy: the chosen method with its own flags.
        ignored: flags that were set but belong to other methods, for a notice (a sweep over methods sets them all).
    """

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    output: OutputArguments
    strategy: Strategy
    ignored: tuple[str, ...] = ()

    @property
    def learning_rate(self) -> float:
        """The peak rate: the flag's, or else the method's own."""
        return self.training.learning_rate or self.strategy.default_learning_rate

    @property
    def num_train_epochs(self) -> int:
        """The flag's, or else the task's own."""
        return self.training.num_train_epochs or TASKS[self.data.task_name].num_train_epochs

    @property
    def dropout(self) -> float | None:
        """The flag's, or else the method's own; None leaves the model's."""
        asked = self.training.dropout
        return self.strategy.default_dropout if asked is None else asked

    def flat(self) -> dict[str, Any]:
        """Flag name -> value, of all groups and of the chosen method; with the defaults of the method and the task."""
        groups = (self.model, self.data, self.training, self.output, self.strategy)
        values = {name: value for group in groups for name, value in dataclasses.asdict(group).items()}
        return values | {name: getattr(self, name) for name in ("learning_rate", "num_train_epochs", "dropout")}


@dataclass(frozen=True)
class SweepArguments:
    """Which sweep, and how it is run."""

    sweep_dir: str | None = field(
        default=None,
        metadata={"help": "the study and the runs' folders; None means outputs/sweeps/<name>"},
    )
    workers: int = field(default=1, metadata={"help": "runs at a time on this machine"})
    count: int | None = field(default=None, metadata={"help": "start at most N runs in this call; None has no limit"})
    seed: int = field(default=0, metadata={"help": "of the draws of random and bayes; the runs' own is --seed there"})
    dry_run: bool = field(default=False, metadata={"help": "print the runs and their number; start nothing"})
    set: list[str] = field(
        default_factory=list,
        metadata={
            "help": "parameters in place of the file's, as in --set 'seed=[1, 2, 3]' data_dir=glue; give the same ones "
            "to go on"
        },
    )

    def __post_init__(self) -> None:
        _at_least(self, 1, "workers", "count")
        _at_least(self, 0, "seed")


@dataclass(frozen=True)
class CompareArguments:
    """What is made of finished runs."""

    output_dir: str = field(
        default="report", metadata={"help": "the report's folder; an earlier report in it is replaced"}
    )
    examples: bool = field(
        default=False,
        metadata={"help": "of two runs: what one gets right and the other wrong, side by side; writes no report"},
    )
    max_examples: int = field(default=20, metadata={"help": "examples: show N per side at most"})

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_examples")


@dataclass(frozen=True)
class ReproduceArguments:
    """On what the comparison that this project began with is run again."""

    model_name_or_path: str = field(
        default=DEFAULT_MODEL, metadata={"help": "the base model; the first report's was bert-base-uncased"}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "a folder with MRPC and SST-2 in GLUE's layout; None asks the Hub"}
    )
    seeds: str = field(default="42,43,44", metadata={"help": "a comma-separated list of seeds"})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on the first N examples of each task only; None means all"}
    )
    set: list[str] = field(
        default_factory=list, metadata={"help": "more parameters in place of the sweep's, as sweep.py takes them"}
    )
    workers: int = field(default=1, metadata={"help": "runs at a time on this machine"})
    sweep_dir: str | None = field(
        default=None, metadata={"help": "the runs' folders; None means outputs/sweeps/reproduce-<model>-<tasks>"}
    )
    output_dir: str = field(default="report", metadata={"help": "the report's folder"})

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_train_samples", "workers")
        if not re.fullmatch(r"\d+(,\d+)*", self.seeds):
            raise UserError(f"--seeds {self.seeds}: must be whole numbers with commas, as in 42,43,44")


class _Parser(HfArgumentParser):
    """HfArgumentParser with one-line errors that name the nearest right flag or value."""

    def error(self, message: str) -> NoReturn:
        # argparse: "argument --max_length/--max-length: invalid int value: 'x'"
        raise UserError(re.sub(r"^argument (--\w+)\S*:", r"\1:", message))

    def _check_value(self, action: Any, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            flag, known = action.option_strings[0], [str(choice) for choice in action.choices]
            raise UserError(f"{flag} {value}: unknown{nearest(str(value), known)} (known: {', '.join(known)})")

    def flags(self) -> list[str]:
        """Every long option, with underscores."""
        return [option for option in self._option_string_actions if option.startswith("--") and "-" not in option[2:]]


def train_parser() -> _Parser:
    """The parser of `scripts/train.py`; its `flags()` are what a sweep may set."""
    parser = _Parser(
        [ModelArguments, DataArguments, TrainingArguments, OutputArguments, *STRATEGIES.values()],
        prog="train.py",
        description="Fine-tune an encoder on a text-classification task.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file of flags; the command line wins over it")
    # W&B's own part of a run's configuration, see `_without_records`.
    parser.add_argument("--_wandb", help=SUPPRESS)
    return parser


def parse_train_arguments(argv: Sequence[str] | None = None) -> TrainArguments:
    """Parse flags (of `sys.argv` by default), with those of `--config FILE` below them.

    Raises:
        UserError: an unknown flag, a wrong value, or a file that is no flat mapping of flags.
        SystemExit: after `--help`.
    """
    parser = train_parser()
    argv = _without_groups(list(sys.argv[1:] if argv is None else argv), parser.flags())
    argv = _without_records(argv, parser.flags())
    try:
        config = parser.parse_known_args(argv)[0].config
    except ArgumentError as error:
        parser.error(str(error))
    if config is not None:
        argv = _flags_of_file(Path(config), parser) + argv
    parsed = parser.parse_args_into_dataclasses(argv, look_for_args_file=False, return_remaining_strings=True)
    _refuse_unknown(parsed[-1], parser)
    model, data, training, output, *rest = parsed[: 4 + len(STRATEGIES)]
    strategies: dict[str, Strategy] = dict(zip(STRATEGIES, rest, strict=True))
    ignored = tuple(
        f"--{entry.name}"
        for method, strategy in strategies.items()
        for entry in fields(strategy)
        if method != training.method and getattr(strategy, entry.name) != entry.default
    )
    return TrainArguments(model, data, training, output, strategies[training.method], ignored)


def parse_sweep_arguments(argv: Sequence[str] | None = None) -> tuple[Path, SweepArguments]:
    """Parse the flags of `scripts/sweep.py`: the sweep's file, and how it is run.

    Raises:
        UserError: an unknown flag or a wrong value.
        SystemExit: after `--help`.
    """
    parser = _Parser(
        [SweepArguments], prog="sweep.py", description="Run a W&B sweep's YAML on this machine.", allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the sweep, in W&B's format")
    options, rest, unknown = parser.parse_args_into_dataclasses(
        list(sys.argv[1:] if argv is None else argv), look_for_args_file=False, return_remaining_strings=True
    )
    _refuse_unknown(unknown, parser)
    return rest.file, options


def parse_reproduce_arguments(argv: Sequence[str] | None = None) -> ReproduceArguments:
    """Parse the flags of `scripts/reproduce.py`.

    Raises:
        UserError: an unknown flag or a wrong value.
        SystemExit: after `--help`.
    """
    parser = _Parser([ReproduceArguments], prog="reproduce.py", description="Run the comparison.", allow_abbrev=False)
    options, unknown = parser.parse_args_into_dataclasses(
        list(sys.argv[1:] if argv is None else argv), look_for_args_file=False, return_remaining_strings=True
    )
    _refuse_unknown(unknown, parser)
    return options


def parse_compare_arguments(argv: Sequence[str] | None = None) -> tuple[list[str], CompareArguments]:
    """Parse the flags of `scripts/compare.py`: the runs' folders or globs, and what is made of them.

    Raises:
        UserError: an unknown flag or a wrong value, or no runs.
        SystemExit: after `--help`.
    """
    parser = _Parser([CompareArguments], prog="compare.py", description="Compare finished runs.", allow_abbrev=False)
    parser.add_argument("runs", metavar="RUNS", nargs="*", help="folders of runs or sweeps, or above them, or globs")
    # A flag of this parser takes the word behind it for its value: here that is a run.
    words = ["--examples=true" if word == "--examples" else word for word in (sys.argv[1:] if argv is None else argv)]
    options, rest, unknown = parser.parse_args_into_dataclasses(
        words, look_for_args_file=False, return_remaining_strings=True
    )
    _refuse_unknown(unknown, parser)
    if not rest.runs:
        raise UserError("no runs: name their folders, as in compare.py outputs/*")
    return rest.runs, options


def _refuse_unknown(words: list[str], parser: _Parser) -> None:
    if not words:
        return
    flag = words[0].partition("=")[0]
    if flag.startswith("-"):
        raise UserError(f"{flag}: no such flag{nearest('--' + _underscored(flag), parser.flags())}")
    raise UserError(f"{words[0]!r}: a value without a flag; see --help")


def _without_groups(argv: list[str], known: list[str]) -> list[str]:
    """Turn `--any={'method': 'lora', 'lora_r': 8}`, a W&B agent's form of a nested parameter, into plain flags."""
    flags: list[str] = []
    for word in argv:
        name, _, text = word.partition("=")
        if name.startswith("--") and name not in known and text.startswith("{"):
            try:
                group = ast.literal_eval(text)
            except (ValueError, SyntaxError) as error:
                raise UserError(f"{name} {text}: no mapping of flags to values") from error
            flags += _without_groups([f"--{key}={value}" for key, value in group.items()], known)
        else:
            flags.append(word)
    return flags


def _without_records(argv: list[str], known: list[str]) -> list[str]:
    """Drop what is no flag with a value from the words with which a W&B agent starts a preempted run again.

    The first time it passes on the sweep's parameters. After a preemption it passes on all that the run's
    configuration holds by then (https://github.com/wandb/wandb/issues/9143): every flag, those without a value as
    None, facts such as `params/trainable`, and `_wandb`, by which such a command line is known.
    """
    if not any(word.startswith("--_wandb=") for word in argv):
        return argv

    def is_record(word: str) -> bool:
        name, assigned, value = word.partition("=")
        return bool(assigned) and (name not in known or value == "None")

    return [word for word in argv if not is_record(word)]


def _underscored(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _flags_of_file(path: Path, parser: _Parser) -> list[str]:
    """The file's mapping as command-line flags, so that both are checked by the same code."""
    try:
        # The base loader keeps every value as it is written: to YAML's others `mixed_precision: no` is False.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: no valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must hold lines such as `learning_rate: 0.003`")
    known = [flag for flag in parser.flags() if flag not in ("--config", "--help") and not flag.startswith("--no_")]
    argv = []
    for key, value in content.items():
        flag = f"--{_underscored(str(key))}"
        if flag not in known:
            raise UserError(f"--config {path}: {key} is no flag of train.py{nearest(flag, known).replace('--', '')}")
        if isinstance(value, dict):
            raise UserError(f"--config {path}: {key} is a mapping; flags take single values or lists")
        if value not in ("", "~", "null"):
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            argv.append(f"{flag}={text}")
    return argv
