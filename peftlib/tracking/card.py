"""The model card: what the model is, how well it scores, and how to load it without this project."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from peftlib.data.own_data import task_in_table
from peftlib.data.tasks import MULTI_LABEL, REGRESSION, in_a_list, problem_type_of
from peftlib.modeling import PACKAGED_MODELS, hub_name_of_base
from peftlib.run_files import leak_in_words
from peftlib.strategies import STRATEGIES
from peftlib.tracking.announcement import changes_of_loss

_CARD = """---
{metadata}
---

# {title}

`{base}` fine-tuned on {task} with {method}: {trainable:,} of {total:,} parameters trained ({ratio:.4%}).

| metric (validation, {examples:,} examples) | value |
|---|---|
{metrics}

The saved state is the best of the run on these examples{leak}.

{labels}. Seed {seed}, learning rate {rate:g}, {steps:,} updates of {batch} examples, precision {precision}.{loss}
{record}
## Use

```python
{usage}
```
{below}"""

_ADAPTER = """from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

model = AutoPeftModelForSequenceClassification.from_pretrained("{folder}", {outputs}, dtype="float32")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""

#: Only in the card beside the run, not in a published one.
_RECORD = "The full record is in `run.json`, the curves are in `metrics.jsonl`.\n"

#: Follows the code of a regression model.
_REGRESSION_OUTPUT = """
`model(**tokenizer({texts}, return_tensors="pt")).logits[0, 0]` is the score, which may be slightly outside the range of
the training data.
"""

#: Follows the code of a multi-label model.
_MULTI_LABEL_OUTPUT = """
`model(**tokenizer({texts}, return_tensors="pt")).logits[0].sigmoid()` is each class's probability; the classes above
0.5 are predicted.
"""

#: Follows the code of an adapter, in the card beside the run.
_BASE_LOCATION = """
`adapter_config.json` has the path of the base model: `{location}`. On another machine, replace it with the path
there{hub}.
"""

#: The same in a published card, for a base model that is not on the Hub.
_BASE_UNKNOWN = """
`adapter_config.json` names the base model `{base}`, after the folder that it was in. Unless this is its name on the
Hub, replace it with the model's path.
"""

#: The Hub's names of metrics that have other names here, those of `evaluate`'s glue and of scikit-learn.
_HUB_METRICS = {
    "pearson": "pearsonr", "r2": "r_squared", "macro_f1": "f1", "micro_f1": "f1", "subset_accuracy": "accuracy",
}  # fmt: skip

_CHECKPOINT = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""


def model_card(
    run: dict[str, Any], scores: dict[str, float], *, folder: str, is_adapter: bool, public: bool = False
) -> str:
    """Return the card as Markdown, with the Hub's metadata on top.

    Args:
        run: the content of `run.json`.
        scores: metric -> value on the validation split.
        folder: the path or name from which the model will be loaded.
        is_adapter: whether it is a PEFT adapter or a plain checkpoint.
        public: for publication: the card names no path on this machine but `folder`, and no file that stays with the
            run.
    """
    arguments, parameters, base = run["arguments"], run["parameters"], run["model"]["name"]
    on_hub, method = hub_name_of_base(run["model"]), STRATEGIES[arguments["method"]].named(arguments)
    if public:
        base = name_for_others(run["model"])
    title = f"{arguments['task_name']} · {method}"
    kind = problem_type_of(run)
    below = {MULTI_LABEL: _MULTI_LABEL_OUTPUT, REGRESSION: _REGRESSION_OUTPUT}.get(kind, "").format(texts=_texts(run))
    if kind == REGRESSION:
        outputs, labels = f'num_labels=1, problem_type="{kind}"', "Scores"
        if "score_range" in run:
            labels = "Scores from {:g} to {:g}".format(*run["score_range"])
    else:
        names = enumerate(run["labels"])
        classes = ", ".join(f"{index}: {json.dumps(name, ensure_ascii=False)}" for index, name in names)
        outputs = f"id2label={{{classes}}}"
        # Markdown takes <unk> for a tag.
        shown = (html.escape(in_a_list(label), quote=False) for label in run["labels"])
        labels = "Labels: " + ", ".join(f"{index} = {label}" for index, label in enumerate(shown))
        if kind == MULTI_LABEL:
            outputs, labels = f'{outputs}, problem_type="{kind}"', f"{labels}; any number of them per text"
    usage = (_ADAPTER if is_adapter else _CHECKPOINT).format(folder=folder, outputs=outputs)
    if is_adapter and not public:
        hub = f", or with its name on the Hub, `{on_hub}`" if base in PACKAGED_MODELS else ""
        below += _BASE_LOCATION.format(location=run["model"]["location"], hub=hub)
    elif is_adapter and on_hub is None:
        below += _BASE_UNKNOWN.format(base=base)
    return _CARD.format(
        metadata=_metadata(run, scores, title, is_adapter=is_adapter),
        title=title,
        base=base,
        task=arguments["task_name"],
        method=method,
        trainable=parameters["trainable"],
        total=parameters["total"],
        ratio=parameters["trainable_ratio"],
        examples=run["data"]["validation"]["examples"],
        metrics="\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items()),
        leak="" if (leak := leak_in_words(run["data"]["validation"])) is None else f"; {leak}",
        labels=labels,
        seed=arguments["seed"],
        rate=run["learning_rate"],
        steps=run["steps"],
        batch=run["effective_batch_size"],
        precision=run["precision"]["name"],
        loss="".join(f" Training loss: {change}." for change in changes_of_loss(run, arguments).values()),
        record="" if public else _RECORD,
        usage=usage,
        below=below,
    )


