"""Run by test_evaluator.py in two processes: each writes the logits that it gets for some splits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from peftlib.data.batching import WindowBatches
from peftlib.data.collation import Collator
from peftlib.evaluation.evaluator import predict
from peftlib.training.devices import build_accelerator
from tests.training.runs import TOKENIZER, encoded, tiny_bert


def main(folder: Path, cases: list[str]) -> None:
    accelerator, _ = build_accelerator("no", 1, [], folder, 1)
    assert accelerator.num_processes == 2
    model = accelerator.prepare(tiny_bert(dropout=0.5))
    for case in cases:
        examples, batch_size = map(int, case.split(","))
        split = encoded(examples)
        batches = WindowBatches(split.lengths, batch_size, num_processes=2)
        loader = DataLoader(split, batch_sampler=batches, collate_fn=Collator.for_tokenizer(TOKENIZER))
        answers = predict(accelerator, model, accelerator.prepare(loader), examples)
        np.save(folder / f"{examples}-{batch_size}-{accelerator.process_index}.npy", answers)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
