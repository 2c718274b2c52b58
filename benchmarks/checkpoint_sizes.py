"""Size of one checkpoint of bert-base's shape, by method: ours, and that of `Accelerator.save_state`.

    python benchmarks/checkpoint_sizes.py

The weights are random, as sizes do not depend on them. One real update is made first, so that AdamW has its moments.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertForSequenceClassification

from peftlib.data.encoding import EncodedExamples
from peftlib.data.loading import Splits, build_loaders
from peftlib.evaluation.evaluator import Evaluation
from peftlib.run_files import CHECKPOINTS
from peftlib.strategies import STRATEGIES
from peftlib.strategies.parameters import trained_state
from peftlib.training.checkpointing import CheckpointKeeper
from peftlib.training.devices import build_accelerator
from peftlib.training.loop import train
from peftlib.training.manifest import checkpoints
from peftlib.training.optimization import build_optimizer, build_scheduler
from peftlib.training.state import Plan, Training

HEAD = frozenset({"classifier.weight", "classifier.bias"})
METHODS: dict[str, dict[str, Any]] = {"bitfit": {}, "lora": {"lora_r": 16}, "head": {}, "full": {}}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(method: str, options: dict[str, Any], folder: Path) -> tuple[int, int, int]:
    """Return the number of trained parameters, and the bytes of our checkpoint and of accelerate's."""
    accelerator, _ = build_accelerator("no", 1, [], folder, 0)
    examples = EncodedExamples(
        {"input_ids": np.arange(1, 33, dtype=np.int32)}, np.array([0, 16, 32]), np.array([0, 1]), "none", "made up"
    )
    train_loader, eval_loader, batches = build_loaders(
        Splits(examples, examples), SimpleNamespace(pad_token_id=0, pad_token_type_id=0, padding_side="right"),
        (2, 2), 1, 1,
        seed=0, group_by_length=False, pad_to=0, num_workers=0,
    )  # fmt: skip
    model = STRATEGIES[method](**options).apply(BertForSequenceClassification(BertConfig()), HEAD)
    plan = Plan.of(1, 1, None, eval_steps=None, logging_steps=1, max_grad_norm=1.0, patience=0, best_metric="accuracy")
    optimizer = build_optimizer(model, 1e-3, 0.0)
    scheduler = build_scheduler(optimizer, "linear", 1, 0, 0.0)
    model, optimizer, train_loader = accelerator.prepare(model, optimizer, train_loader)
    answers = Evaluation({"accuracy": 0.5, "loss": 0.7}, np.zeros((2, 2)), np.zeros(2, dtype=int), 1.0)
    watcher: Any = SimpleNamespace(advance=lambda step: None, log=lambda values, step: None)
    run = Training(
        accelerator, model, optimizer, scheduler, train_loader, eval_loader, batches, lambda _: answers, watcher, plan
    )
    train(run)
    silent = SimpleNamespace(tracker_ids={}, warn=print)
    CheckpointKeeper(folder, "1", None, {}, silent).save(run)  # type: ignore[arg-type]
    accelerator.save_state(str(folder / "accelerate"))
    trained = sum(tensor.numel() for tensor in trained_state(model).values())
    return trained, size_of(checkpoints(folder / CHECKPOINTS)[0]), size_of(folder / "accelerate")


def main() -> None:
    table = Table("method", "trained parameters", "checkpoint (MB)", "save_state (MB)")
    torch.manual_seed(0)
    for method, options in METHODS.items():
        with tempfile.TemporaryDirectory() as name:
            trained, ours, theirs = measure(method, options, Path(name))
        table.add_row(method, f"{trained:,}", f"{ours / 1e6:.2f}", f"{theirs / 1e6:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
