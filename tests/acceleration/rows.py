"""Tiny classifiers whose encoder takes rows, batches for them, and helpers that run and compare them."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

if find_spec("triton") is None:
    pytest.skip("needs triton, which is for Linux", allow_module_level=True)

from peftlib.acceleration.encoder_layer import Embeddings, LastLayer, WholeLayer
from peftlib.acceleration.low_rank_layer import LowRankLayer
from peftlib.acceleration.row_encoder import take_rows
from peftlib.data.collation import Collator, split_inputs
from peftlib.data.encoding import Chosen
from peftlib.training.accumulation import weighted_loss
from tests.acceleration.classifiers import tiny_classifier

KINDS = (WholeLayer, LastLayer, LowRankLayer)
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def classifier(kind="bert", width=64, p=0.0, layers=2, attention="eager", **config):
    """Build a tiny classifier with two heads, in training mode, with trained biases and normalisation."""
    torch.manual_seed(0)
    return tiny_classifier(
        kind, width=width, heads=2, inner=2 * width + 32, layers=layers, p=p, spread=3, place=DEVICE,
        attention=attention, **config,
    )  # fmt: skip


def with_lora(model, r=4, alpha=8, p=0.0, targets=("query", "key", "value", "dense"), **options):
    """Add LoRA with updates that are not zero; nothing else is trained."""
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=p, target_modules=list(targets), bias="none", **options,
        exclude_modules=["pooler.dense", "classifier.dense"],
    )  # fmt: skip
    model = get_peft_model(model.requires_grad_(False), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.to(DEVICE)


def batches(tokens, first_position=0, changed=None):
    """Return three examples, padded and in rows, on the CPU; `changed` replaces the tokens of the second one."""
    lengths = np.array([tokens, tokens - 2, 2])
    ids = np.random.default_rng(tokens).integers(5, 50, lengths.sum())
    if changed is not None:
        ids[tokens : 2 * tokens - 2] = changed
    labels, weight = np.array([0, 1, 0]), np.full(3, 1 / 3, dtype=np.float32)
    chosen = Chosen({"input_ids": ids}, lengths, labels, np.arange(3), weight)
    collator = Collator({"input_ids": 1})
    return collator(chosen), collator.in_rows(first_position)(chosen)


def in_both(model, tokens, dtype=torch.float32):
    """Return a copy of the model that takes rows, and a batch padded and in rows."""
    ours = copy.deepcopy(model)
    first_position = take_rows(ours, dtype)
    assert first_position is not None
    return ours, *batches(tokens, first_position)


def gradients(model, given):
    """Return the logits of the three examples, and the gradients of all trained parameters by name."""
    model.zero_grad()
    inputs, targets = split_inputs({name: tensor.to(DEVICE) for name, tensor in given.items()})
    logits = model(**inputs).logits.float()
    weighted_loss(logits, targets.labels, targets.weight).backward()
    return logits.detach()[:3], {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def calls(monkeypatch, run):
    """Count how often embeddings, and each kind of layer in `KINDS`, compute in rows during `run`."""
    made = []
    with monkeypatch.context() as patched:
        for kind, name in ((Embeddings, "apply"), *((kind, "forward") for kind in KINDS)):
            compute = getattr(kind, name)
            counted = lambda *given, kind=kind, compute=compute: made.append(kind) or compute(*given)  # noqa: E731
            patched.setattr(kind, name, counted)
        run()
    return [made.count(kind) for kind in (Embeddings, *KINDS)]


def assert_close(ours, theirs, tolerance, least=1e-6):
    """Compare up to `tolerance` of the largest element, or of `least`: a key bias's gradient is rounding error only."""
    scale = max(theirs.abs().max().item(), least)
    assert (ours - theirs).abs().max().item() <= tolerance * scale
