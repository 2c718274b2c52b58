"""Trained biases and heads as an adapter that stock PEFT loads.

PEFT has no BitFit, but its LoRA format has room for one: an adapter with `bias="all"` holds every bias of the
model (LayerNorm's included), and `modules_to_save` holds the head. The LoRA part itself is rank 1 on the
smallest Linear with B = 0, so that it adds exactly nothing. `PeftModel.from_pretrained`,
`AutoPeftModelForSequenceClassification` and `merge_and_unload()` then give back the trained logits bit for bit.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors.torch import load_file, save_file
from torch import nn

from peftlib.errors import UserError
from peftlib.run_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peftlib.strategies.parameters import trained
from peftlib.strategies.wrapping import is_linear, outside, without_asides, wrap

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained


#: What PEFT puts before the names of the base model's tensors.
_PREFIX = "base_model.model."


def head_modules(model: PreTrainedModel, head: frozenset[str]) -> list[str]:
    """The modules that hold the head's parameters, in the form of PEFT's `modules_to_save`.

    Outside the encoder that is the top-level module (RoBERTa's `classifier` with its two Linears, DistilBERT's
    `pre_classifier`); inside it (a pooler that the checkpoint lacks), the module right above the parameter.
    """
    encoder = f"{model.base_model_prefix}."
    return sorted({name.rpartition(".")[0] if name.startswith(encoder) else name.partition(".")[0] for name in head})


def smallest_linear(model: PreTrainedModel, head: frozenset[str]) -> str:
    """The name of the smallest Linear outside the head, which the adapter's format needs.

    Raises:
        UserError: there is none (GPT-2 has layers of another kind).
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
    """Write `adapter_model.safetensors` and `adapter_config.json` for a plainly trained `model`.

    Args:
        model: the trained classifier; not changed.
        head: the names of the head's parameters, trained or not: a head that stayed at its random start has to
            be kept as well, or loading would draw another one.
        folder: where to write.
        bias: "all" keeps every bias, "none" only the head.
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
    """PEFT's own files, the same for the same training: what it keeps as sets would come in the order of their hashes.

    Args:
        folder: an existing one.
    """
    model.save_pretrained(folder)
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(name), list):
            config[name].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def copy_to_wrap(model: PreTrainedModel) -> PreTrainedModel:
    """Modules of their own, which PEFT rewires in place, around the same weights, on the CPU.

    The weights are not copied where they are: a device may have no room for them twice, and a finished run would end
    without a result.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    moved = {id(one): one.detach().cpu() for one in named.values()}
    for parameter in model.parameters():
        moved[id(parameter)] = nn.Parameter(moved[id(parameter)], parameter.requires_grad)
    return copy.deepcopy(model, moved)


def _add_what_is_missing(model: PreTrainedModel, path: Path) -> None:
    """Add what was trained and PEFT has not written: the biases that are not called `bias` (DeBERTa's `q_bias`).

    `bias="all"` means these as well to PEFT up to 0.18, and no longer to 0.21. It loads them all the same.
    """
    tensors = load_file(path)
    written = {name.removeprefix(_PREFIX).replace(".base_layer.", ".") for name in tensors}
    missing = {f"{_PREFIX}{name}": parameter.cpu() for name, parameter in trained(model) if name not in written}
    if missing:
        save_file(tensors | missing, path, metadata={"format": "pt"})


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The adapter in `folder` around `model`, which stays as it is otherwise.

    Raises:
        UserError: it is damaged, or of another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (folder / ADAPTER_WEIGHTS).is_file():  # PEFT would go on to look for pickled weights
        raise UserError(f"{folder}: has no {ADAPTER_WEIGHTS}; train it again")
    try:
        with without_asides():
            return PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: its adapter cannot be loaded: {reason}") from error


def load_plain(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """What `save_as_adapter` has written, without the LoRA part, which adds nothing."""
    return merged(load_adapter(model, folder))


def merged(model: Trained) -> PreTrainedModel:
    """The model with its adapter in the weights; itself if it has none."""
    from peft import PeftModel
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(model, PeftModel):
        return model
    # PEFT 0.21 copies a head's `weight` when it takes it out, and RoBERTa's has two Linears and none: it fails with
    # all methods but LoRA. This is what it means to do.
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, own = name.rpartition(".")
            head = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            setattr(model.get_submodule(parent), own, head)
    plain: PreTrainedModel = model.merge_and_unload()
    return plain
