"""Tiny classifiers as `scripts/train.py` loads them, and a few real updates of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from peftlib.modeling import find_model, load_classifier
from peftlib.strategies import Strategy
from peftlib.strategies.adalora import AdaLoRA
from peftlib.strategies.bitfit import BitFit
from peftlib.strategies.full import Full
from peftlib.strategies.head import HeadOnly
from peftlib.strategies.ia3 import IA3
from peftlib.strategies.ln_tuning import LNTuning
from peftlib.strategies.lora import LoRA
from peftlib.strategies.peft_method import PeftMethod
from peftlib.training.optimization import build_optimizer

ARCHITECTURES = ("bert", "roberta", "distilbert", "deberta", "deberta-v1")
METHODS: dict[str, Strategy] = {
    "bitfit": BitFit(),
    "bitfit-without-head": BitFit(train_head=False),
    "head": HeadOnly(),
    "lora": LoRA(),
    "adalora": AdaLoRA(),
    "ia3": IA3(),
    "ln_tuning": LNTuning(),
    "peft": PeftMethod("vera", '{"r": 16}'),
    "prompt_tuning": PeftMethod("prompt_tuning", '{"num_virtual_tokens": 3}'),
    "full": Full(),
}


def classifier(folder: Path) -> tuple[nn.Module, frozenset[str]]:
    """A fresh classifier on the encoder in `folder`, in evaluation mode; its head is the same every time."""
    torch.manual_seed(1)
    model, head, _ = load_classifier(find_model(str(folder)), ("no", "yes"))
    return model.eval(), head


def sentences() -> dict[str, torch.Tensor]:
    """A padded batch of four."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (4, 12), generator=generator)
    mask = (torch.arange(12) < torch.tensor([[12], [9], [5], [2]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.inference_mode()
def logits(model: nn.Module) -> torch.Tensor:
    """The model's answers in evaluation mode."""
    return model.eval()(**sentences()).logits.clone()


def update(model: nn.Module, steps: int = 3, rate: float = 1e-2) -> None:
    """A few real optimizer steps."""
    optimizer = build_optimizer(model, rate, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(**sentences()).logits, torch.tensor([0, 1, 1, 0]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_computes_the_same(changed: nn.Module, plain: nn.Module) -> None:
    """Logits and gradients of both are equal up to rounding."""
    found = []
    for model in (plain, changed):
        output = model(**sentences(), labels=torch.tensor([0, 1, 0, 1]))
        output.loss.backward()
        found.append((output.logits, {name: one.grad for name, one in model.named_parameters() if one.requires_grad}))
    (expected, gradients), (got, others) = found
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)
