"""A batch without padding: the tokens of all examples as one block of rows, and its conversion to attention heads."""

from __future__ import annotations

import torch


def packed_rows(tokens: int, gradients: bool) -> int:
    """Return the number of rows for a batch: more than its tokens, by at most 32 or a sixteenth.

    It is rounded up in steps, because oneDNN compiles its products for every number of rows, at 5 MB each in training.
    Steps twice as long: 1.02 × the time, 50 MB less for an epoch of MRPC. Without gradients it is half the memory, and
    batches are larger and come again, so the steps are a fourth as long: 1.02 × as fast on MRPC.
    """
    step = max(32, 2 ** tokens.bit_length() // (32 if gradients else 128))
    return (tokens // step + 1) * step


class Packing:
    """The layout of a batch of B examples, W tokens wide, in T rows.

    At least the last row is a filler: a copy of some token, whose gradient is zero in every layer. Attention reads it
    in place of padding.

    Args:
        seen: bool, shape (B, W): true where there is a token; each example's first must be one.
        heads, head_width: of attention.
        dtype: of the scores.

    Attributes:
        tokens: for each row, the index of its token in the flattened batch, B · W; shape (T,).
        real: number of rows before the fillers.
        first: the row of each example's first token; shape (B,).
        starts: `first`, followed by the row of the first filler; shape (B + 1,).
        bias: added to the scores: zero for tokens, the dtype's minimum for padding; shape (B · heads, 1, W).
    """

    def __init__(self, seen: torch.Tensor, heads: int, head_width: int, dtype: torch.dtype) -> None:
        examples, width = seen.shape
        self.heads, self.head_width, self.width = heads, head_width, width
        tokens = seen.flatten().nonzero().flatten()
        self.real = len(tokens)
        count = packed_rows(self.real, torch.is_grad_enabled())
        self.tokens = torch.cat([tokens, tokens.new_zeros(count - self.real)])
        rows = torch.full((examples * width,), count - 1)
        rows[tokens] = torch.arange(self.real)
        self._rows = rows.view(examples, width)
        self.first = self._rows[:, 0].contiguous()
        self.starts = torch.cat([self.first, self.first.new_tensor([self.real])])
        least = torch.finfo(dtype).min
        bias = torch.zeros(self._rows.shape, dtype=dtype).masked_fill_(self._rows == count - 1, least)
        self.bias = bias.repeat_interleave(heads, 0).unsqueeze(1)
        # Index of each row's token in the flattened (B, heads, W), for the first head.
        self._starts = self.tokens // width * heads * width + self.tokens % width
        self._places: dict[tuple[str, int], torch.Tensor] = {}  # cached, as all layers use the same

    def to_heads(self, rows: torch.Tensor) -> torch.Tensor:
        """Gather (T, parts · heads · head width) into (parts, B · heads, W, head width)."""
        parts = rows.size(1) // (self.heads * self.head_width)
        if ("to", parts) not in self._places:
            part, head = torch.arange(parts).view(-1, 1, 1, 1), torch.arange(self.heads).view(-1, 1)
            # (parts, B, heads, W): indices into the T · parts · heads pieces of the rows.
            self._places["to", parts] = (((self._rows * parts).unsqueeze(1) + part) * self.heads + head).flatten()
        picked = rows.view(-1, self.head_width).index_select(0, self._places["to", parts])
        return picked.view(parts, -1, self.width, self.head_width)

    def from_heads(self, heads: torch.Tensor) -> torch.Tensor:
        """Invert `to_heads`; fillers get the values of some token."""
        parts, batch = heads.shape[:2]
        if ("from", parts) not in self._places:
            part, head = torch.arange(parts).unsqueeze(1), torch.arange(self.heads)
            # (T, parts, heads): indices into the parts · B · heads · W pieces.
            places = self._starts.view(-1, 1, 1) + (part * batch + head) * self.width
            self._places["from", parts] = places.flatten()
        picked = heads.view(-1, self.head_width).index_select(0, self._places["from", parts])
        return picked.view(len(self.tokens), -1)
