"""Tiny BERT-like classifiers."""

from __future__ import annotations

from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification


def tiny_classifier(kind, *, width, heads, inner, layers, p, spread, place, attention="eager", **config):
    """Build a classifier in training mode with trained biases and normalisation, initialised at random.

    Args:
        p: dropout rate.
        spread: factor on the initial matrices.
        place: device or precision, as `Module.to` takes it.
    """
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=width, num_attention_heads=heads, intermediate_size=inner,
        num_hidden_layers=layers, hidden_dropout_prob=p, attention_probs_dropout_prob=p,
        **{"embedding_size": width} if kind == "electra" else {}, **config,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).to(place).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.dim() == 1)
        if parameter.dim() == 1:
            nn.init.normal_(parameter, float(name.endswith("LayerNorm.weight")), 0.2)
        else:
            parameter.data.mul_(spread)
    return model
