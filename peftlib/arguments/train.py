"""The command line of `scripts/train.py`, including the flags of every method's dataclass."""

from __future__ import annotations

import dataclasses
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peftlib.arguments.agent import without_groups, without_records
from peftlib.arguments.config_file import flags_of_file
from peftlib.arguments.hub import HubArguments
from peftlib.arguments.inputs import DataArguments, ModelArguments
from peftlib.arguments.output import OutputArguments
from peftlib.arguments.parser import Parser, underscored, words_of
from peftlib.arguments.training import TrainingArguments
from peftlib.data.own_data import name_of_own_data
from peftlib.data.tasks import DEFAULT_TASK, TASKS, Task
from peftlib.errors import UserError
from peftlib.flags import OF_A_NODE
from peftlib.modeling import PACKAGED_MODELS
from peftlib.strategies import STRATEGIES, Strategy


@dataclass(frozen=True)
class TrainArguments:
    """The parsed command line of `scripts/train.py`.

    Attributes:
        strategy: the chosen method with its own flags.
        ignored: a line for each group of flags that were set without effect. This is no error, since a sweep over
            methods sets the flags of all of them.
    """

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    output: OutputArguments
    hub: HubArguments
    strategy: Strategy
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        base, folder = Path(self.model.model_name_or_path), self.output.output_dir
        if folder is not None and base.is_dir() and base.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"--output_dir {folder}: contains the base model; choose another folder")

    @property
    def groups(self) -> tuple[ModelArguments, DataArguments, TrainingArguments, OutputArguments, HubArguments]:
        """All groups of flags but the method's."""
        return self.model, self.data, self.training, self.output, self.hub

    @property
    def learning_rate(self) -> float:
        """Peak learning rate: the flag's, or else the method's default."""
        return self.training.learning_rate or self.strategy.default_learning_rate

    @property
    def num_train_epochs(self) -> float:
        """The flag's value, or else the task's default; 2.0 becomes 2, as in records and checkpoints."""
        epochs = self.training.num_train_epochs or TASKS.get(self.task_name, Task).num_train_epochs
        return int(epochs) if float(epochs).is_integer() else epochs

    @property
    def task_name(self) -> str:
        """The flag's value, the name of the user's own data, or else the default task."""
        own = self.data.own
        return (self.data.task_name or DEFAULT_TASK) if own is None else name_of_own_data(own)

    @property
    def dropout(self) -> float | None:
        """The flag's value, or else the method's default; None keeps the model's own."""
        asked = self.training.dropout
        return self.strategy.default_dropout if asked is None else asked

    @property
    def records_graphs(self) -> bool:
        """Whether CUDA graphs may be recorded: they are part of the acceleration, and repeat what the host decides."""
        training = self.training
        recomputes, draws = training.gradient_checkpointing, self.strategy.draws_on_host
        return training.cuda_graphs and training.accelerates and not recomputes and not draws

    def checked(self) -> TrainArguments:
        """Check that the flags fit together, and return `self`. Not done when parsing, since sweeps parse single flags.

        Raises:
            UserError: a flag for the user's own data is missing or contradicts another, or one does not fit the method
                or the task (of the user's own data, metrics and classes are known only from their rows).
        """
        if self.training.gradient_checkpointing and not self.strategy.recomputable:
            name = self.strategy.named(dataclasses.asdict(self.strategy))
            raise UserError(f"--gradient_checkpointing: loses the keys and values of {name}; leave it out")
        if self.data.own is None:
            self.training.refuse_misfits(TASKS[self.task_name])
        return self

    def flat(self) -> dict[str, Any]:
        """Return flag name -> value for all groups and the chosen method, with the method's and task's defaults."""
        groups = (*self.groups, self.strategy)
        values = {name: value for group in groups for name, value in dataclasses.asdict(group).items()}
        settled = ("task_name", "learning_rate", "num_train_epochs", "dropout")
        return values | {name: getattr(self, name) for name in settled}

    def of_all_nodes(self) -> dict[str, Any]:
        """Return flag -> value for the flags that must be equal on all nodes of a run."""
        return {f"--{name}": value for name, value in self.flat().items() if name not in OF_A_NODE}


