"""Scores that others have reported on the same tasks, shown beside ours and never mixed with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A score, or two, on a task's GLUE dev set.

    Attributes:
        lora_r: the rank; None if the method has none, or the source does not say.
        value: as printed in the source, with the metric if the source names one.
        own: whether it is from the report that this project began with.
    """

    task: str
    method: str
    lora_r: int | None
    model: str
    value: str
    source: str
    own: bool = False


SEED_REPORT = "the report that this project began with; bert-base-uncased, one seed"
_RUN_GLUE = "transformers, examples/pytorch/text-classification/README.md"
_MINILM = "microsoft/unilm, minilm/README.md (names no metric)"
_LORA = "microsoft/LoRA, README.md (accuracy)"
_NVIDIA = "NVIDIA DeepLearningExamples, BERT README (accuracy, mean ± standard deviation of 100 seeds)"


def _seed_report(task: str, method: str, lora_r: int | None, value: str) -> Reference:
    return Reference(task, method, lora_r, "bert-base-uncased", value, SEED_REPORT, own=True)


REFERENCES = (
    _seed_report("mrpc", "bitfit", None, "accuracy .8088, F1 .8682"),
    _seed_report("mrpc", "lora", 8, "accuracy .8578, F1 .9003"),
    _seed_report("mrpc", "lora", 16, "accuracy .8554, F1 .8977"),
    _seed_report("mrpc", "lora", 32, "accuracy .8603, F1 .9005"),
    _seed_report("sst2", "bitfit", None, "accuracy .9140"),
    _seed_report("sst2", "lora", 8, "accuracy .9174"),
    _seed_report("sst2", "lora", 16, "accuracy .9163"),
    _seed_report("sst2", "lora", 32, "accuracy .9255"),
    Reference("mrpc", "full", None, "bert-base-cased", "accuracy .8407, F1 .8885", _RUN_GLUE),
    Reference("sst2", "full", None, "bert-base-cased", "accuracy .9232", _RUN_GLUE),
    Reference("mrpc", "full", None, "MiniLM-L12-H384", ".895", _MINILM),
    Reference("sst2", "full", None, "MiniLM-L12-H384", ".930", _MINILM),
    Reference("mrpc", "full", None, "BERT-large", ".8256 ± .0601", _NVIDIA),
    Reference("mrpc", "lora", None, "RoBERTa-base", ".897 ± .007", _LORA),
    Reference("sst2", "lora", None, "RoBERTa-base", ".951 ± .002", _LORA),
)


def references(task: str, method: str, lora_r: int | None) -> list[Reference]:
    """Return the scores reported for a method on a task; sources that name no rank match any `lora_r`."""
    return [
        reference
        for reference in REFERENCES
        if (reference.task, reference.method) == (task, method) and reference.lora_r in (lora_r, None)
    ]
