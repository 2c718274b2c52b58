"""Save trained biases and heads as an adapter that stock PEFT loads.

PEFT has no BitFit, but its LoRA format can hold it: an adapter with `bias="all"` contains every bias of the model
(LayerNorm's included), and `modules_to_save` contains the head. The LoRA part itself is rank 1 on the smallest Linear
with B = 0, so it adds exactly nothing. Loaded with `PeftModel.from_pretrained`,
`AutoPeftModelForSequenceClassification` or `merge_and_unload()`, the model gives the trained logits bit for bit.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors.torch import load_file, save_file
from torch import nn

from peftlib.errors import UserError, in_one_line
from peftlib.run_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peftlib.strategies.parameters import trained
from peftlib.strategies.wrapping import is_linear, outside, without_asides, wrap

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained


#: PEFT's prefix to the base model's tensor names.
_PREFIX = "base_model.model."


def head_modules(model: PreTrainedModel, head: frozenset[str]) -> list[str]:
    """Return the modules that hold the head's parameters, for PEFT's `modules_to_save`.

    Outside the encoder that is the top-level module (RoBERTa's `classifier` with its two Linears, DistilBERT's
    `pre_classifier`); inside it (a pooler that the checkpoint lacks), the parameter's direct parent.
    """
    encoder = f"{model.base_model_prefix}."
    return sorted({name.rpartition(".")[0] if name.startswith(encoder) else name.partition(".")[0] for name in head})


def smallest_linear(model: PreTrainedModel, head: frozenset[str]) -> str:
    """Return the name of the smallest Linear outside the head, which the adapter format needs.

    Raises:
        UserError: there is none (GPT-2 has Conv1D layers).
    """
    encoder = outside(model, head_modules(model, head))
    linears = [(module.weight.numel(), name) for name, module in encoder.items() if is_linear(module)]
    if not linears:
        raise UserError(
            f"{model.config.name_or_path} ({model.config.model_type}): has no Linear layer outside its head, so biases "
            "and head cannot be saved as an adapter; try --method full"
        )
    return min(linears)[1]


def save_as_adapter(
    model: PreTrainedModel, head: frozenset[str], folder: Path, *, bias: Literal["all", "none"]
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` for a `model` that was trained without PEFT's layers.

    Args:
        model: the trained classifier; not changed.
        head: names of the head's parameters, trained or not: an untrained head has to be saved too, or loading would
            initialise another one.
        folder: an existing folder.
        bias: "all" saves every bias and the head, "none" only the head.
    """
    from peft import LoraConfig, TaskType

    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        inference_mode=True,
        r=1,
        lora_alpha=1,
        target_modules=[smallest_linear(model, head)],
        bias=bias,
        modules_to_save=head_modules(model, head),
    )
    write_adapter(wrap(copy_to_wrap(model), config), folder)
    _add_what_is_missing(model, folder / ADAPTER_WEIGHTS)


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Save with PEFT, and sort its configuration: PEFT writes sets as lists in an order that varies between processes.

    Args:
        folder: an existing folder.
    """
    model.save_pretrained(folder)
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(name), list):
            config[name].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def copy_to_wrap(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the model to the CPU for PEFT to modify in place; weights that are there already are shared, not copied.

    A copy on the device could run out of memory, and a finished run would end without a result.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    moved = {id(tensor): tensor.detach().cpu() for tensor in named.values()}
    for parameter in model.parameters():
        moved[id(parameter)] = nn.Parameter(moved[id(parameter)], parameter.requires_grad)
    return copy.deepcopy(model, moved)


def _add_what_is_missing(model: PreTrainedModel, path: Path) -> None:
    """Add trained tensors that PEFT has not written: biases not called `bias` (DeBERTa's `q_bias`).

    Up to PEFT 0.18 `bias="all"` included these; PEFT 0.21 no longer saves them, but still loads them.
    """
    tensors = load_file(path)
    written = {name.removeprefix(_PREFIX).replace(".base_layer.", ".") for name in tensors}
    missing = {f"{_PREFIX}{name}": parameter.cpu() for name, parameter in trained(model) if name not in written}
    if missing:
        save_file(tensors | missing, path, metadata={"format": "pt"})


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Wrap `model` with the adapter in `folder`.

    Raises:
        UserError: the adapter is damaged, or made for another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (folder / ADAPTER_WEIGHTS).is_file():  # PEFT would fall back to pickled weights
        raise UserError(f"{folder}: has no {ADAPTER_WEIGHTS}; train it again")
    try:
        with without_asides():
            return PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = in_one_line(error)
        raise UserError(f"{folder}: its adapter cannot be loaded: {reason}") from error


def load_plain(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load an adapter into `model` itself, without PEFT's wrapper."""
    return merged(load_adapter(model, folder))


def merged(model: Trained) -> PreTrainedModel:
    """Merge the adapter into the weights; return the model itself if it has none."""
    from peft import PeftModel
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(model, PeftModel):
        return model
    # PEFT 0.21 reads a head's `weight` when it unwraps it, which RoBERTa's, with two Linears inside, lacks: it fails
    # with all methods but LoRA. Unwrap heads here, as PEFT intends to.
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, own = name.rpartition(".")
            head = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            setattr(model.get_submodule(parent), own, head)
    plain: PreTrainedModel = model.merge_and_unload()
    return plain
