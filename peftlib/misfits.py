"""What of a base model may not fit the data: its embeddings' reach, padding that it reads, its head's classes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftlib.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Names of absolute position embeddings in BERT, GPT-2 and BART.
_POSITIONS = ("position_embeddings", "wpe", "embed_positions")
#: Types of models whose logits depend on padding in transformers, whatever the attention mask says: by their Fourier
#: transform, convolutions, segment means or hashes, and MobileBERT's by the embedding of each token's successor.
_READ_PADDING = frozenset({"convbert", "fnet", "mobilebert", "nystromformer", "yoso"})
#: Number of class names to show at most.
_MOST_SHOWN = 5


def reads_padding(kind: str, name: str) -> str | None:
    """Say in a line that a model reads padding, if it does: then answers and gradients depend on how it is batched.

    Args:
        kind, name: the model's type, and its name.
    """
    if kind not in _READ_PADDING:
        return None
    return (
        f"transformers' {kind} reads padding too, so what {name} answers depends on the other examples of a batch; "
        "--pad_to_max_length makes it the same in every batch"
    )


def other_classes(config: Mapping[str, Any], labels: Sequence[str], name: str) -> str | None:
    """Say in a line that a model's head was made for other classes, or for the same in another order; None if not.

    Args:
        config: the checkpoint's configuration, as it is stored.
        labels: class names in the order of their indices.
        name: the model's name.
    """
    indexed = config.get("id2label")
    try:
        before = [str(indexed[index]) for index in sorted(indexed, key=int)] if indexed else []
    except (TypeError, ValueError):
        return None
    same = [label.casefold() for label in before] == [label.casefold() for label in labels]
    if same or before == [f"LABEL_{index}" for index in range(len(before))]:
        return None
    return f"the head that {name} brings was made for the classes {_named(before)}; here they are {_named(labels)}"


def _named(classes: Sequence[str]) -> str:
    return ", ".join(classes[:_MOST_SHOWN]) + (", …" if len(classes) > _MOST_SHOWN else "")


def refuse_other_lengths(model: PreTrainedModel, name: str, length: int | None) -> None:
    """Refuse a Nyströmformer of a fixed length, unless all examples have that: transformers' code for it fails.

    Args:
        length: what all examples are padded to; None if they are not.

    Raises:
        UserError: they have other lengths.
    """
    if model.config.model_type == "nystromformer":
        only = model.config.segment_means_seq_len
        if only not in (model.config.num_landmarks, length):  # with as many landmarks as tokens, attention is plain
            raise UserError(
                f"--model_name_or_path {name}: takes inputs of {only} tokens only; use --max_length {only} "
                "--pad_to_max_length"
            )


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
