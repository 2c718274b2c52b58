"""LN tuning: what it trains, and what of it PEFT's own is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from peftlib.errors import UserError
from peftlib.strategies.ln_tuning import LNTuning
from tests.strategies.classifiers import ARCHITECTURES, classifier, trained_names, update


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "modernbert", "funnel"])
def test_trains_every_normalisation_of_the_encoder_and_the_head(
    tiny_folder: Callable[..., Path], architecture: str
) -> None:
    model, head = classifier(tiny_folder(architecture))
    of_norms = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for own, _ in module.named_parameters(recurse=False)
    }
    LNTuning().apply(model, head)
    assert of_norms - head
    assert trained_names(model) == of_norms | head


def test_the_adapter_is_peft_s_own_and_holds_nothing_else(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model, head = classifier(tiny_folder("bert"))
    method = LNTuning()
    method.apply(model, head)
    update(model)
    method.save(model, tmp_path, head)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LN_TUNING"
    written = {
        name.removeprefix("base_model.model.").replace(".ln_tuning_layers", "")
        for name in load_file(tmp_path / "adapter_model.safetensors")
    }
    assert written == trained_names(model)


def test_a_model_without_normalisation_is_refused() -> None:
    config = AutoConfig.for_model("bert", vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = AutoModelForSequenceClassification.from_config(config)
    for module in model.modules():
        if hasattr(module, "LayerNorm"):
            module.LayerNorm = nn.Identity()
    with pytest.raises(UserError, match=r"^--method ln_tuning: .*\(bert\) has no normalisation layers with weights"):
        LNTuning().apply(model, frozenset({"classifier.weight", "classifier.bias"}))
