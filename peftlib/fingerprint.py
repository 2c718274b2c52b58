"""Which base model it is, wherever it is stored."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Configuration keys that describe a checkpoint, a task or the writing library, not the architecture.
_NO_ARCHITECTURE = frozenset({
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "num_labels", "pad_token_id", "problem_type",
    "torch_dtype", "transformers_version",
})  # fmt: skip


class Fingerprint(NamedTuple):
    """Two hashes that identify a base model, wherever it is stored.

    Attributes:
        weights: hash of the checkpoint's weights, regardless of file and tensor names. An adapter is meaningless on
            other weights.
        configuration: hash of the configuration's non-default values, without names and dropout.
    """

    weights: str
    configuration: str

    @classmethod
    def of(cls, model: PreTrainedModel, new: frozenset[str]) -> Fingerprint:
        """Compute them for a model from `load_classifier`, before it is trained.

        Args:
            new: names of the parameters that are not the checkpoint's, from there too.
        """
        loaded = [parameter for name, parameter in model.named_parameters() if name not in new]
        arrays = [parameter.detach().contiguous().numpy() for parameter in loaded]
        with ThreadPoolExecutor() as pool:  # the packaged model's 91 MB take .06 s on two cores
            digests = sorted(pool.map(lambda array: hashlib.sha256(array).digest(), arrays))
        said = {
            name: value
            for name, value in model.config.to_diff_dict().items()
            if name not in _NO_ARCHITECTURE and "dropout" not in name and "drop_rate" not in name
        }
        text = json.dumps(said, sort_keys=True, default=str)
        return cls(hashlib.sha256(b"".join(digests)).hexdigest(), hashlib.sha256(text.encode()).hexdigest())
