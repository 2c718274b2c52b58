"""From examples to a micro-batch of tensors: padded, or laid out in rows without padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from peftlib.data.encoding import Chosen
from peftlib.data.one_piece import OnePiece
from peftlib.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Widths are multiples of so many tokens. For every new one, oneDNN compiles its products anew and keeps them: with one
#: width per length, a BitFit run on MRPC's lengths in bf16 took 1.37 GB after 120 micro-batches, in steps of 4 it takes
#: 0.92, at the same speed. Steps of 8 take 0.84, and 13 % more tokens where a sentence has 27.
WIDTH_STEP = 4
#: To which the longest example's length is rounded up: each is a CUDA graph of its own. The GPU's kernels take no more.
WIDTHS = (32, 64, 128)
#: Rows come in steps of so many, which is what matrix products are cut into, or of a sixteenth of the next power of
#: two.
STEP = 128


@dataclass(frozen=True)
class Collator:
    """Pads the examples of a micro-batch to its longest one (or to `pad_to`), rounded up to few widths.

    Attributes:
        pad_values: per input column the value that stands for "no token".
        pad_to: a fixed length in tokens, or 0 for the longest example of the batch.
        widest: tokens up to which widths are rounded, the longest example there is: a model may have no positions
            for more. 0 rounds nothing.
    """

    pad_values: dict[str, int]
    pad_to: int = 0
    widest: int = 0

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, pad_to: int = 0, widest: int = 0) -> Collator:
        """The padding that this tokenizer would do itself, on the right."""
        if tokenizer.pad_token_id is None:
            raise UserError("the tokenizer has no padding token; use an encoder such as BERT or RoBERTa")
        return cls({"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}, pad_to, widest)

    def in_rows(self, first_position: int) -> Collator | RowCollator:
        """One that does without padding, for encoders that can; itself where a fixed length is asked for."""
        return self if self.pad_to else RowCollator(self, first_position)

    def __call__(self, chosen: Chosen) -> dict[str, torch.Tensor]:
        """Lay B examples out one below the other.

        Returns:
            `attention_mask` and the model's input columns, int64 of shape (B, width); and `Targets`.
        """
        longest = int(chosen.lengths.max())
        width = max(self.pad_to, longest, min(-(-longest // WIDTH_STEP) * WIDTH_STEP, self.widest))
        is_token = np.arange(width) < chosen.lengths[:, None]
        batch: dict[str, torch.Tensor] = {}
        for name, column in chosen.columns.items():
            padded = np.full(is_token.shape, self.pad_values.get(name, 0), dtype=np.int64)
            padded[is_token] = column
            batch[name] = torch.from_numpy(padded)
        batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        for name in Targets._fields:
            batch[name] = torch.from_numpy(getattr(chosen, name))
        return batch


@dataclass(frozen=True)
class RowCollator:
    """Lays the examples of a micro-batch end to end, in rows of tokens, for encoders on a GPU that take them.

    The host does it, since it knows the lengths: a GPU that had to tell them would make it wait, and a CUDA graph needs
    few numbers of rows.

    Attributes:
        padded: of micro-batches with an example that is longer than the widths allow.
        first_position: of an example's first token, as the model counts.
    """

    padded: Collator
    first_position: int

    def __call__(self, chosen: Chosen) -> dict[str, torch.Tensor]:
        """Lay B examples out, and behind them fillers, which count nothing: S in all.

        Returns:
            The model's input columns and `position_ids`, int64, (1, T); as `attention_mask`, int32, (S, 1, 1, width),
            the rows of each example's tokens, and -1 behind them; and `Targets`, zero of fillers.
        """
        longest, tokens = int(chosen.lengths.max()), int(chosen.lengths.sum())
        if longest > WIDTHS[-1]:
            return self.padded(chosen)
        width = next(width for width in WIDTHS if width >= longest)
        count, fillers = rows_for(tokens, width)
        spare = np.arange(tokens, count)
        lengths = np.concatenate([chosen.lengths, [len(part) for part in np.array_split(spare, fillers)]])
        is_token = np.arange(width) < lengths[:, None]
        places = np.full(is_token.shape, -1, dtype=np.int32)
        places[is_token] = np.arange(count)
        batch: dict[str, np.ndarray] = {"attention_mask": places[:, None, None]}
        of_example = np.arange(tokens) - np.repeat(np.cumsum(chosen.lengths) - chosen.lengths, chosen.lengths)
        for name, column in {**chosen.columns, "position_ids": self.first_position + of_example}.items():
            row = np.full((1, count), column[0], dtype=np.int64)
            row[0, :tokens] = column
            batch[name] = row
        for name in Targets._fields:
            values: np.ndarray = getattr(chosen, name)
            batch[name] = np.concatenate([values, np.zeros((fillers, *values.shape[1:]), values.dtype)])
        return OnePiece.of(batch)


def is_in_rows(batch: dict[str, torch.Tensor]) -> bool:
    """Whether a `RowCollator` laid it out, without padding."""
    return batch["attention_mask"].dim() == 4


def rows_for(tokens: int, width: int) -> tuple[int, int]:
    """How many rows, and how many fillers the rows beyond the tokens make: of one row at least, and `width` at most."""
    step = max(STEP, 2 ** tokens.bit_length() // 16)
    fillers = step // (width - 1) + 1
    return -(-(tokens + fillers) // step) * step, fillers


class Targets(NamedTuple):
    """What a batch holds beside the model's inputs.

    `labels` are class indices, int64, or scores, fp32, of shape (B,), or for each class whether it is one of the
    example's, int64, (B, classes); `example` the places in the split, int64, and `weight` their shares in the window's
    loss, fp32, of shape (B,).
    """

    labels: torch.Tensor
    example: torch.Tensor
    weight: torch.Tensor

    @property
    def are_classes(self) -> bool:
        """Whether each example has one class."""
        return self.labels.dim() == 1 and not self.labels.is_floating_point()


def split_inputs(batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Targets]:
    """What goes into the model, and what its output is held against."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in Targets._fields}
    return inputs, Targets(**{name: batch[name] for name in Targets._fields})
