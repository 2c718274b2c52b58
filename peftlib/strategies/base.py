"""Interface of a fine-tuning method: which parameters train, at which learning rate, and how they are saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from peftlib.errors import UserError

if TYPE_CHECKING:  # torch takes a second to import and `--help` only reads the fields
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    Trained: TypeAlias = PreTrainedModel | PeftModel

#: The attribute in which an adapted model, and so each of its copies, keeps the names of its head's parameters.
_HEAD = "_peftlib_head"


class StepHook(Protocol):
    """What a method does at every update, besides the optimizer; identically on every process."""

    def before_step(self) -> None:
        """Change the gradients of the whole window, which are neither clipped nor, in fp16, scaled."""

    def after_step(self, step: int, skipped: torch.Tensor | None) -> None:
        """Use the clipped gradients, and change the parameters, after the optimizer has.

        Args:
            step: number of the update, counted from 1.
            skipped: fp16 only: a scalar on the device that is not 0 if the scaler skipped the update.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint has to hold, on the CPU."""

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` has returned."""


@dataclass(frozen=True)
class Strategy(ABC):
    """A method to fine-tune a sequence classifier. Fields of subclasses become command-line flags.

    Subclasses with fields set `_argument_group_name`, which HfArgumentParser shows as their group's title in `--help`.
    """

    #: Peak learning rate when `--learning_rate` is not given.
    default_learning_rate: ClassVar[float]
    #: The flags that are part of the name from `named`.
    named_by: ClassVar[tuple[str, ...]] = ()
    #: Dropout probability of the base model when `--dropout` is not given; None keeps the model's own.
    default_dropout: ClassVar[float | None] = None

    @classmethod
    def named(cls, flags: Mapping[str, Any]) -> str:
        """Return the method's display name with these flags; those of an older version may lack some."""
        return cls.__name__

    @property
    def reads_frozen_weights(self) -> bool:
        """Whether frozen weights are also read outside their layers' matrix products, so that rounding them matters."""
        return False

    @property
    def draws_on_host(self) -> bool:
        """Whether training steps depend on random numbers of the host, which a CUDA graph would repeat for ever."""
        return False

    @property
    def recomputable(self) -> bool:
        """Whether a layer computes the same again from its input alone, as gradient checkpointing lets it."""
        return True

    @property
    def virtual_tokens(self) -> int:
        """Number of positions that the method takes in addition to an example's tokens."""
        return 0

    @property
    def mergeable(self) -> bool:
        """Whether the trained result can be merged into the base model's weights; virtual tokens are inputs to it."""
        return self.virtual_tokens == 0

    def apply(self, model: PreTrainedModel, head: frozenset[str] | None = None) -> Trained:
        """Make exactly the parameters trainable that this method trains.

        Args:
            model: a sequence classifier in fp32; changed in place.
            head: names of the head's parameters, from `modeling.load_classifier`; None asks the model, as
                `from_pretrained` returned it, see `parameters.head_of`.

        Returns:
            The model to train: `model` itself, or a wrapper around it.

        Raises:
            UserError: this model has nothing for the method to train, or its head is not known.
        """
        from peftlib.strategies.parameters import head_of

        head = head_of(model) if head is None else head
        adapted = self._apply(model, head)
        setattr(adapted, _HEAD, head)  # of the model as it was: a copy of it could not be asked
        return adapted

    @abstractmethod
    def _apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        """Do what `apply` says."""

    def step_hook(self, model: Trained, steps: int) -> StepHook | None:
        """Return what the loop calls at every update; None, the default, if the method needs nothing.

        Args:
            model: what `apply` returned, on its device.
            steps: updates in the whole run.

        Raises:
            UserError: the method's flags do not fit a run of this length.
        """
        return None

    def save(self, model: Trained, folder: str | Path, head: frozenset[str] | None = None) -> None:
        """Write the trained result into `folder`, in a format that stock PEFT or transformers loads.

        Args:
            model: what `apply` returned, without accelerate's wrapper for mixed precision.
            folder: created if it does not exist.
            head: None takes the one of `apply`.
        """
        from peftlib.strategies.parameters import head_of

        if head is None:
            head = getattr(model, _HEAD, None) or head_of(model)
        Path(folder).mkdir(parents=True, exist_ok=True)
        was_training = model.training
        model.eval()  # P-tuning's prompts are computed while they are saved, without their encoder's dropout
        try:
            self._save(model, head, Path(folder))
        finally:
            model.train(was_training)

    def _save(self, model: Trained, head: frozenset[str], folder: Path) -> None:
        """Do what `save` says; this default saves a `PeftModel`."""
        from peftlib.strategies.adapter import write_adapter

        write_adapter(model, folder)

    def load(self, model: PreTrainedModel, folder: Path) -> Trained:
        """Load the adapter that `save` has written onto its base model, for inference, with stock PEFT.

        Args:
            model: the base model with a new head; changed in place.

        Raises:
            UserError: the adapter is damaged, or made for another model.
        """
        from peftlib.strategies.adapter import load_adapter

        return load_adapter(model, folder)


def names_in(text: str) -> list[str]:
    """Split a comma-separated flag into names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def refuse_wrong_targets(flag: str, text: str) -> None:
    """Check a flag with name endings, or all-linear.

    Raises:
        UserError: it is empty, or has both.
    """
    targets = names_in(text)
    if not targets:
        raise UserError(f"{flag} is empty; give name endings such as query,value, or all-linear")
    if "all-linear" in targets and len(targets) > 1:
        raise UserError(f"{flag} {text}: all-linear already includes the others; leave them out")
