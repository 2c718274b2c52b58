"""Check that a model's token and position embeddings are large enough."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from peftlib.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Names of absolute position embeddings in BERT, GPT-2 and BART.
_POSITIONS = ("position_embeddings", "wpe", "embed_positions")


def refuse_what_ends_before(model: PreTrainedModel, name: str, token: int, length: int, added: int = 0) -> None:
    """Refuse a model whose embeddings are too small, before a lookup fails.

    A lookup out of range is a bare IndexError on a CPU, and on a GPU an assertion that does not name the cause.

    Args:
        name: the model's name, for the message.
        token: highest token id in the data.
        length: tokens of the longest example.
        added: virtual tokens that a method puts before every example.

    Raises:
        UserError: the embeddings have no entry for `token`, or too few positions for `length`.
    """
    with contextlib.suppress(NotImplementedError):  # character-level models have no token embeddings
        tokens = getattr(model.get_input_embeddings(), "num_embeddings", token + 1)
        if token >= tokens:
            raise UserError(
                f"--model_name_or_path {name}: its tokenizer gives token id {token}, and the model has embeddings for "
                f"{tokens:,}; resize them to the tokenizer and save it again (model.resize_token_embeddings)"
            )
    # RoBERTa's positions start after the padding index, BART's after an offset.
    limits = [
        table.num_embeddings - getattr(table, "offset", 0) - (0 if table.padding_idx is None else table.padding_idx + 1)
        for place, table in model.named_modules()
        if place.rpartition(".")[2] in _POSITIONS and hasattr(table, "num_embeddings")
    ]
    if limits:  # relative positions have no limit
        positions = min(*limits, getattr(model.config, "max_position_embeddings", limits[0]))
        if length + added > positions:
            if added >= positions:
                raise UserError(
                    f"--peft_kwargs: num_virtual_tokens is {added}, and {name} has {positions} positions for them and "
                    "the text; use fewer"
                )
            taken = f"{positions} positions, {added} of which virtual tokens take" if added else "no more positions"
            raise UserError(
                f"--max_length must be at most {positions - added}: {name} has {taken}, and the longest "
                f"example here has {length} tokens"
            )
