"""Text to token ids, once: the result is cached on disk under a hash of all that it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch.utils.data import Dataset

from peftlib.data.batching import Slot
from peftlib.data.sources import Examples
from peftlib.errors import UserError
from peftlib.files import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = "2"  # raise it when the cached files' content changes
#: Seconds after which a cached file that nobody has read goes: 90 days.
_KEPT = 90 * 24 * 3600


class Chosen(NamedTuple):
    """Some examples of a split, their tokens end to end.

    `columns` are the model's inputs, each flat, int32, of shape (total tokens,); `lengths`, `labels` and `example`,
    the places in the split, are int64, `weight` fp32, all of shape (B,). Labels that are scores are fp32; those of any
    number of classes of shape (B, classes).
    """

    columns: dict[str, np.ndarray]
    lengths: np.ndarray
    labels: np.ndarray
    example: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class EncodedExamples(Dataset[Chosen]):
    """Token ids of one split, ragged: example i is `column[offsets[i]:offsets[i + 1]]`.

    Attributes:
        columns: the model's inputs without padding or mask, each flat, int32, of shape (total tokens,).
        offsets: int64, shape (examples + 1,).
        labels: class indices, int64, or scores, fp32, shape (examples,); or for each class whether it is one of the
            example's, int64, shape (examples, classes).
        fingerprint: of the texts and labels, see `Examples.fingerprint`.
        source: where the rows come from, for people.
        truncated: how many of them were longer than they might be, and have lost their ends.
    """

    columns: dict[str, np.ndarray]
    offsets: np.ndarray
    labels: np.ndarray
    fingerprint: str
    source: str
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, int64, shape (examples,)."""
        return np.diff(self.offsets)

    @property
    def extent(self) -> tuple[int, int]:
        """The highest token id, and the tokens of the longest example."""
        return int(self.columns["input_ids"].max()), int(self.lengths.max())

    def __getitems__(self, slots: Sequence[Slot]) -> Chosen:
        """The examples of a micro-batch, all at once: one at a time, they cost more than a GPU's step allows."""
        example = np.array([slot.example for slot in slots], dtype=np.int64)
        starts = self.offsets[example]
        lengths = self.offsets[example + 1] - starts
        ends = np.cumsum(lengths)
        # Token t of the result is token t - (ends - lengths) of its example.
        places = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
        columns = {name: column[places] for name, column in self.columns.items()}
        weight = np.array([slot.weight for slot in slots], dtype=np.float32)
        return Chosen(columns, lengths, self.labels[example], example, weight)


def encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedExamples:
    """Tokenise `examples`, or read the result of an earlier call from the cache.

    Args:
        max_length: longer examples are truncated to so many tokens, special ones included.

    Raises:
        UserError: the model cannot take sequences of `max_length`, or nothing but special tokens would be left.
    """
    if max_length > tokenizer.model_max_length:
        raise UserError(f"--max_length {max_length}: this model takes at most {tokenizer.model_max_length} tokens")
    texts = len(examples.texts[0])
    least = tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
    if max_length < least:  # the tokenizer would leave them as long as they are
        raise UserError(f"--max_length {max_length}: must be at least {least}, special tokens included")
    fingerprint = examples.fingerprint()
    identity = "\0".join((_FORMAT, fingerprint, str(max_length), _identity(tokenizer)))
    path = cache_folder() / "tokens" / f"{hashlib.sha256(identity.encode()).hexdigest()}.safetensors"
    try:
        arrays = load_file(path)
        with contextlib.suppress(OSError):  # of a cache that cannot be written
            os.utime(path)  # read today
    except (OSError, SafetensorError):  # not there yet, or damaged: tokenise, and write it anew
        arrays = _tokenise(examples, tokenizer, max_length)
        _store(arrays, path)
        _forget_old(path.parent)
    offsets, labels = arrays.pop("offsets"), arrays.pop("labels")
    truncated = int(arrays.pop("truncated").item())
    return EncodedExamples(arrays, offsets, labels, fingerprint, examples.source, truncated)


def _tokenise(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, np.ndarray]:
    columns = [list(column) for column in zip(*examples.texts, strict=True)]
    # A copy, because a call leaves its truncation and padding in the tokenizer, which is saved with the result: the
    # file would depend on whether the cache was filled.
    tokens = deepcopy(tokenizer)(
        *columns,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        verbose=False,
    )
    lengths = np.fromiter((len(ids) for ids in tokens["input_ids"]), dtype=np.int64, count=len(examples))
    arrays = {name: np.concatenate([np.asarray(ids, dtype=np.int32) for ids in rows]) for name, rows in tokens.items()}
    arrays["truncated"] = np.array(sum(bool(one.overflowing) for one in tokens.encodings), dtype=np.int64)
    arrays["offsets"] = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    labels = np.asarray(examples.labels)
    arrays["labels"] = labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)
    return arrays


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that shapes its output beside `max_length`: the class, its columns, the vocabulary and what is around it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json; use a model that has one")
    pipeline = json.loads(backend.to_str())
    # How the tokenizer was called last: it would make the second split's place depend on the first one's.
    del pipeline["truncation"], pipeline["padding"]
    columns = ",".join(tokenizer.model_input_names)
    return f"{type(tokenizer).__name__}\0{columns}\0{tokenizer.truncation_side}\0{json.dumps(pipeline)}"


def _store(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write the cache; a folder that cannot be written costs time on the next run, not this run."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        save_file(arrays, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError):
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _forget_old(folder: Path) -> None:
    """Remove what has not been read for so long, and what was left half-written; others may do the same meanwhile."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.suffix in (".safetensors", ".tmp") and time.time() - path.stat().st_mtime > _KEPT:
                path.unlink()
