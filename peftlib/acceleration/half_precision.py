"""What models of transformers and layers of PEFT need beside autocast to compute in half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftlib.acceleration.bert import unwrapped


def take_half_precision(model: nn.Module) -> None:
    """Make the model, in place, compute under autocast to fp16 or bf16 whatever it computes in fp32."""
    kind = unwrapped(model).config.model_type
    compute_scores_in_fp32(model)
    if kind in ("deberta", "deberta-v2"):
        return_what_autocast_would(model)
    if kind == "deberta":
        cast_attention_biases(model)
    if kind == "xmod":
        return_what_adapters_take(model)


def compute_scores_in_fp32(model: nn.Module) -> None:
    """Make the output layer of a regression model compute in fp32, even under autocast.

    Half precision is too coarse: bf16 has 32 numbers between 4 and 5, so scores that differ by less would tie in a rank
    correlation. The layer is a millionth of the work.
    """
    base = unwrapped(model)
    for name, module in base.named_modules() if base.config.num_labels == 1 else ():
        in_head = not name.startswith(f"{base.base_model_prefix}.")
        if in_head and type(module) is nn.Linear and module.out_features == 1:
            module.__class__ = _Fp32Linear


class _Fp32Linear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def return_what_autocast_would(model: nn.Module) -> None:
    """Round the outputs of PEFT's layers to autocast's precision, as those of the Linear layers that they wrap.

    Many of them return fp32. transformers' DeBERTa (all versions) masks its scores, which are in half precision, with
    the lowest number of its queries' precision, which overflows unless the two are the same.
    """
    for module in model.modules():
        if type(getattr(module, "base_layer", None)) is nn.Linear:
            module.register_forward_hook(lambda layer, inputs, output: _rounded(output))


def cast_attention_biases(model: nn.Module) -> None:
    """Make DeBERTa's first version add the biases of its queries and values in autocast's precision.

    They are no Linear layer's, so autocast leaves them in fp32, and with them the queries (see the function above).
    """
    for module in model.modules():
        if "q_bias" in module._parameters:
            module.__class__ = _with_cast_biases(type(module))


def _with_cast_biases(kind: type[nn.Module]) -> type[nn.Module]:
    class Attention(kind):  # type: ignore[misc, valid-type]
        def __getattr__(self, name: str) -> Any:  # which torch calls for parameters
            value = super().__getattr__(name)
            return _rounded(value) if name in ("q_bias", "v_bias") else value

    return Attention


def return_what_adapters_take(model: nn.Module) -> None:
    """Return the outputs of X-MOD's language adapters in their inputs' precision.

    transformers writes them, in half precision, into a tensor like their input, which is in fp32.
    """
    for module in model.modules():
        if type(module).__name__ == "XmodAdapter":
            module.register_forward_hook(lambda adapter, inputs, output: output.to(inputs[0].dtype))


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in the precision that autocast computes in; unchanged without it."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor
