"""A small model and made-up sentences for the benchmarks' own code."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from benchmarks.options import write_random_bert

#: In the training split: sixteen updates, so that four pools to group by length have four each.
EXAMPLES = 16 * 16


def small_config() -> BertConfig:
    return BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=8, intermediate_size=256)


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Of a BitFit run in fp32 on one thread, over sentences whose lengths spread as widely as they can."""
    folder = tmp_path_factory.mktemp("speed")
    torch.manual_seed(0)
    model = write_random_bert(folder / "model", small_config())
    write_sentences(folder / "SST-2")
    return (
        *("--model_name_or_path", model, "--task_name", "sst2", "--data_dir", str(folder)),
        *("--per_device_train_batch_size", "16", "--mixed_precision", "no", "--num_cpu_threads", "1"),
        *("--dropout", "0.1"),  # as the bench has it
    )


def write_sentences(folder: Path) -> None:
    """A made-up SST-2 whose sentences have 4 to 125 words, evenly on a logarithmic scale."""
    draw = random.Random(0)
    folder.mkdir()
    for name, count in (("train", EXAMPLES), ("dev", 16)):
        rows = [
            f"{' '.join(draw.choices(('good', 'bad', 'film'), k=int(2 ** draw.uniform(2, 6.95))))}\t{number % 2}"
            for number in range(count)
        ]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
