"""A batch without its padding: the tokens of all examples as one block of rows, and the way to attention's heads."""

from __future__ import annotations

import torch


def rows_for(tokens: int, gradients: bool) -> int:
    """More rows than tokens, by 32 or a sixteenth at most: oneDNN compiles products for every number of rows.

    That is 5 MB a number in training. Steps twice as long: 1.02 × the time, 50 MB less for an epoch of MRPC. Without
    gradients it is half of that, and batches are larger and come again: a fourth of the step, 1.02 × as fast on MRPC.
    """
    step = max(32, 2 ** tokens.bit_length() // (32 if gradients else 128))
    return (tokens // step + 1) * step


class Packing:
    """Where the tokens of a batch of B examples, W tokens wide, lie in T rows.

    The last row at least is a filler: a copy of some token, whose gradient is zero in every layer. What attention
    reads where an example has no token comes from there.

    Args:
        seen: bool, shape (B, W): true where a token is, the first of each example among them.
        heads, head_width: of attention.
        dtype: of the scores.

    Attributes:
        tokens: for each row the place of its token in the batch, of B · W; shape (T,).
        real: how many rows come before the fillers.
        first: the row of each example's first token; shape (B,).
        starts: the same, and at the end the first filler's row; shape (B + 1,).
        bias: added to the scores: zero for a token, the least number for none; shape (B · heads, 1, W).
    """

    def __init__(self, seen: torch.Tensor, heads: int, head_width: int, dtype: torch.dtype) -> None:
        examples, width = seen.shape
        self.heads, self.head_width, self.width = heads, head_width, width
        tokens = seen.flatten().nonzero().flatten()
        self.real = len(tokens)
        count = rows_for(self.real, torch.is_grad_enabled())
        self.tokens = torch.cat([tokens, tokens.new_zeros(count - self.real)])
        rows = torch.full((examples * width,), count - 1)
        rows[tokens] = torch.arange(self.real)
        self._rows = rows.view(examples, width)
        self.first = self._rows[:, 0].contiguous()
        self.starts = torch.cat([self.first, self.first.new_tensor([self.real])])
        least = torch.finfo(dtype).min
        bias = torch.zeros(self._rows.shape, dtype=dtype).masked_fill_(self._rows == count - 1, least)
        self.bias = bias.repeat_interleave(heads, 0).unsqueeze(1)
        # Of each row's token among (B, heads, W), for the first head.
        self._starts = self.tokens // width * heads * width + self.tokens % width
        self._places: dict[tuple[str, int], torch.Tensor] = {}  # the same for all layers

    def to_heads(self, rows: torch.Tensor) -> torch.Tensor:
        """(T, parts · heads · head width) to (parts, B · heads, W, head width)."""
        parts = rows.size(1) // (self.heads * self.head_width)
        if ("to", parts) not in self._places:
            part, head = torch.arange(parts).view(-1, 1, 1, 1), torch.arange(self.heads).view(-1, 1)
            # (parts, B, heads, W): of rows' T · parts · heads pieces.
            self._places["to", parts] = (((self._rows * parts).unsqueeze(1) + part) * self.heads + head).flatten()
        picked = rows.view(-1, self.head_width).index_select(0, self._places["to", parts])
        return picked.view(parts, -1, self.width, self.head_width)

    def from_heads(self, heads: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_heads`; fillers hold what some token does."""
        parts, batch = heads.shape[:2]
        if ("from", parts) not in self._places:
            part, head = torch.arange(parts).unsqueeze(1), torch.arange(self.heads)
            # (T, parts, heads): of the parts · B · heads · W pieces.
            places = self._starts.view(-1, 1, 1) + (part * batch + head) * self.width
            self._places["from", parts] = places.flatten()
        picked = heads.view(-1, self.head_width).index_select(0, self._places["from", parts])
        return picked.view(len(self.tokens), -1)
