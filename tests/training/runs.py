"""Small real runs, set up like `scripts/train.py`: random tokens, a tiny BERT, prepared objects."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from peftlib.data.encoding import EncodedExamples
from peftlib.data.loading import Splits, build_loaders
from peftlib.data.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from peftlib.evaluation.evaluator import Between, Evaluation, evaluate
from peftlib.strategies import STRATEGIES
from peftlib.training.data_parallel import prepare
from peftlib.training.devices import build_accelerator
from peftlib.training.optimization import build_optimizer, build_scheduler
from peftlib.training.state import Plan, Training

VOCABULARY = 50
TOKENIZER = SimpleNamespace(pad_token_id=0, pad_token_type_id=0, padding_side="right")


#: Options of `make_run` for a method that has a hook, without dropout.
ADALORA: dict[str, Any] = {"method": "adalora", "flags": {"adalora_dropout": 0.0}}
#: Problem type -> metric, number of outputs.
KINDS = {SINGLE_LABEL: ("accuracy", 2), MULTI_LABEL: ("micro_f1", 3), REGRESSION: ("pearson", 1)}


def encoded(examples: int, seed: int = 0, kind: str = SINGLE_LABEL) -> EncodedExamples:
    """Make sentences of 3 to 11 random tokens, labelled with one of 2 classes, any of three, or a score from 0 to 5."""
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(generator.integers(3, 12, examples))])
    ids = generator.integers(1, VOCABULARY, offsets[-1]).astype(np.int32)
    outputs = KINDS[kind][1]
    labels = generator.integers(0, 2, (examples, outputs) if kind == MULTI_LABEL else examples)
    if kind == REGRESSION:
        labels = (generator.random(examples) * 5).astype(np.float32)
    return EncodedExamples({"input_ids": ids}, offsets, labels, "none", "made up")


def tiny_bert(dropout: float = 0.0, outputs: int = 2) -> nn.Module:
    """Build a tiny BERT, with the same weights at every call."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=outputs,
    )
    return BertForSequenceClassification(config)


class Log:
    """A watcher that records what it receives."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.facts: dict[str, Any] = {}
        self.said: list[str] = []

    def advance(self, step: int) -> None:
        self.steps.append(step)

    def log(self, values: dict[str, float], step: int) -> None:
        self.lines.append((step, values))

    def update(self, **facts: Any) -> None:
        self.facts |= facts

    def warn(self, line: str) -> None:
        self.facts["warning"] = line

    def notes(self, lines: Iterable[str]) -> None:
        self.said += lines

    def of(self, name: str) -> list[float]:
        return [values[name] for _, values in self.lines if name in values]


class GradientRecorder(torch.optim.SGD):
    """Record the gradient of every update and change nothing, so that all updates start from the same weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.0)
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.seen: list[dict[str, torch.Tensor]] = []

    def step(self, closure: Any = None) -> None:
        parameters = self.param_groups[0]["params"]
        self.seen.append({name: p.grad.clone() for name, p in zip(self.names, parameters, strict=True)})


def scripted(scores: list[float], losses: list[float] | None = None) -> Callable[[Between | None], Evaluation]:
    """Return an `evaluate` that yields these accuracies and losses in turn; all losses are 1 unless given."""
    left = iter(zip(scores, losses or itertools.repeat(1.0), strict=False))

    def evaluate(_: Between | None) -> Evaluation:
        metrics = dict(zip(("accuracy", "loss"), next(left), strict=True))
        return Evaluation(metrics, np.zeros((1, 2)), np.zeros(1, dtype=int), 1.0)

    return evaluate


def make_run(
    folder: Path,
    *,
    examples: int = 37,
    micro: int = 4,
    accumulation: int = 1,
    epochs: float = 1,
    max_steps: int | None = None,
    scores: list[float] | None = None,
    losses: list[float] | None = None,
    method: str = "full",
    flags: dict[str, Any] | None = None,
    rate: float = 1e-3,
    schedule: str = "linear",
    warmup: int = 0,
    dropout: float = 0.0,
    scaler: torch.amp.GradScaler | None = None,
    recorder: bool = False,
    precision: str = "no",
    kind: str = SINGLE_LABEL,
    class_weights: tuple[float, ...] = (),
    **plan_options: Any,
) -> Training:
    """Set up a run for `train`, with a `Log` as its watcher; its evaluation is real unless `scores` are given."""
    accelerator, _ = build_accelerator(precision, accumulation, [], folder, 1)
    accelerator.scaler = scaler
    weights = {str(index): weight for index, weight in enumerate(class_weights)}
    splits = Splits(encoded(examples, kind=kind), encoded(11, seed=1, kind=kind), weights)
    train_loader, eval_loader, batches = build_loaders(
        splits,
        TOKENIZER,
        batch_sizes=(micro, 4),
        accumulation_steps=accumulation,
        num_processes=accelerator.num_processes,
        seed=7,
        group_by_length=True,
        pad_to=0,
        num_workers=0,
    )
    metric, outputs = KINDS[kind]
    model = tiny_bert(dropout, outputs=outputs)
    head = frozenset({"classifier.weight", "classifier.bias"})
    strategy = STRATEGIES[method](**(flags or {}))
    model = strategy.apply(model, head)
    options = {
        "eval_steps": None,
        "logging_steps": 1,
        "max_grad_norm": 0.0,
        "patience": 0,
        "best_metric": metric,
        **plan_options,
    }
    plan = Plan.of(batches.windows_per_epoch, epochs, max_steps, **options)
    optimizer = GradientRecorder(model) if recorder else build_optimizer(model, rate, 0.0, accelerator.device)
    scheduler = build_scheduler(optimizer, schedule, plan.steps, warmup, 0.0)
    prepared, optimizer, train_loader, eval_loader = prepare(accelerator, model, optimizer, train_loader, eval_loader)
    score = partial(evaluate, accelerator, prepared, eval_loader, splits.validation.labels, (metric,))
    torch.manual_seed(0)
    return Training(
        accelerator,
        prepared,
        optimizer,
        scheduler,
        train_loader,
        eval_loader,
        batches,
        scripted(scores, losses) if scores is not None else score,
        Log(),
        plan,
        hook=strategy.step_hook(model, plan.steps),
    )