def train_parser() -> Parser:
    """Create the parser of `scripts/train.py`; a sweep may set its `flags()`."""
    parser = Parser(
        [ModelArguments, DataArguments, TrainingArguments, OutputArguments, HubArguments, *STRATEGIES.values()],
        prog="train.py",
        description="Fine-tune an encoder on a text-classification task.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file of flags, or a run.json; the command line wins")
    # W&B's own entry in a run's configuration, see `without_records`.
    parser.add_argument("--_wandb", help=SUPPRESS)
    return parser


def parse_train_arguments(argv: Sequence[str] | None = None) -> TrainArguments:
    """Parse the command line (`sys.argv` by default), which overrides the flags of `--config FILE`.

    Raises:
        UserError: an unknown flag, a wrong value, or a file that is not a flat mapping of flags.
        SystemExit: after `--help`.
    """
    parser = train_parser()
    argv = without_groups(words_of(argv), parser.flags())
    argv = without_records(argv, parser.flags())
    try:
        config = parser.parse_known_args(argv)[0].config
    except ArgumentError as error:
        parser.error(str(error))
    of_file = [] if config is None else flags_of_file(Path(config), parser)
    try:
        model, data, training, output, hub, *rest, _ = parser.parse_words(of_file + argv)
    except UserError as error:
        raise UserError(*(_blamed(mistake, of_file, argv, config) for mistake in error.args)) from error
    strategies: dict[str, Strategy] = dict(zip(STRATEGIES, rest, strict=True))
    groups = model, data, training, output, hub
    return TrainArguments(*groups, strategies[training.method], tuple(_without_effect(*groups, strategies)))


def _blamed(message: str, of_file: list[str], argv: list[str], config: str | None) -> str:
    """Name the file of flags in a message about a flag that only the file sets."""
    flag = message.partition(" ")[0].rstrip(":")
    elsewhere = {f"--{underscored(word.partition('=')[0])}" for word in argv}
    in_file = any(word.startswith(f"{flag}=") for word in of_file)
    return f"--config {config}: {message}" if in_file and flag not in elsewhere else message


def check_train_arguments(argv: Sequence[str]) -> None:
    """Parse a run's command line, and check that its flags fit together.

    Raises:
        UserError: see `parse_train_arguments` and `TrainArguments.checked`.
    """
    parse_train_arguments(argv).checked()


def _without_effect(
    model: ModelArguments, data: DataArguments, training: TrainingArguments, output: OutputArguments,
    hub: HubArguments, strategies: dict[str, Strategy],
) -> Iterator[str]:  # fmt: skip
    """Yield a line for each flag that was set without effect."""
    unused = [
        f"--{name}" for method, strategy in strategies.items() if method != training.method for name in _set(strategy)
    ]
    if unused:
        yield f"--method {training.method} does not use {', '.join(unused)}"
    given = {name for group in (model, data, training, output, hub) for name in _set(group)}
    # Flag -> (another flag, whether the flag is ineffective with it, or else without it).
    without_effect = {
        "warmup_ratio": ("num_warmup_steps", True),
        "num_train_epochs": ("max_train_steps", True),
        "extend_training": ("resume_from_checkpoint", False),
        "hub_model_id": ("push_to_hub", False),
        "hub_private_repo": ("push_to_hub", False),
    }
    for name, (other, with_it) in without_effect.items():
        if name in given and (other in given) == with_it:
            yield f"--{name} has no effect {'together with' if with_it else 'without'} --{other}"
    if not training.accelerates:
        for name in ("frozen_dtype", "cuda_graphs"):
            if name in given:
                yield f"--{name} has no effect with --acceleration off"
    elif training.gradient_checkpointing and "cuda_graphs" in given:
        yield "--cuda_graphs has no effect with --gradient_checkpointing"
    if training.lr_scheduler_type == "constant":
        for name in ("num_warmup_steps", "warmup_ratio"):
            if name in given:
                yield f"--{name} has no effect with --lr_scheduler_type constant; use constant_with_warmup"
    name = model.model_name_or_path
    if "model_revision" in given and (name in PACKAGED_MODELS or Path(name).is_dir()):
        kind = "packaged model" if name in PACKAGED_MODELS else "folder"
        yield f"--model_revision has no effect on {name}, which is a {kind}"


def _set(group: Any) -> list[str]:
    """The flags of a group that differ from their defaults."""
    return [entry.name for entry in fields(group) if getattr(group, entry.name) != entry.default]
