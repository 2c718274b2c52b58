"""AdaLoRA by way of PEFT: its flags, and that any state is saved as it is."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.adalora import SVDLinear
from transformers import AutoModelForSequenceClassification

from peftlib.errors import UserError
from peftlib.strategies.adalora import AdaLoRA
from peftlib.strategies.adapter import merged
from tests.strategies.classifiers import ARCHITECTURES, classifier, logits, trained_names
from tests.strategies.test_rank_allocation import METHOD, STEPS, adapted, advance, singular_values


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_is_the_identity_at_the_start(tiny_folder: Callable[..., Path], architecture: str) -> None:
    model, head = classifier(tiny_folder(architecture))
    before = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted = AdaLoRA().apply(model, head)
    assert torch.equal(before, logits(adapted))
    names = trained_names(adapted)
    assert len([name for name in names if "lora_" not in name]) == len(head)
    assert len([name for name in names if "lora_E" in name]) == sum(isinstance(m, SVDLinear) for m in adapted.modules())


@pytest.mark.parametrize("steps", [2, 6, 14, 15, STEPS])
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_state_of_any_update_is_saved_as_it_is(
    tiny_folder: Callable[..., Path], tmp_path: Path, architecture: str, steps: int
) -> None:
    """The best one may be from before the first allocation, between two, or after the last."""
    base = tiny_folder(architecture)
    model, hook = adapted(base)
    before = logits(model)
    advance(model, hook, range(1, steps + 1))
    expected = logits(model)
    assert not torch.equal(before, expected)
    METHOD.save(model, tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), tmp_path)
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(singular_values(loaded), singular_values(model))
    torch.testing.assert_close(logits(merged(loaded)), expected, rtol=1e-3, atol=1e-5)


def test_peft_s_configuration_has_the_run_s_schedule(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    method = AdaLoRA(adalora_target_modules="query,value", adalora_tfinal=0.29)  # 57.99999999999999 of 200
    model = method.apply(*classifier(tiny_folder("bert")))
    method.step_hook(model, 200)
    method.save(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    found = [config[name] for name in ("total_step", "tinit", "tfinal", "deltaT", "init_r", "target_r", "rank_pattern")]
    assert found == [200, 30, 58, 2, 12, 8, None]
    assert config["target_modules"] == ["query", "value"]


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_the_defaults_fit_a_run_of_any_length(tiny_folder: Callable[..., Path], steps: int) -> None:
    model = AdaLoRA().apply(*classifier(tiny_folder("bert")))
    hook = AdaLoRA().step_hook(model, steps)
    advance(model, hook, range(1, min(steps, 3) + 1))
    hook.after_step(steps, None)
    values = singular_values(model)
    assert int((values == 0).sum()) == len(values) // 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"adalora_target_r": 12},
            "--adalora_target_r 12 --adalora_init_r 12: the target must be at least 1 ",
        ),
        ({"adalora_target_r": 0}, "--adalora_target_r 0 --adalora_init_r 12: "),
        ({"adalora_alpha": 0.0}, "--adalora_alpha 0: must be greater than 0 and finite"),
        ({"adalora_dropout": 1.0}, "--adalora_dropout 1: must be in 0 <= p < 1"),
        ({"adalora_orth_reg_weight": -1.0}, "--adalora_orth_reg_weight -1: must be at least 0, and finite"),
        ({"adalora_tinit": 1.5}, "--adalora_tinit 1.5: must be a number of updates, or below 1 a share of the run's"),
        ({"adalora_tfinal": -1.0}, "--adalora_tfinal -1: must be a number of updates"),
        ({"adalora_deltaT": float("nan")}, "--adalora_deltaT nan: must be a number of updates"),
        ({"adalora_tinit": 0.5}, "--adalora_tinit 0.5 --adalora_tfinal 0.5: must be less than 1 together"),
        ({"adalora_target_modules": " ,"}, "--adalora_target_modules is empty"),
        ({"adalora_target_modules": "all-linear,key"}, "--adalora_target_modules all-linear,key: all-linear already "),
    ],
)
def test_flags_that_cannot_be_are_refused_before_anything_is_loaded(flags: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        AdaLoRA(**flags)
    assert "\n" not in str(caught.value)


def test_a_schedule_that_the_run_is_too_short_for_is_a_line(tiny_folder: Callable[..., Path]) -> None:
    method = AdaLoRA(adalora_tinit=60, adalora_tfinal=50)
    model = method.apply(*classifier(tiny_folder("bert")))
    with pytest.raises(UserError, match=r"^--adalora_tinit 60 --adalora_tfinal 50: 60 and 50 of the run's 110 "):
        method.step_hook(model, 110)
    assert method.step_hook(model, 111) is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"adalora_init_r": 65}, "--adalora_init_r 65: this bert model has no layer of rank above 32"),
        ({"adalora_target_modules": "qery"}, "--adalora_target_modules qery: this bert model has no qery at all"),
        ({"adalora_target_modules": "LayerNorm"}, "--adalora_target_modules LayerNorm: some of these modules cannot"),
    ],
)
def test_what_does_not_fit_the_model_is_a_line(
    tiny_folder: Callable[..., Path], flags: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        AdaLoRA(**flags).apply(*classifier(tiny_folder("bert")))
