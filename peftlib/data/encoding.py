"""Tokenise texts, with a cache on disk keyed by a hash of everything that the result depends on."""

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
import tokenizers
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch.utils.data import Dataset

from peftlib.data.batching import Slot
from peftlib.data.sources import Examples
from peftlib.errors import UserError
from peftlib.files import cache_folder, share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = "2"  # increase when the content of cached files changes
#: Seconds after which an unused cache file is removed: 90 days.
_KEPT = 90 * 24 * 3600


class Chosen(NamedTuple):
    """The examples of a micro-batch, with their tokens concatenated.

    Attributes:
        columns: the model's inputs, each flat, int32, shape (total tokens,).
        lengths: tokens per example, int64, shape (B,).
        labels: as in `EncodedExamples`.
        example: indices in the split, int64, shape (B,).
        weight: shares in the window's loss, fp32, shape (B,).
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
        labels: class indices, int64, or regression targets, fp32, shape (examples,); multi-hot for multi-label tasks,
            int64, shape (examples, classes).
        fingerprint: hash of the texts and labels, see `Examples.fingerprint`.
        source: where the rows come from, for messages.
        truncated: number of truncated examples.
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
        """The highest token id, and the length of the longest example in tokens."""
        return int(self.columns["input_ids"].max()), int(self.lengths.max())

    def __getitems__(self, slots: Sequence[Slot]) -> Chosen:
        """Gather a micro-batch in one vectorised step: example by example would take longer than a step on a GPU."""
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
        max_length: longer examples are truncated to this many tokens, special tokens included.

    Raises:
        UserError: `max_length` is more than the model supports, or so short that only special tokens would be left.
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
        with contextlib.suppress(OSError):  # the cache may be read-only
            os.utime(path)  # marks it as used, for `_forget_old`
    except (OSError, SafetensorError):  # missing or damaged: tokenise and write it again
        arrays = _tokenise(examples, tokenizer, max_length)
        _store(arrays, path)
        _forget_old(path.parent)
    offsets, labels = arrays.pop("offsets"), arrays.pop("labels")
    truncated = int(arrays.pop("truncated").item())
    return EncodedExamples(arrays, offsets, labels, fingerprint, examples.source, truncated)


def _tokenise(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, np.ndarray]:
    columns = [list(column) for column in zip(*examples.texts, strict=True)]
    # Copied, because a call sets truncation and padding in the tokenizer, which is saved with the run's result: that
    # file would depend on whether the cache was hit.
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
    arrays["truncated"] = np.array(sum(bool(encoding.overflowing) for encoding in tokens.encodings), dtype=np.int64)
    arrays["offsets"] = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    labels = np.asarray(examples.labels)
    arrays["labels"] = labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)
    return arrays


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that its output depends on besides `max_length`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json; use a model that has one")
    pipeline = json.loads(backend.to_str())
    # State of the last call, which would make the second split's key depend on the first split.
    del pipeline["truncation"], pipeline["padding"]
    said = (
        type(tokenizer).__name__,
        ",".join(tokenizer.model_input_names),
        tokenizer.truncation_side,
        str(getattr(tokenizer, "split_special_tokens", False)),
        tokenizers.__version__,
        json.dumps(pipeline),
    )
    return "\0".join(said)


def _store(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write the cache; if that fails, only the next run is slower."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        save_file(arrays, temporary)
        share(temporary)  # a group may have one cache
        temporary.replace(path)
    except (OSError, SafetensorError):
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _forget_old(folder: Path) -> None:
    """Remove unused and half-written files older than `_KEPT`; other processes may be doing the same."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.suffix in (".safetensors", ".tmp") and time.time() - path.stat().st_mtime > _KEPT:
                path.unlink()
