"""The model card: what the result is, how good it is, and how to load it without this project."""

from __future__ import annotations

from typing import Any

import yaml

_CARD = """---
{metadata}---

# {title}

`{base}` fine-tuned on {task} with {method}: {trainable:,} of {total:,} parameters trained ({ratio:.4%}).

| metric (validation, {examples:,} examples) | value |
|---|---|
{metrics}

Labels: {labels}. Seed {seed}, learning rate {rate:g}, {steps:,} updates of {batch} examples, precision {precision}.
The whole record is in `run.json`, the curves are in `metrics.jsonl`.

## Use

```python
{usage}
```
"""

_ADAPTER = """from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

model = AutoPeftModelForSequenceClassification.from_pretrained("{folder}", num_labels={classes})
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""

_CHECKPOINT = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""


def model_card(run: dict[str, Any], scores: dict[str, float], *, folder: str, is_adapter: bool) -> str:
    """Markdown with the Hub's metadata on top.

    Args:
        run: the facts of `run.json`.
        scores: metric -> value on the validation split.
        folder: the name under which the result will be loaded.
        is_adapter: whether it is a PEFT adapter or a plain checkpoint.
    """
    arguments, parameters = run["arguments"], run["parameters"]
    metadata: dict[str, Any] = {
        "base_model": run["model"]["name"],
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-classification",
        "tags": [arguments["method"], arguments["task_name"]],
        "metrics": [name for name in scores if name != "loss"],
    }
    usage = (_ADAPTER if is_adapter else _CHECKPOINT).format(folder=folder, classes=len(run["labels"]))
    return _CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        title=f"{arguments['task_name']} · {arguments['method']}",
        base=run["model"]["name"],
        task=arguments["task_name"],
        method=arguments["method"],
        trainable=parameters["trainable"],
        total=parameters["total"],
        ratio=parameters["trainable_ratio"],
        examples=run["data"]["validation"]["examples"],
        metrics="\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items()),
        labels=", ".join(f"{index} = {label}" for index, label in enumerate(run["labels"])),
        seed=arguments["seed"],
        rate=run["learning_rate"],
        steps=run["steps"],
        batch=run["effective_batch_size"],
        precision=run["precision"]["name"],
        usage=usage,
    )
