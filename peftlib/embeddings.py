"""How far a model's embeddings reach."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from peftlib.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Tables of absolute positions, as BERT, GPT-2 and BART call them.
_POSITIONS = ("position_embeddings", "wpe", "embed_positions")


def refuse_what_ends_before(model: PreTrainedModel, name: str, token: int, length: int) -> None:
    """Say it before a look-up does: on a CPU it would be an IndexError, on a GPU an assertion that names nothing.

    Args:
        name: what the model is called, for people.
        token: the highest token id that it will be given.
        length: the most tokens.

    Raises:
        UserError: its embeddings end before.
    """
    with contextlib.suppress(NotImplementedError):  # models of characters have no such table
        tokens = getattr(model.get_input_embeddings(), "num_embeddings", token + 1)
        if token >= tokens:
            raise UserError(
                f"--model_name_or_path {name}: its tokenizer gives token id {token}, and the model has embeddings for "
                f"{tokens:,}; resize them to the tokenizer and save it again (model.resize_token_embeddings)"
            )
    # RoBERTa's first position is the one behind its padding's, BART's the one behind its offset.
    limits = [
        table.num_embeddings - getattr(table, "offset", 0) - (0 if table.padding_idx is None else table.padding_idx + 1)
        for place, table in model.named_modules()
        if place.rpartition(".")[2] in _POSITIONS and hasattr(table, "num_embeddings")
    ]
    if limits:  # relative positions have no end
        positions = min(*limits, getattr(model.config, "max_position_embeddings", limits[0]))
        if length > positions:
            raise UserError(
                f"--max_length must be at most {positions}: {name} has no more positions, and the longest "
                f"example here has {length} tokens"
            )