def _metadata(run: dict[str, Any], scores: dict[str, float], title: str, *, is_adapter: bool) -> str:
    """Metadata for the Hub, which shows the scores beside the page and lists an adapter under its base model."""
    from huggingface_hub import EvalResult, ModelCardData

    arguments, base, dataset = run["arguments"], hub_name_of_base(run["model"]), _on_hub(run)
    measured = {name: value for name, value in scores.items() if name != "loss"}
    data = {"dataset_type": dataset or arguments["task_name"], "dataset_name": arguments["task_name"], **_split(run)}
    results = [
        EvalResult(
            task_type="text-classification", **data,
            metric_type=_HUB_METRICS.get(name, name), metric_name=name, metric_value=value,
        )
        for name, value in measured.items()
    ]  # fmt: skip
    metadata = ModelCardData(
        base_model=base,  # None if it is not on the Hub, which accepts no other name
        base_model_relation=None if base is None else "adapter" if is_adapter else "finetune",
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification",
        tags=[*_method_tags(arguments), arguments["task_name"]],
        metrics=list(dict.fromkeys(_HUB_METRICS.get(name, name) for name in measured)),
        datasets=None if dataset is None else [dataset],
        model_name=title,
        eval_results=results,
    )
    return metadata.to_yaml()


def _split(run: dict[str, Any]) -> dict[str, str]:
    """The published split that was scored, and its configuration; empty if it was another, or a part of one."""
    arguments, task = run["arguments"], task_in_table(run["arguments"])
    if _on_hub(run) is None or arguments.get("max_eval_samples") is not None:
        return {}
    if task is not None:
        config, split = task.split_on_hub("validation")
    elif arguments.get("validation_split_percentage") is None:
        config, split = arguments.get("dataset_config_name"), arguments.get("validation_split_name") or "validation"
    else:
        return {}
    if not re.fullmatch(r"\w+", split):  # a slice such as test[:50%]
        return {}
    return {"dataset_split": split, **({} if config is None else {"dataset_config": config})}


def _method_tags(arguments: dict[str, Any]) -> list[str]:
    """The method and, of PEFT's types, which one."""
    method = arguments["method"]
    names = [arguments.get(flag) for flag in STRATEGIES[method].named_by]
    return [method, *(name for name in names if isinstance(name, str))]


def name_for_others(model: dict[str, Any]) -> str:
    """Return the base model's name for use on other machines: its name on the Hub, else that of its folder.

    Args:
        model: the entry `model` of `run.json`.
    """
    return hub_name_of_base(model) or Path(model["location"]).name


def _texts(run: dict[str, Any]) -> str:
    """The arguments of the tokenizer in the card's code."""
    task = task_in_table(run["arguments"])
    columns = run.get("text_columns") if task is None or task.hub is None else task.hub.text_columns
    return "text" if columns is None or len(columns) == 1 else "sentence1, sentence2"


def _on_hub(run: dict[str, Any]) -> str | None:
    """The dataset's name on the Hub; None for local files and folders."""
    arguments, task = run["arguments"], task_in_table(run["arguments"])
    if task is not None:
        return None if task.hub is None else task.hub.path
    return None if "dataset_folder" in run else arguments.get("dataset_name")
