"""Load a task's splits as tokens, and build data loaders over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from peftlib.data.batching import Slot, WindowBatches
from peftlib.data.class_weights import NONE, class_weights
from peftlib.data.collation import Collator, split_inputs
from peftlib.data.encoding import EncodedExamples, encode
from peftlib.data.sources import load_examples
from peftlib.data.tasks import Task
from peftlib.errors import UserError
from peftlib.processes import leave_signals_to_parent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: From this many examples on, a split with a single class is taken to come from a file that is sorted by class.
_ENOUGH_FOR_TWO_CLASSES = 16


@dataclass(frozen=True)
class Splits:
    """The training and validation splits of a run.

    Attributes:
        weights: class name -> how much its training examples count in the loss, in the order of the classes; empty if
            all count alike.
        leaked: validation examples whose texts are a training example's too.
    """

    train: EncodedExamples
    validation: EncodedExamples
    weights: dict[str, float] = field(default_factory=dict)
    leaked: int = 0

    def extent(self, pad_to: int = 0) -> tuple[int, int]:
        """Return the highest token id, and the length of the longest example in tokens, at least `pad_to`."""
        (token, length), (other, longer) = self.train.extent, self.validation.extent
        return max(token, other), max(length, longer, pad_to)

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return split -> its size, fingerprint and source, for the run's record; and the class weights, if any."""
        weights = {"class_weights": self.weights} if self.weights else {}
        return {
            name: {
                "examples": len(split),
                "longest": int(split.lengths.max()),  # in tokens
                "truncated": split.truncated,
                # Of scores, by size.
                **({"largest": float(np.abs(split.labels).max())} if split.labels.dtype.kind == "f" else {}),
                **({"class_counts": _class_counts(split.labels)} if split.labels.dtype.kind == "i" else {}),
                "fingerprint": split.fingerprint,
                "source": split.source,
                **(weights if split is self.train else {"leaked": self.leaked}),
            }
            for name, split in (("train", self.train), ("validation", self.validation))
        }


def load_splits(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    data_dir: str | None,
    max_length: int,
    max_train_samples: int | None,
    max_eval_samples: int | None,
    weights: str = NONE,
) -> Splits:
    """Read and tokenise the training and validation splits; only the first N examples if a limit is given.

    Args:
        weights: of the classes in the training loss, the checked value of `--class_weights`.

    Raises:
        UserError: the rows cannot be loaded, or do not fit the task.
    """
    folder = None if data_dir is None else Path(data_dir)
    # Read both before tokenising either, so that bad data is reported at once.
    train = load_examples(task, "train", folder).first(max_train_samples)
    validation = load_examples(task, "validation", folder).first(max_eval_samples)
    for split, flag, most in ((train, "train", max_train_samples), (validation, "eval", max_eval_samples)):
        # Only part of the data is used: the first rows, or a slice of a dataset, which may be sorted by class.
        is_part = most is not None or (task.own is not None and task.own.dataset is not None)
        if is_part and len(split) >= _ENOUGH_FOR_TWO_CLASSES and len(set(split.labels)) == 1:
            part = "" if most is None else f"--max_{flag}_samples {most}: the first "
            label = task.written(split.labels[0]) or "of no class"
            raise UserError(
                f"{part}{len(split)} examples of {split.source} are all {label}; shuffle the rows, or take more"
            )
    trained_on = set(train.texts)
    leaked = sum(texts in trained_on for texts in validation.texts)
    encoded = encode(train, tokenizer, max_length)
    return Splits(
        encoded, encode(validation, tokenizer, max_length), class_weights(weights, task, encoded.labels), leaked
    )


def _class_counts(labels: np.ndarray) -> list[int]:
    """Examples of each class, up to the last one that has any."""
    counts: np.ndarray = np.bincount(labels) if labels.ndim == 1 else labels.sum(axis=0)
    return [int(count) for count in counts]


def build_loaders(
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    batch_sizes: tuple[int, int],
    accumulation_steps: int,
    num_processes: int,
    *,
    seed: int,
    group_by_length: bool,
    pad_to: int,
    num_workers: int,
) -> tuple[DataLoader, DataLoader, WindowBatches]:
    """Build loaders for training and evaluation, still to be prepared by accelerate.

    Args:
        batch_sizes: per process, for training and for evaluation.
        pad_to: tokens to pad every batch to; 0 pads to its longest example, rounded up.

    Returns:
        The two loaders, and the training loader's sampler, which holds the order of the data and the position in it.
    """
    # Any: torch's types allow only lists, but a collator is passed what `__getitems__` returns.
    collator: Any = Collator.for_tokenizer(tokenizer, pad_to, widest=splits.extent()[1])
    # A loader draws a seed for its workers at every start. A separate generator keeps this from advancing the run's
    # generators, which are saved in checkpoints.
    own = torch.Generator().manual_seed(seed)
    train_batch_size, eval_batch_size = batch_sizes
    batches = WindowBatches(
        splits.train.lengths,
        train_batch_size,
        num_processes=num_processes,
        accumulation_steps=accumulation_steps,
        seed=seed,
        group_by_length=group_by_length,
        weights=np.array(list(splits.weights.values()))[splits.train.labels] if splits.weights else None,
    )
    options: dict[str, Any] = {
        "num_workers": num_workers, "generator": own, "worker_init_fn": leave_signals_to_parent,
    }  # fmt: skip
    return (
        DataLoader(splits.train, batch_sampler=batches, collate_fn=collator, **options),
        _in_order(splits.validation, collator, eval_batch_size, num_processes, **options),
        batches,
    )


def _in_order(split: EncodedExamples, collator: Any, batch_size: int, num_processes: int, **options: Any) -> DataLoader:
    batches = WindowBatches(split.lengths, batch_size, num_processes=num_processes)
    return DataLoader(split, batch_sampler=batches, collate_fn=collator, **options)


def batches_of(loader: DataLoader) -> WindowBatches:
    """A loader's sampler; of a prepared one, that of all processes."""
    sampler: Any = loader.batch_sampler
    return sampler if isinstance(sampler, WindowBatches) else sampler.batch_sampler


def longest_batch(loader: DataLoader, size: int) -> dict[str, torch.Tensor]:
    """Return a micro-batch of the longest examples, at most `size` of them, with weight 0 in the loss."""
    split: Any = loader.dataset
    longest = np.argsort(-split.lengths, kind="stable")[:size]
    return laid_out(loader, [Slot(int(index), 0.0) for index in longest])


def laid_out(loader: DataLoader, slots: list[Slot]) -> dict[str, torch.Tensor]:
    """Return a micro-batch of these examples, built by the loader's collator."""
    split: Any = loader.dataset
    batch: dict[str, torch.Tensor] = loader.collate_fn(split.__getitems__(slots))
    return batch


def longest_inputs(loader: DataLoader) -> dict[str, torch.Tensor]:
    """Return the model's inputs for the longest example."""
    return split_inputs(longest_batch(loader, 1))[0]


def build_eval_loader(
    split: EncodedExamples,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    num_processes: int,
    *,
    pad_to: int = 0,
    widest: int = 0,
) -> DataLoader:
    """Build a loader over one split for `evaluation.evaluator`, still to be prepared by accelerate.

    Args:
        batch_size: per process.
        pad_to: as in `build_loaders`.
        widest: length of the longest example in the run's own splits, in tokens: the same widths as in training give
            the same bits, since matrix products of other widths may round differently.
    """
    longest = max(widest, int(split.lengths.max()))
    return _in_order(split, Collator.for_tokenizer(tokenizer, pad_to, longest), batch_size, num_processes)
