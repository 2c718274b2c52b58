"""From a task to loaders: its splits as tokens, and the micro-batches over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from peftlib.data.batching import Slot, WindowBatches
from peftlib.data.collation import Collator, split_inputs
from peftlib.data.encoding import EncodedExamples, encode
from peftlib.data.sources import load_examples
from peftlib.data.tasks import Task
from peftlib.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: So many examples of one class alone come from a file that is sorted by class.
_ENOUGH_FOR_TWO_CLASSES = 16


@dataclass(frozen=True)
class Splits:
    """What a run trains on and what it is scored on."""

    train: EncodedExamples
    validation: EncodedExamples

    def extent(self, pad_to: int = 0) -> tuple[int, int]:
        """The highest token id, and the tokens of the longest example, padded to so many at least."""
        (token, length), (other, longer) = self.train.extent, self.validation.extent
        return max(token, other), max(length, longer, pad_to)

    def facts(self) -> dict[str, dict[str, Any]]:
        """Split -> its size, fingerprint and source, for the run's record."""
        return {
            name: {
                "examples": len(split),
                "longest": int(split.lengths.max()),  # in tokens
                "truncated": split.truncated,
                "fingerprint": split.fingerprint,
                "source": split.source,
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
) -> Splits:
    """Read and tokenise the training and validation splits; the first N examples where a limit is given.

    Raises:
        UserError: the rows cannot be had, or are not what the task says.
    """
    folder = None if data_dir is None else Path(data_dir)
    # Both are read before either is tokenised: what is wrong with the data is said at once.
    train = load_examples(task, "train", folder).first(max_train_samples)
    validation = load_examples(task, "validation", folder).first(max_eval_samples)
    for split, flag, most in ((train, "train", max_train_samples), (validation, "eval", max_eval_samples)):
        # The first rows of a file, or a slice of a dataset, which may be sorted by class.
        is_part = most is not None or (task.own is not None and task.own.dataset is not None)
        if is_part and len(split) >= _ENOUGH_FOR_TWO_CLASSES and len(set(split.labels)) == 1:
            part = "" if most is None else f"--max_{flag}_samples {most}: the first "
            label = task.written(split.labels[0]) or "of no class"
            raise UserError(
                f"{part}{len(split)} examples of {split.source} are all {label}; shuffle the rows, or take more"
            )
    return Splits(encode(train, tokenizer, max_length), encode(validation, tokenizer, max_length))


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
    """Loaders for training and evaluation, still to be prepared by accelerate.

    Args:
        batch_sizes: in training and in evaluation, per process.
        pad_to: tokens to pad every batch to; 0 pads to its longest example, rounded up.

    Returns:
        The two loaders, and the training loader's sampler, which holds the order of the data and its position.
    """
    # Any: torch's types know of lists alone, a collator takes what `__getitems__` gives.
    collator: Any = Collator.for_tokenizer(tokenizer, pad_to, widest=splits.extent()[1])
    # A loader draws a seed for its workers at every start. From a generator of its own: the run's generators, which
    # checkpoints hold, stay out of it.
    own = torch.Generator().manual_seed(seed)
    train_batch_size, eval_batch_size = batch_sizes
    batches = WindowBatches(
        splits.train.lengths,
        train_batch_size,
        num_processes=num_processes,
        accumulation_steps=accumulation_steps,
        seed=seed,
        group_by_length=group_by_length,
    )
    options: dict[str, Any] = {"num_workers": num_workers, "generator": own}
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
    """The longest examples, at most `size` of them, as the loader's collator lays them out; none counts in a loss."""
    split: Any = loader.dataset
    longest = np.argsort(-split.lengths, kind="stable")[:size]
    return laid_out(loader, [Slot(int(one), 0.0) for one in longest])


def laid_out(loader: DataLoader, slots: list[Slot]) -> dict[str, torch.Tensor]:
    """A micro-batch of these examples, as the loader's collator lays it out."""
    split: Any = loader.dataset
    batch: dict[str, torch.Tensor] = loader.collate_fn(split.__getitems__(slots))
    return batch


def longest_inputs(loader: DataLoader) -> dict[str, torch.Tensor]:
    """What a model takes of `longest_batch` of one."""
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
    """A loader over one split for `evaluation.evaluator`, still to be prepared by accelerate.

    Args:
        batch_size: per process.
        pad_to: as in `build_loaders`.
        widest: tokens of the longest example that the model has been given in training; in batches of other widths, a
            matrix product may round otherwise.
    """
    longest = max(widest, int(split.lengths.max()))
    return _in_order(split, Collator.for_tokenizer(tokenizer, pad_to, longest), batch_size, num_processes)
