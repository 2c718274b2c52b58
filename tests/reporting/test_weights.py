"""Changes of the weights by training, against adapters with known changes."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlib.reporting.grouping import compare
from peftlib.reporting.runs import read_run
from peftlib.reporting.weight_plots import draw_weights
from peftlib.reporting.weights import base_weights, bias_changes, singular_values
from peftlib.strategies.bitfit import BitFit
from peftlib.strategies.lora import LoRA
from tests.reporting.made_up import make_run
from tests.strategies.classifiers import classifier

BIASES_PER_LAYER = 8


def bitfit_run(folder, base):
    """Make a run in which each bias of layer 0 moved by 0.25, and those of layer 1 by 0.5."""
    model, head = classifier(base)
    strategy = BitFit()
    model = strategy.apply(model, head)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and "layer." in name:
                parameter += 0.25 if "layer.0." in name else 0.5
    run = make_run(folder, "--method", "bitfit", "--model_name_or_path", base)
    strategy.save(model, run, head)
    return read_run(run)


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_where_the_biases_moved(tmp_path, tiny_folder, architecture):
    changes = bias_changes(bitfit_run(tmp_path / "run", tiny_folder(architecture)))
    assert len(changes) == BIASES_PER_LAYER
    for group, layers in changes.items():
        assert layers == pytest.approx([0.25, 0.5], abs=1e-6), group


def test_the_first_berts_call_a_bias_beta(tmp_path, tiny_folder):
    base = tmp_path / "old"
    base.mkdir()
    (base / "config.json").write_text((tiny_folder() / "config.json").read_text())
    weights = load_file(tiny_folder() / "model.safetensors")
    renamed = {name.replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in weights.items()}
    save_file({f"bert.{name}": value for name, value in renamed.items()}, base / "model.safetensors")
    run = bitfit_run(tmp_path / "run", tiny_folder())
    run.record["model"]["name"] = str(base)
    assert bias_changes(run)["attention.output.LayerNorm"] == pytest.approx([0.25, 0.5], abs=1e-6)


def test_a_base_model_in_bfloat16(tmp_path, tiny_folder):
    """NumPy has no bfloat16."""
    base = shutil.copytree(tiny_folder(), tmp_path / "half")
    weights = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors")
    run = bitfit_run(tmp_path / "run", tiny_folder())
    run.record["model"]["name"] = str(base)
    changes = bias_changes(run)
    assert len(changes) == BIASES_PER_LAYER
    for layers in changes.values():
        assert layers == pytest.approx([0.25, 0.5], abs=0.01)


def test_singular_values_of_an_adapter_in_bfloat16(tmp_path, tiny_folder):
    run = lora_run(tmp_path / "run", tiny_folder())
    path = run.folder / "adapter_model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(path).items()}, path)
    assert singular_values(run)[0] == pytest.approx([8.0, 4.0, 0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "adapter_config.json"])
def test_damaged_weights_are_said_and_stop_no_report(tmp_path, tiny_folder, name):
    base = shutil.copytree(tiny_folder(), tmp_path / "base")
    runs = [bitfit_run(tmp_path / "bitfit", tiny_folder()), lora_run(tmp_path / "lora", tiny_folder())]
    for run in runs:
        run.record["model"]["name"] = str(base)
    damaged = [path for path in tmp_path.rglob(name) if path.parent.name != "bitfit" or name == "model.safetensors"]
    for path in damaged:
        path.write_bytes(b"{")
    plots, left_out = draw_weights(compare(runs)[0], tmp_path, "x")
    (reason,) = left_out
    assert len(plots) == 1 and f"{damaged[0]} cannot be read" in reason and "\n" not in reason


@pytest.mark.parametrize("name", ["no/model", "nomodel", "a/b/c", "/nowhere/at/all", "two words"])
def test_a_base_that_is_not_here_is_not_looked_for_elsewhere(tmp_path, name):
    assert base_weights(read_run(make_run(tmp_path / "run", "--model_name_or_path", name))) is None


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "a-folder-of-that-name"])
def test_a_report_does_without_a_base_model_that_cannot_be_had(tmp_path, monkeypatch, name):
    run = read_run(make_run(tmp_path / "run", "--model_name_or_path", name))
    (tmp_path / "a-folder-of-that-name").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # its package is not installed
    assert base_weights(run) is None


def lora_run(folder, base, **flags):
    """Make a run in which each layer's rank-4 update has the singular values s (4, 2, 0, 0)."""
    model, head = classifier(base)
    strategy = LoRA(lora_r=4, lora_alpha=8, **flags)
    model = strategy.apply(model, head)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(torch.eye(*parameter.shape))
            elif "lora_B" in name:
                parameter.copy_(torch.eye(*parameter.shape) * torch.tensor([4.0, 2.0, 0.0, 0.0]))
    run = make_run(folder, "--method", "lora", "--lora_r", 4, "--model_name_or_path", base)
    strategy.save(model, run, head)
    return read_run(run)


@pytest.mark.parametrize(("flags", "scale"), [({}, 2.0), ({"use_rslora": True}, 4.0)])
def test_singular_values_of_an_update(tmp_path, tiny_folder, flags, scale):
    values = singular_values(lora_run(tmp_path / "run", tiny_folder(), **flags))
    # Two layers of six Linears and, in BERT, the pooler.
    assert values == pytest.approx(np.tile(scale * np.array([4.0, 2.0, 0.0, 0.0]), (13, 1)), abs=1e-5)


def test_singular_values_are_those_of_the_whole_matrix(tmp_path):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 20, generator=generator), torch.randn(11, 3, generator=generator)
    run = make_run(tmp_path / "run")
    still = torch.zeros(11, 3)
    tensors = {"x.lora_A.weight": a, "x.lora_B.weight": b, "y.lora_A.weight": a.clone(), "y.lora_B.weight": still}
    save_file(tensors, run / "adapter_model.safetensors")
    (run / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6}))
    expected = np.linalg.svd(2 * (b @ a).numpy(), compute_uv=False)[:3]
    assert singular_values(read_run(run)) == pytest.approx(expected[None], rel=1e-4)


def test_a_layer_narrower_than_the_rank_has_fewer(tmp_path):
    run = make_run(tmp_path / "run")
    wide, narrow = torch.eye(4), torch.ones(2, 4)
    tensors = {"x.lora_A.weight": wide, "x.lora_B.weight": wide.clone(), "y.lora_A.weight": wide.clone()}
    save_file(tensors | {"y.lora_B.weight": narrow}, run / "adapter_model.safetensors")
    (run / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4}))
    values = singular_values(read_run(run))
    assert values == pytest.approx(np.array([[1.0, 1, 1, 1], [8**0.5, 0, 0, 0]]), abs=1e-6)


def test_a_run_without_an_adapter_has_neither(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert bias_changes(run) is None and singular_values(run) is None


def test_both_are_drawn(tmp_path, tiny_folder):
    runs = [bitfit_run(tmp_path / "bitfit", tiny_folder()), lora_run(tmp_path / "lora", tiny_folder())]
    (comparison,) = compare(runs)
    plots, left_out = draw_weights(comparison, tmp_path, "x")
    assert [plot.name for plot in plots] == ["x-bias-changes", "x-singular-values"] and left_out == []
    # 16 of 20 parts of the squared norm lie in the first value, all of it in the second.
    assert "LoRA r=4: 2 of 4" in plots[1].caption
