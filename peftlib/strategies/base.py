"""What every method has to answer: which parameters train, at which rate, and how the result is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:  # torch takes a second to import and `--help` only reads the fields
    from peft import PeftModel
    from transformers import PreTrainedModel

    Trained: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Strategy(ABC):
    """One way to fine-tune a sequence classifier. Fields of subclasses become command-line flags.

    Those that have any name their group in `--help` as HfArgumentParser asks for it, in `_argument_group_name`.
    """

    #: Peak learning rate when `--learning_rate` is not given.
    default_learning_rate: ClassVar[float]
    #: The flags that `named` tells.
    named_by: ClassVar[tuple[str, ...]] = ()
    #: Probability of the base model's dropout when `--dropout` is not given; None leaves the model's own.
    default_dropout: ClassVar[float | None] = None

    @classmethod
    def named(cls, flags: Mapping[str, Any]) -> str:
        """What reports call it with these flags, which may be an older version's and lack some."""
        return cls.__name__

    @property
    def reads_frozen_weights(self) -> bool:
        """Whether frozen weights enter other than through their layers' products, so that rounding them counts."""
        return False

    @abstractmethod
    def apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        """Make `model` train what this method trains, and nothing else.

        Args:
            model: a sequence classifier in fp32; changed in place.
            head: the names of the parameters that the checkpoint did not bring (see `modeling.py`).

        Returns:
            The model to train: `model` itself, or a wrapper around it.

        Raises:
            UserError: this model has nothing for the method to train.
        """

    def save(self, model: Trained, head: frozenset[str], folder: Path) -> None:
        """Write the trained result into `folder`, in a format that stock PEFT or transformers loads.

        That is PEFT's own for what is in PEFT's wrapper.

        Args:
            model: what `apply` returned, without wrappers for precision or processes.
            head: as given to `apply`.
            folder: an existing folder.
        """
        from peftlib.strategies.adapter import write_adapter

        write_adapter(model, folder)

    def load(self, model: PreTrainedModel, folder: Path) -> Trained:
        """Put the adapter that `save` has written onto its base model, for inference; by way of stock PEFT.

        Args:
            model: the base model with a new head; changed in place.

        Raises:
            UserError: the adapter is damaged, or of another model.
        """
        from peftlib.strategies.adapter import load_adapter

        return load_adapter(model, folder)


def names_in(text: str) -> list[str]:
    """The names of a flag that takes some, with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]
