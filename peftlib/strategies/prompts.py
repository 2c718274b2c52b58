"""Prompt methods through PEFT: trained vectors that every example's tokens attend to; no weight of the model changes.

Prompt tuning (Lester et al., 2021, https://arxiv.org/abs/2104.08691) puts trained embeddings before an example's own,
and so does P-tuning (Liu et al., 2021, https://arxiv.org/abs/2103.10385), which computes them with a small network.
Prefix tuning (Li and Liang, 2021, https://arxiv.org/abs/2101.00190) trains keys and values of every layer, as P-tuning
v2 does (Liu et al., 2022, https://arxiv.org/abs/2110.07602).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from peftlib.errors import UserError, in_one_line

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

PROMPT_TYPES = ("p_tuning", "prefix_tuning", "prompt_tuning")
#: Options that follow from the base model, and `from_pretrained`'s for the tokenizer of an initial text.
SETTLED_FOR_PROMPTS = (
    "num_attention_heads", "num_layers", "num_transformer_submodules", "token_dim", "tokenizer_kwargs",
    "tokenizer_name_or_path",
)  # fmt: skip
#: Number of virtual tokens unless given: prompt tuning's paper finds little gain from more (figure 3a).
_VIRTUAL_TOKENS = 20
#: What models call the keys and values that they are given: until transformers 5.23, which PEFT 0.21 knows, and since.
_KEYS_AND_VALUES = ("past_key_values", "cache")
#: How far logits may differ between a padded example and the same one without padding, in fp32.
_ROUNDING = 1e-3


def virtual_tokens(options: dict[str, Any]) -> int:
    """Return the number of trained vectors, from the options that the user gave.

    Raises:
        UserError: it is not a positive integer.
    """
    number = options.get("num_virtual_tokens", _VIRTUAL_TOKENS)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UserError(f"--peft_kwargs: num_virtual_tokens is {number}; must be an integer of at least 1")
    return int(number)


def options_for(model: PreTrainedModel, peft_type: str, options: dict[str, Any]) -> dict[str, Any]:
    """Complete the user's options with the defaults and with what PEFT has to know of the model.

    Prompt tuning starts from embeddings of random tokens unless told otherwise: PEFT's default, standard normal
    vectors, is far from any token, and learns much worse.
    """
    start = {"prompt_tuning_init": "SAMPLE_VOCAB"} if peft_type == "prompt_tuning" else {}
    config = model.config
    # PEFT reads these from the configuration under BERT's names, which DistilBERT and others lack.
    layers = {"num_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads}
    if peft_type == "prefix_tuning":
        layers["token_dim"] = config.hidden_size
    else:  # ELECTRA's and ALBERT's embeddings are narrower than their layers
        layers["token_dim"] = model.get_input_embeddings().embedding_dim
    chosen = start | {"num_virtual_tokens": virtual_tokens(options)} | layers | options
    if chosen.get("prompt_tuning_init") == "TEXT":
        chosen["tokenizer_name_or_path"] = config.name_or_path
    return chosen


def wrap_with_prompts(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Wrap the model with trained prompts, and check that it computes with them as with any other token.

    Raises:
        UserError: the model cannot take prompts; some read padding as text when they are given embeddings.
    """
    from peftlib.strategies.wrapping import wrap

    kind, place = model.config.model_type, f"--peft_type {config.peft_type.value.lower()}"
    encoder = getattr(model, model.base_model_prefix, model)
    taken = {name for module in (model, encoder) for name in inspect.signature(module.forward).parameters}
    if "langs" in taken:
        taken -= {"cache"}  # XLM's is another one
    if config.peft_type == "PREFIX_TUNING" and taken.isdisjoint(_KEYS_AND_VALUES):
        raise UserError(f"{place}: transformers' {kind} takes no keys and values; use p_tuning or prompt_tuning")
    wrapped = wrap(model, config)
    if getattr(config, "prompt_tuning_init", None) == "TEXT":
        # The tokenizer's path is of no use to those who load the adapter, and may be of this machine.
        config.prompt_tuning_init, config.prompt_tuning_init_text = "RANDOM", None
        config.tokenizer_name_or_path = None
    try:
        difference = _effect_of_padding(wrapped)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = in_one_line(error)
        if config.peft_type == "PREFIX_TUNING" and "past_key_values" not in taken:
            reason += " Install transformers<5.24 or a newer peft, or use p_tuning or prompt_tuning"
        raise UserError(f"{place}: does not work with transformers' {kind}: {reason}") from error
    if not difference <= _ROUNDING:
        raise UserError(f"{place}: transformers' {kind} would read padding as text; use a method that changes layers")
    return wrapped


def _effect_of_padding(model: PeftModel) -> float:
    """Return the greatest difference that padding makes to an example's logits."""
    import torch

    base = model.get_base_model()
    pad = base.config.pad_token_id or 0
    ids = torch.tensor([[token for token in range(12) if token != pad][:6]])
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = _logits(model, ids, torch.ones_like(ids))
            mask = torch.tensor([[1] * 6 + [0] * 3])
            padded = _logits(model, torch.nn.functional.pad(ids, (0, 3), value=pad), mask)
    finally:
        model.train(was_training)
    return float((alone - padded).abs().max())


def _logits(model: PeftModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits
