"""Collate examples into a micro-batch of tensors: padded, or packed into rows without padding."""

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

#: Padded widths are multiples of this many tokens. For every new width, oneDNN compiles and caches new matrix products:
#: with one width per length, a BitFit run on MRPC's lengths in bf16 took 1.37 GB after 120 micro-batches; in steps of
#: 4 it takes 0.92 GB at the same speed. Steps of 8 take 0.84 GB, and 13 % more tokens for sentences of 27.
WIDTH_STEP = 4
#: On a GPU, the longest example's length is rounded up to one of these widths, since each needs its own CUDA graph. The
#: kernels support no more than the last one.
WIDTHS = (32, 64, 128)
#: The number of rows is a multiple of this, the tile size of matrix products, or of a sixteenth of the next power of
#: two if that is larger.
STEP = 128


@dataclass(frozen=True)
class Collator:
    """Pads the examples of a micro-batch to the longest one, rounded up to `WIDTH_STEP`, or to `pad_to`.

    Attributes:
        pad_values: input column -> padding value.
        pad_to: a fixed length in tokens, or 0 for the longest example of the batch.
        widest: length of the longest example of all, in tokens. Rounding does not exceed it, since a model may have no
            positions beyond it; 0 disables rounding.
        on_the_left: whether padding precedes the tokens.
    """

    pad_values: dict[str, int]
    pad_to: int = 0
    widest: int = 0
    on_the_left: bool = False

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, pad_to: int = 0, widest: int = 0) -> Collator:
        """Create one that pads as the tokenizer would itself.

        Raises:
            UserError: the tokenizer has no padding token.
        """
        if tokenizer.pad_token_id is None:
            raise UserError("the tokenizer has no padding token; use an encoder such as BERT or RoBERTa")
        values = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        return cls(values, pad_to, widest, tokenizer.padding_side == "left")

    def in_rows(self, first_position: int) -> Collator | RowCollator:
        """Return a collator without padding, for encoders that support it; `self` if a fixed length was asked for."""
        return self if self.pad_to else RowCollator(self, first_position)

    def __call__(self, chosen: Chosen) -> dict[str, torch.Tensor]:
        """Pad B examples into a batch.

        Returns:
            `attention_mask` and the model's input columns, int64 of shape (B, width); and the fields of `Targets`.
        """
        longest = int(chosen.lengths.max())
        width = max(self.pad_to, longest, min(-(-longest // WIDTH_STEP) * WIDTH_STEP, self.widest))
        is_token = np.arange(width) < chosen.lengths[:, None]
        if self.on_the_left:
            is_token = is_token[:, ::-1]
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
    """Concatenates the examples of a micro-batch, one row per token, for encoders on a GPU that support this.

    Done on the host, which knows the lengths: reading them back from the GPU would block, and CUDA graphs need few
    distinct numbers of rows.

    Attributes:
        padded: collator for micro-batches with an example longer than `WIDTHS` allow.
        first_position: the model's position id of an example's first token.
    """

    padded: Collator
    first_position: int

    def __call__(self, chosen: Chosen) -> dict[str, torch.Tensor]:
        """Concatenate B examples, followed by fillers of weight 0: S sequences of T tokens in all.

        Returns:
            The model's input columns and `position_ids`, int64, (1, T); `attention_mask`, int32, (S, 1, 1, width),
            which holds the row of each token of a sequence, and -1 after its end; and the fields of `Targets`, 0 for
            fillers.
        """
        longest, tokens = int(chosen.lengths.max()), int(chosen.lengths.sum())
        if longest > WIDTHS[-1]:
            return self.padded(chosen)
        width = next(width for width in WIDTHS if width >= longest)
        count, fillers = rows_for(tokens, width)
        spare = np.arange(tokens, count)
        lengths = np.concatenate([chosen.lengths, [len(part) for part in np.array_split(spare, fillers)]])
        is_token = np.arange(width) < lengths[:, None]
        rows = np.full(is_token.shape, -1, dtype=np.int32)
        rows[is_token] = np.arange(count)
        batch: dict[str, np.ndarray] = {"attention_mask": rows[:, None, None]}
        offsets = np.arange(tokens) - np.repeat(np.cumsum(chosen.lengths) - chosen.lengths, chosen.lengths)
        for name, column in {**chosen.columns, "position_ids": self.first_position + offsets}.items():
            row = np.full((1, count), column[0], dtype=np.int64)
            row[0, :tokens] = column
            batch[name] = row
        for name in Targets._fields:
            values: np.ndarray = getattr(chosen, name)
            batch[name] = np.concatenate([values, np.zeros((fillers, *values.shape[1:]), values.dtype)])
        return OnePiece.of(batch)


def is_in_rows(batch: dict[str, torch.Tensor]) -> bool:
    """Return whether the batch comes from a `RowCollator`, without padding."""
    return batch["attention_mask"].dim() == 4


def rows_for(tokens: int, width: int) -> tuple[int, int]:
    """Return the number of rows, and of fillers among which the spare rows are divided, 1 to `width` rows each."""
    step = max(STEP, 2 ** tokens.bit_length() // 16)
    fillers = step // (width - 1) + 1
    return -(-(tokens + fillers) // step) * step, fillers


class Targets(NamedTuple):
    """A batch's tensors that are not inputs of the model.

    Attributes:
        labels: class indices, int64, or regression targets, fp32, shape (B,); multi-hot for multi-label tasks, int64,
            shape (B, classes).
        example: indices in the split, int64, shape (B,).
        weight: shares in the window's loss, fp32, shape (B,).
    """

    labels: torch.Tensor
    example: torch.Tensor
    weight: torch.Tensor

    @property
    def are_classes(self) -> bool:
        """Whether each example has exactly one class."""
        return self.labels.dim() == 1 and not self.labels.is_floating_point()


def split_inputs(batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Targets]:
    """Split a batch into the model's inputs and the targets."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in Targets._fields}
    return inputs, Targets(**{name: batch[name] for name in Targets._fields})
