"""Load a finished run from its output folder: its task, examples, tokenizer and model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlib.data.own_data import LABEL_COLUMN, columns_of, label_columns_of, own_data_of, task_in_table
from peftlib.data.places import OwnData
from peftlib.data.sources import Examples, load_examples
from peftlib.data.tasks import METRICS_OF_OWN_DATA, Task, problem_type_of
from peftlib.errors import UserError, in_one_line
from peftlib.evaluation.predictions import place_of
from peftlib.fingerprint import Fingerprint
from peftlib.modeling import ModelSource, find_model, load_classifier, load_tokenizer, name_of_base
from peftlib.run_files import ADAPTER_CONFIG, RECORD, read_record
from peftlib.strategies import STRATEGIES, Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftlib.strategies.base import Trained

_NEEDED = {"arguments": dict, "data": dict, "labels": list, "model": dict, "precision": dict, "results": dict}


@dataclass(frozen=True)
class Finished:
    """A run that finished successfully.

    Attributes:
        record: the content of `run.json`.
    """

    folder: Path
    record: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Finished:
        """Read the run in this folder.

        Raises:
            UserError: there is none, it has not finished, or its record is damaged.
        """
        folder = Path(folder)
        path = folder / RECORD
        try:
            record = read_record(folder)
        except NotADirectoryError as error:
            raise UserError(f"{folder}: is a file; name the run's folder") from error
        except FileNotFoundError as error:
            raise UserError(f"{folder}: contains no run (no run.json in it); name a finished run's folder") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({in_one_line(error)})") from error
        if (status := record.get("status")) in ("running", "interrupted", "failed"):
            way = "continue it with --resume_from_checkpoint auto"
            if status == "failed":
                raise UserError(
                    f"{folder}: has failed ({record.get('error', 'no reason recorded')}); mend that, and {way}"
                )
            raise UserError(f"{folder}: has not finished (status {status}); {way}")
        if status != "finished" or {name: type(record.get(name)) for name in _NEEDED} != _NEEDED:
            raise UserError(f"{path}: is not a training run's record")
        return cls(folder, record)

    @property
    def arguments(self) -> dict[str, Any]:
        """The run's arguments, as flag -> value."""
        return dict(self.record["arguments"])

    @property
    def task(self) -> Task:
        """The task that it was trained on, with its classes.

        Raises:
            UserError: this version has no such task.
        """
        arguments, labels = self.arguments, tuple(self.record["labels"])
        own = own_data_of(arguments)
        if own is not None:
            guessed = self.record.get("text_columns")  # missing in runs up to 0.1.0
            own = own if guessed is None else replace(own, text_columns=tuple(guessed))
            if own.dataset is not None and "dataset_folder" in self.record:
                own = replace(own, dataset=(self.record["dataset_folder"], own.dataset[1]))
            kind = problem_type_of(self.record)
            return Task(arguments["task_name"], labels, METRICS_OF_OWN_DATA[kind], problem_type=kind, own=own)
        task = task_in_table(arguments)
        if task is None or task.labels != labels:
            raise UserError(
                f"{self.folder}: this version has no task {arguments['task_name']} with labels {', '.join(labels)}"
            )
        return task

    def examples(
        self,
        split: str,
        data_dir: str | None = None,
        test_file: str | None = None,
        text_columns: str | None = None,
        label_column: str | None = None,
        label_delimiter: str | None = None,
        ignore_labels: bool = False,
    ) -> Examples:
        """Load a split of its task, or a file in place of the test split.

        The validation split is cut to the examples that the run was scored on.

        Args:
            data_dir: a folder in GLUE's layout; None for the run's own.
            test_file: a file as for `--train_file`, with or without labels.
            text_columns: that file's text columns, one name or two separated by a comma; None for the run's own.
            label_column: that file's label column; None for the run's own, if the file has it.
            label_delimiter: what separates several classes in it; None for the run's own.
            ignore_labels: read that file as if it had no labels.

        Raises:
            UserError: the rows cannot be loaded, are not those that the run was scored on, or do not fit the task.
        """
        task, folder = self.task, data_dir or self.arguments.get("data_dir")
        own = task.own or OwnData("", "", None, (LABEL_COLUMN,))
        if test_file is not None:
            label_names = own.label_columns if label_column is None else label_columns_of(label_column)
            text_names = own.text_columns if text_columns is None else columns_of(text_columns, label_names)
            own = replace(own, text_columns=text_names, label_columns=label_names, test=test_file, dataset=None)
            own = replace(own, unscored=ignore_labels)
            own = own if label_delimiter is None else replace(own, label_delimiter=label_delimiter)
            task = replace(task, own=own)
        if task.own is not None and split not in ("validation", "test"):
            raise UserError(f"--split {split}: {task.name} has the splits validation and test alone")
        try:
            examples = load_examples(task, split, None if folder is None else Path(folder))
        except UserError as error:
            if test_file is None and task.own is not None and split != "test":
                raise UserError(f"{error}; change to the directory in which the run was started") from error
            if data_dir is None and folder is not None and not Path(folder).is_absolute():
                way = "give --data_dir, or change to the directory in which the run was started"
                raise UserError(f"{error}; {way}") from error
            raise
        if split == "validation":
            examples = examples.first(self.arguments.get("max_eval_samples"))
            scored = self.record["data"].get("validation", {}).get("fingerprint")
            if data_dir is None and examples.fingerprint() != scored:
                raise UserError(
                    f"{examples.source}: has changed since {self.folder} was scored on it; restore the original"
                )
        if label_column is not None and not examples.labelled:
            raise UserError(f"{examples.source}: no column {label_column!r}; leave --label_column_name out")
        needed, given = self.task.texts_per_example, len(examples.texts[0])
        if given != needed:
            raise UserError(
                f"{examples.source}: {task.name} has {needed} texts per example, not {given}; "
                "name that many columns in --text_column_names"
            )
        return examples

    def typed(self, texts: tuple[str, ...]) -> Examples:
        """Return one example without a label.

        Args:
            texts: one, or the two of a sentence pair.

        Raises:
            UserError: the task has another number of them, or one is empty.
        """
        task = self.task
        if len(texts) != task.texts_per_example:
            way = "no sentence pairs; omit --text_pair" if len(texts) == 2 else "sentence pairs; add --text_pair"
            raise UserError(f"--text: {task.name} has {way}")
        if not all(text.strip() for text in texts):
            raise UserError("--text: is empty")
        return Examples([tuple(text.strip() for text in texts)], [task.hidden_label], "--text")

    @property
    def strategy(self) -> Strategy:
        """The method that it was trained with.

        Raises:
            UserError: this version has no such method.
        """
        arguments = self.arguments
        kind = STRATEGIES.get(arguments["method"])
        if kind is None:
            raise UserError(f"{self.folder}: this version has no method {arguments['method']}")
        given = {field.name: arguments[field.name] for field in dataclasses.fields(kind) if field.name in arguments}
        return kind(**given)

    def refuse_what_cannot_be_merged(self) -> None:
        """Check that the method's result can become part of the base model's weights.

        Raises:
            UserError: it is an input to the model, not a change of its weights.
        """
        if not self.strategy.mergeable:
            raise UserError(
                f"{self.folder}: {self.strategy.named(self.arguments)} has no weights to merge; load the adapter with "
                "PEFT, or push it with --adapter --push_to_hub"
            )

    @property
    def layout(self) -> dict[str, int]:
        """The layout of its batches, as keyword arguments of `build_eval_loader`."""
        padded, splits = self.arguments.get("pad_to_max_length"), self.record["data"].values()
        return {
            "pad_to": self.arguments["max_length"] if padded else 0,
            "widest": max(split.get("longest", 0) for split in splits),  # missing in runs up to 0.1.0
        }

    @property
    def acceleration(self) -> dict[str, Any]:
        """How its model was accelerated, as keyword arguments of `accelerate_model`: other ways round differently."""
        return {
            "frozen_dtype": self.arguments.get("frozen_dtype", "auto"),  # both are missing in early runs
            "reads_frozen": self.strategy.reads_frozen_weights,
            "enabled": self.arguments.get("acceleration", "auto") == "auto",
            "recompute": self.arguments.get("gradient_checkpointing", False),
        }

    @property
    def eval_batch_size(self) -> int:
        """Examples per batch and process in its evaluations: where memory was short, fewer than were asked for."""
        return int(self.record.get("eval_batch_size", self.arguments["per_device_eval_batch_size"]))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that was saved with the run.

        Raises:
            UserError: it is missing or damaged.
        """
        if not (self.folder / "tokenizer.json").is_file():
            raise UserError(f"{self.folder}: tokenizer.json is missing; copy it from the base model's folder")
        return load_tokenizer(ModelSource(str(self.folder), str(self.folder)))

    def of_answers(self, source: str, fingerprint: str) -> dict[str, Any]:
        """Return what `results.json` says of whose answers it holds, and to which texts.

        Args:
            source, fingerprint: where the texts come from, and a hash of them.
        """
        return {
            "run": str(self.folder.absolute()),
            "run_ended": self.record.get("ended"),
            "global_step": self.record["results"].get("best_eval_step"),
            "source": source,
            "place": place_of(source),
            "fingerprint": fingerprint,
        }

    def load(
        self, base: str | None = None, trust_remote_code: bool = False, extent: tuple[int, int] | None = None
    ) -> Trained:
        """Load the saved model, in fp32.

        Args:
            base: where an adapter's base model is now, as for `find_model`; None if it has not moved.
            extent: as for `load_classifier`.

        Raises:
            UserError: the base model is not available or is a different one, the saved files cannot be read, or the
                embeddings are too small for `extent`.
        """
        labels, place = tuple(self.record["labels"]), str(self.folder)
        kind = problem_type_of(self.record)
        if not (self.folder / ADAPTER_CONFIG).is_file():
            if base is not None:
                raise UserError(f"--model_name_or_path {base}: {self.folder} has the whole model; leave the flag out")
            source = ModelSource(place, place, trust_remote_code=trust_remote_code)
            return load_classifier(source, labels, extent=extent, problem_type=kind).model
        revision = self.arguments.get("model_revision", "main")
        source = find_model(base or name_of_base(self.record["model"]), revision, trust_remote_code)
        added = self.strategy.virtual_tokens
        model, _, new = load_classifier(source, labels, extent=extent, problem_type=kind, virtual_tokens=added)
        weights = self.record["model"].get("fingerprint")  # missing in runs up to 0.1.0
        if weights is not None and Fingerprint.of(model, new).weights != weights:
            raise UserError(
                f"--model_name_or_path {source.name}: its weights differ from those that {self.folder} was trained "
                "on; name the original base model"
            )
        return self.strategy.load(model, self.folder)
