"""Write a run's result to disk: weights, tokenizer and card, moved into place once all are complete."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import nn

from peftlib.errors import RunError
from peftlib.evaluation.evaluator import Evaluation
from peftlib.evaluation.predictions import save_predictions
from peftlib.files import placed_when_whole, write_text
from peftlib.run_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CHECKPOINT, CHECKPOINTS, best_scores
from peftlib.strategies import Strategy
from peftlib.strategies.parameters import ParameterCount
from peftlib.tracking.card import model_card
from peftlib.training.state import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_result(
    folder: Path,
    strategy: Strategy,
    model: nn.Module,
    head: frozenset[str],
    tokenizer: PreTrainedTokenizerBase,
    run: dict[str, Any],
    evaluation: Evaluation,
) -> int:
    """Write the adapter (or checkpoint), the tokenizer, the model card and the predictions into `folder`.

    Args:
        model: as the strategy returned it, unwrapped.
        head: names of the head's parameters.
        run: the content of `run.json`, for the card.
        evaluation: of `model` on the validation split.

    Returns:
        The size of the weights file in bytes.

    Raises:
        RunError: a file could not be written.
    """
    kept = any((folder / CHECKPOINTS).glob(f"{CHECKPOINT}*"))
    way = "continue with --resume_from_checkpoint auto" if kept else "train again (with --checkpointing_steps)"
    with _quietly_placed(folder, way) as temporary:
        strategy.save(model, temporary, head)
        _save_tokenizer(tokenizer, temporary)
        is_adapter = (temporary / ADAPTER_CONFIG).is_file()
        weights = temporary / (ADAPTER_WEIGHTS if is_adapter else "model.safetensors")
        size = weights.stat().st_size
        card = model_card(run, evaluation.metrics, folder=str(folder), is_adapter=is_adapter)
        write_text(temporary / "README.md", card)
        save_predictions(temporary, evaluation.logits, evaluation.labels)
    return size


def save_checkpoint(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: dict[str, Any], name: str
) -> None:
    """Write a plain checkpoint, its tokenizer and a model card into `folder`.

    Args:
        run: the content of `run.json`, for the card.
        name: what to load it by, for the card: a folder, or a repository on the Hub.

    Raises:
        RunError: a file could not be written.
    """
    card = model_card(run, best_scores(run["results"]), folder=name, is_adapter=False, public=True)
    with _quietly_placed(folder, "export it again") as temporary:
        model.save_pretrained(temporary)
        _save_tokenizer(tokenizer, temporary)
        write_text(temporary / "README.md", card)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        # The tokenizers library reports errors of the system as a bare Exception, "... (os error 28)".
        if type(error) is Exception and "(os error" in str(error):
            raise OSError(str(error)) from error
        raise


@contextlib.contextmanager
def _quietly_placed(folder: Path, way: str) -> Iterator[Path]:
    """Wrap `placed_when_whole`, with the libraries' output suppressed.

    Args:
        way: how to retry after a failed write, for the error message.
    """
    try:
        # The libraries announce each file they write; the run reports the folder once.
        with (
            placed_when_whole(folder) as temporary,
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", FutureWarning)  # PEFT and transformers, about each other
            yield temporary
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise RunError(f"the result could not be written to {folder}: {error}; make room there and {way}") from error


def flat_results(
    progress: Progress, evaluation: Evaluation, parameters: ParameterCount, saved_bytes: int
) -> dict[str, Any]:
    """Build the content of `all_results.json`: flat, with the keys of the `transformers` examples.

    `eval_*` are the scores of the saved weights, those of the best update; `last_eval_*` are those of the last update.

    Args:
        evaluation: of the saved state.
        saved_bytes: size of the weights file.
    """
    return {
        **{f"eval_{name}": value for name, value in evaluation.metrics.items()},
        **{f"last_eval_{name}": value for name, value in progress.last.items() if name != "step"},
        **{f"best_eval_{name}": value for name, value in progress.best.items()},
        "train_loss": progress.loss_sum / progress.step,
        "train_runtime": progress.train_seconds,
        "train_samples_per_second": progress.examples / progress.train_seconds,
        "eval_samples": len(evaluation.labels),
        "eval_samples_per_second": len(evaluation.labels) / evaluation.seconds,
        "trainable_params": parameters.trainable,
        "total_params": parameters.total,
        "trainable_ratio": parameters.ratio,
        "saved_bytes": saved_bytes,
        "global_step": progress.step,
        "skipped_steps": progress.skipped,
        "epoch": progress.epochs,
    }
