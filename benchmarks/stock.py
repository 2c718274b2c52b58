"""Runs of transformers.Trainer, set up as its users do, on the same examples and trained parameters."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, set_seed

from benchmarks.jobs import EVALUATIONS, Job
from benchmarks.meter import Meter, Speed, accuracy, resident_after_imports
from peftlib.arguments import TrainArguments, parse_train_arguments
from peftlib.data.encoding import EncodedExamples
from peftlib.data.loading import load_splits
from peftlib.data.tasks import TASKS
from peftlib.modeling import find_model, load_classifier, load_tokenizer


class Rows(Dataset[dict[str, Any]]):
    """Tokenised examples as in a user's dataset: lists without padding."""

    def __init__(self, examples: EncodedExamples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self._examples.offsets[index : index + 2]
        row = {name: column[start:end].tolist() for name, column in self._examples.columns.items()}
        return {**row, "attention_mask": [1] * len(row["input_ids"]), "labels": int(self._examples.labels[index])}


class Ticking(TrainerCallback):
    """Notifies a meter of every update."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._meter.tick(state.global_step)


def build(job: Job, folder: str) -> Trainer:
    """Build a Trainer for the job: dynamic padding, the same method, learning rate and schedule, otherwise defaults."""
    args = parse_train_arguments(job.argv())
    data, how = args.data, args.training
    task = TASKS[args.task_name]
    if how.num_cpu_threads:
        torch.set_num_threads(how.num_cpu_threads)
    set_seed(how.seed)
    source = find_model(args.model.model_name_or_path)
    tokenizer = load_tokenizer(source)
    splits = load_splits(task, tokenizer, data.data_dir, data.max_length, data.max_train_samples, data.max_eval_samples)
    model, head, _ = load_classifier(source, task.labels, args.dropout)
    return Trainer(
        model=args.strategy.apply(model, head),
        args=_settings(args, job, len(splits.train), folder),
        train_dataset=Rows(splits.train),
        eval_dataset=Rows(splits.validation),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda answers: {"accuracy": accuracy(answers.predictions, answers.label_ids)},
    )


def _settings(args: TrainArguments, job: Job, examples: int, folder: str) -> TrainingArguments:
    how = args.training
    window = how.per_device_train_batch_size * how.gradient_accumulation_steps
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=how.per_device_train_batch_size,
        per_device_eval_batch_size=how.per_device_eval_batch_size,
        gradient_accumulation_steps=how.gradient_accumulation_steps,
        max_steps=job.warmup + job.epochs * -(-examples // window),
        learning_rate=args.learning_rate,
        lr_scheduler_type=how.lr_scheduler_type,
        warmup_steps=how.warmup_ratio,
        weight_decay=how.weight_decay,
        max_grad_norm=how.max_grad_norm,
        bf16=how.mixed_precision == "bf16",
        fp16=how.mixed_precision == "fp16",
        use_cpu=not torch.cuda.is_available(),  # without it, Trainer refuses bf16 on a CPU
        seed=how.seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def measure_training(job: Job) -> Speed:
    """Time as many updates as `job.epochs` epochs have, after `job.warmup` untimed ones."""
    after_imports = resident_after_imports()
    with tempfile.TemporaryDirectory(prefix="bench-run-") as folder:
        trainer = build(job, folder)
        meter = Meter(trainer.args.device, after_imports, job.warmup, trainer.args.max_steps)
        meter.watch(trainer.model)
        trainer.add_callback(Ticking(meter))
        trainer.train()
        return meter.speed(trainer.model, trainer.accelerator.mixed_precision, training=True)


def measure_evaluation(job: Job) -> Speed:
    """Time `EVALUATIONS` evaluations on the validation split, after an untimed one."""
    after_imports = resident_after_imports()
    with tempfile.TemporaryDirectory(prefix="bench-run-") as folder:
        trainer = build(job, folder)
        meter = Meter(trainer.args.device, after_imports)
        meter.watch(trainer.model)
        trainer.evaluate()
        meter.start()
        for _ in range(EVALUATIONS):
            trainer.evaluate()
        meter.stop()
        return meter.speed(trainer.model, trainer.accelerator.mixed_precision, training=False)
