"""What is saved loads in stock PEFT and transformers, and answers exactly as what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from peftlib.errors import UserError
from peftlib.strategies.adapter import copy_to_wrap, head_modules, merged
from peftlib.strategies.lora import LoRA
from tests.launching import run_python
from tests.strategies.classifiers import ARCHITECTURES, METHODS, classifier, logits, sentences, update

ADAPTERS = {name: strategy for name, strategy in METHODS.items() if name != "full"} | {
    "dora": LoRA(lora_r=4, use_dora=True)
}


def base_with_another_head(folder: Path) -> nn.Module:
    """What `from_pretrained` gives to somebody else: the encoder, and a head that was drawn anew."""
    torch.manual_seed(99)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def train_and_save(method: str, base: Path, folder: Path) -> torch.Tensor:
    """The trained model's logits; the result of saving it is in `folder`."""
    model, head = classifier(base)
    start = logits(model)
    strategy = ADAPTERS[method] if method in ADAPTERS else METHODS[method]
    adapted = strategy.apply(model, head)
    update(adapted)
    expected = logits(adapted)
    assert not torch.equal(start, expected), "training has changed nothing: any round trip would pass"
    strategy.save(adapted, folder, head)
    assert torch.equal(logits(adapted), expected), "saving has changed the model"
    return expected


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "funnel"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_stock_peft_gives_back_the_trained_logits(
    tiny_folder: Callable[..., Path], tmp_path: Path, architecture: str, method: str
) -> None:
    base = tiny_folder(architecture)
    expected = train_and_save(method, base, tmp_path)

    loaded = PeftModel.from_pretrained(base_with_another_head(base), tmp_path)
    assert (logits(loaded) - expected).abs().max() == 0.0

    torch.manual_seed(98)
    auto = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert (logits(auto) - expected).abs().max() == 0.0

    if not ADAPTERS[method].mergeable:
        assert not hasattr(auto, "merge_and_unload")
        return
    # PEFT 0.21 merges all but LoRA only where the head is a Linear; `merged` is for all.
    plain = merged(auto) if method in ("adalora", "ia3", "ln_tuning", "peft") else auto.merge_and_unload()
    if method in ("lora", "dora", "adalora", "ia3", "peft"):  # W + BA is rounded once more than Wx + BAx
        torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)
    else:
        assert (logits(plain) - expected).abs().max() == 0.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_fine_tuning_is_a_plain_checkpoint(
    tiny_folder: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    expected = train_and_save("full", tiny_folder(architecture), tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (logits(loaded) - expected).abs().max() == 0.0
    assert loaded.config.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize("method", ["bitfit", "bitfit-without-head", "head"])
def test_the_adapter_holds_the_biases_and_the_head_and_next_to_nothing_else(
    tiny_folder: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    base = tiny_folder("roberta")
    train_and_save(method, base, tmp_path)
    model, head = classifier(base)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    names = {name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in tensors}
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")} - head
    assert head <= names
    assert names & biases == (set() if method == "head" else biases)
    # PEFT stores the head's biases a second time: `bias="all"` takes its wrapped modules for further biases.
    rest = {name for name in names - biases - head if not name.startswith("classifier.")}
    assert sorted(name.split(".")[-2] for name in rest) == ["lora_A", "lora_B"], rest
    assert all(not tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


@pytest.mark.parametrize("method", ["lora", "ia3", "peft"])
def test_the_same_training_writes_the_same_configuration(
    tiny_folder: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    """PEFT writes its sets in the order of hashes, which differs from process to process."""
    train_and_save(method, tiny_folder("bert"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for name in ("target_modules", "feedforward_modules"):
        assert config.get(name) in (None, "all-linear") or config[name] == sorted(config[name])


def test_the_adapter_names_its_base_model(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    train_and_save("bitfit", tiny_folder("bert"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder("bert"))
    assert (config["peft_type"], config["task_type"], config["inference_mode"]) == ("LORA", "SEQ_CLS", True)


def test_a_head_inside_the_encoder_is_saved_too(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A checkpoint without its pooler: the pooler is drawn anew, and is a part of the head."""
    base = tmp_path / "base"
    BertForSequenceClassification.from_pretrained(tiny_folder("bert")).bert.save_pretrained(base)
    weights = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})

    assert "bert.pooler.dense.weight" in classifier(base)[1]
    for method in ("bitfit", "lora"):
        expected = train_and_save(method, base, tmp_path / method)
        loaded = PeftModel.from_pretrained(base_with_another_head(base), tmp_path / method)
        assert torch.equal(logits(loaded), expected), method


@pytest.mark.parametrize(
    ("head", "modules"),
    [
        ({"classifier.weight", "classifier.bias"}, ["classifier"]),
        ({"classifier.dense.weight", "classifier.out_proj.bias"}, ["classifier"]),
        ({"pre_classifier.weight", "classifier.weight"}, ["classifier", "pre_classifier"]),
        (
            {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.bias"},
            ["bert.pooler.dense", "classifier"],
        ),
    ],
)
def test_head_modules(head: set[str], modules: list[str]) -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=1))
    assert head_modules(model, frozenset(head)) == modules


@pytest.mark.launch
def test_loading_needs_nothing_of_this_project(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    expected = train_and_save("bitfit", tiny_folder("distilbert"), tmp_path / "adapter")
    save_file({**sentences(), "expected": expected}, tmp_path / "batch.safetensors")
    script = """if True:
        import sys
        import torch
        from peft import AutoPeftModelForSequenceClassification
        from safetensors.torch import load_file

        batch = load_file("batch.safetensors")
        expected = batch.pop("expected")
        model = AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=2).eval()
        with torch.inference_mode():
            difference = (model(**batch).logits - expected).abs().max().item()
        assert "peftlib" not in sys.modules
        print("difference", difference)
    """
    done = run_python("-c", script, cwd=tmp_path, OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["difference", "0.0"]


@pytest.mark.parametrize("method", ["bitfit", "head"])
def test_a_model_that_the_adapters_format_has_no_room_for_is_refused_before_it_trains(method: str) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UserError, match=r"\(gpt2\): has no Linear layer outside its head"):
        METHODS[method].apply(model, frozenset({"score.weight"}))


def test_weights_are_wrapped_where_they_are(tiny_folder: Callable[..., Path]) -> None:
    """Not copied: a GPU may have no room for them twice."""
    model, _ = classifier(tiny_folder("bert"))
    parameters = dict(model.named_parameters())
    copied = copy_to_wrap(model)
    assert {name: one.data_ptr() for name, one in copied.named_parameters()} == {
        name: one.data_ptr() for name, one in parameters.items()
    }
    assert all(isinstance(one, nn.Parameter) for one in copied.parameters())
    assert not {id(one) for one in copied.modules()} & {id(one) for one in model.modules()}
    assert {id(one) for one in model.parameters()} == {id(one) for one in parameters.values()}
