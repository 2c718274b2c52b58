"""What `import peftlib` offers to a notebook: README's example, and nothing that takes time before it is asked for."""

from __future__ import annotations

import copy
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

import peftlib
from peftlib.errors import UserError
from peftlib.strategies import STRATEGIES
from peftlib.strategies.bitfit import BitFit
from peftlib.strategies.parameters import head_of
from tests.conftest import ROOT, tiny_config
from tests.evaluation.test_finished import left, record
from tests.launching import run_python
from tests.strategies.classifiers import classifier, logits, trained_names, update


def test_the_readme_s_example_runs(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"## From Python\n.*?```python\n(.*?)```", text, re.DOTALL)
    model, head = classifier(tiny_folder())
    BitFit().save(BitFit().apply(model, head), tmp_path / "run", head)
    left(tmp_path / "run", record(BitFit(), tiny_folder()))
    (tmp_path / "run" / "tokenizer.json").write_bytes((tiny_folder() / "tokenizer.json").read_bytes())
    places = {
        "bert-base-uncased": tiny_folder(), "outputs/my-run": tmp_path / "run", '"adapter"': f'"{tmp_path / "adapter"}"'
    }  # fmt: skip
    for name, place in places.items():
        assert name in code
        code = code.replace(name, str(place))
    found: dict[str, object] = {}
    exec(code, found)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["bias"] == "all"
    assert found["model"].config.id2label == {0: "not_equivalent", 1: "equivalent"}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "full"])
@pytest.mark.parametrize("pooler", [True, False])
def test_a_pooler_that_the_checkpoint_lacks_is_part_of_the_head(tmp_path: Path, name: str, pooler: bool) -> None:
    """Checkpoints of masked-language modelling have none; in others it is pretrained, and stays frozen."""
    torch.manual_seed(0)
    made: Any = AutoModelForSequenceClassification if pooler else AutoModelForMaskedLM
    made.from_config(tiny_config("bert")).save_pretrained(tmp_path / "base")
    method = STRATEGIES[name]()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted = method.apply(model)
    of_pooler = [name for name in trained_names(adapted) if "pooler" in name and "lora_" not in name]
    assert any(name.endswith(".weight") for name in of_pooler) != pooler
    update(adapted)
    expected = logits(adapted)
    method.save(adapted, tmp_path / "adapter")
    torch.manual_seed(9)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), expected)


@pytest.mark.parametrize("name", ["bitfit", "lora"])
def test_copies_know_the_head_or_say_that_they_do_not(tmp_path: Path, name: str) -> None:
    """`copy.deepcopy` loses the marks of what was read from the checkpoint."""
    AutoModelForMaskedLM.from_config(tiny_config("bert")).save_pretrained(tmp_path / "base")
    base, method = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), STRATEGIES[name]()
    with pytest.raises(UserError, match="whether the model's pooler is new is not known any more"):
        method.apply(copy.deepcopy(base))
    adapted = method.apply(copy.deepcopy(base), head_of(base))
    assert [name for name in trained_names(adapted) if "pooler" in name and name.endswith("weight")]
    update(adapted)
    method.save(copy.deepcopy(adapted), tmp_path / "adapter")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(again, tmp_path / "adapter")), logits(adapted))


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "full"])
def test_without_the_head_s_names_it_is_what_lies_outside_the_encoder(
    tiny_folder: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    method = STRATEGIES[name]()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder("roberta"))
    adapted = method.apply(model)
    assert [name for name in trained_names(adapted) if "out_proj" in name]
    update(adapted)
    expected = logits(adapted)
    method.save(adapted, str(tmp_path / "new" / "adapter"))
    torch.manual_seed(9)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder("roberta"))
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "new" / "adapter")), expected)


def test_every_method_is_offered_under_its_name() -> None:
    offered = [getattr(peftlib, name) for name in peftlib.__all__]
    assert all(method in offered for method in STRATEGIES.values())
    assert set(peftlib.__all__) <= set(dir(peftlib))
    with pytest.raises(AttributeError, match="'peftlib' has no attribute 'BitFt'"):
        importlib.import_module("peftlib").BitFt  # noqa: B018


def test_the_package_imports_nothing_before_it_is_asked(tmp_path: Path) -> None:
    code = "import peftlib, sys; print([name for name in sys.modules if name.startswith(('peftlib', 'torch', 'peft'))])"
    seen = run_python("-c", code, cwd=tmp_path)
    assert seen.stdout.strip() == "['peftlib']"
