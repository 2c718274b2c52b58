"""A result on the Hugging Face Hub: one commit of what others need, which names no place on this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peftlib.distributed import on_main
from peftlib.errors import RunError, UserError
from peftlib.hub import is_public, signed_in
from peftlib.modeling import hub_name_of_base
from peftlib.run_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peftlib.tracking.card import best_scores, model_card, name_for_others
from peftlib.tracking.folder import RUN_FILES, sweep_of_run
from peftlib.tracking.reporter import Reporter

_ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
_CHECKPOINT = ("config.json", "model.safetensors")
#: The record names folders of this machine, and the answers are of use beside it.
_STAYS_HERE = ("metrics.jsonl", "predictions.safetensors", "run.json")


class Repository(NamedTuple):
    """Where a result goes on the Hub.

    Attributes:
        id: with its owner, as in "me/reviews".
        private: make it private if it is new.
    """

    id: str
    private: bool

    @property
    def flags(self) -> str:
        """Those that name it on a command line."""
        return f"--push_to_hub --hub_model_id {self.id}" + (" --hub_private_repo" if self.private else "")


def find_repository(wanted: str | None, name: str, private: bool) -> Repository:
    """The repository to push to, once the Hub knows who pushes; nothing is made there yet.

    Args:
        wanted: `--hub_model_id`, with its owner or without; None takes `name`.

    Raises:
        UserError: there is no such name, or nothing can be pushed there from here, as far as the Hub tells before.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    account = signed_in("--push_to_hub")
    flag = f"--push_to_hub: {name!r}" if wanted is None else f"--hub_model_id {wanted}"
    place = name if wanted is None else wanted
    place = place if "/" in place else f"{account.name}/{place}"
    try:
        validate_repo_id(place)
    except HFValidationError as error:
        raise UserError(
            f"{flag}: is no name that the Hub takes (letters, digits, -, _ and .); give one in --hub_model_id, as in "
            f"{account.name}/reviews"
        ) from error
    if account.role == "read":
        raise UserError(
            "--push_to_hub: this machine's token may only read; make one that may write "
            "(https://huggingface.co/settings/tokens) and run `hf auth login --force`"
        )
    owners = (account.name, *account.organisations)
    # Other kinds of tokens do not show all that they may write to.
    if account.role == "write" and place.split("/")[0].lower() not in map(str.lower, owners):
        raise UserError(
            f"{flag}: the token is {account.name}'s, who may write to {', '.join(owners)}; name one of these"
        )
    if private and is_public(place, flag):
        raise UserError(
            f"{flag}: is there already, for everybody to read; make it private in its settings, name another one, or "
            "leave --hub_private_repo out"
        )
    return Repository(place, private)


def choose_repository(push: bool, wanted: str | None, private: bool, reporter: Reporter) -> Repository | None:
    """`find_repository` for a run, asked by the main process alone; None for one that is not pushed.

    Raises:
        UserError: on every process.
    """
    if not push:
        return None
    if sweep_of_run() is not None:
        raise UserError(
            "--push_to_hub: a sweep would push all its runs; leave it out, and push the best one in the end with "
            "scripts/export.py"
        )
    name = reporter.folder.resolve().name
    repository = on_main(lambda: find_repository(wanted, name, private))
    readers = "private if it is new" if private else "for everybody to read"
    reporter.notes([f"what is finished goes to {repository.id} on the Hub, {readers}"])
    return repository


def push_result(repository: Repository | None, reporter: Reporter) -> None:
    """Push what a finished run has saved, on the main process; nothing without a repository.

    Raises:
        RunError: it could not be pushed; the run's folder stays as it is.
    """
    if repository is not None and reporter.facts:
        reporter.console.note(f"pushed to {push_run(reporter.folder, reporter.facts, repository)}")


def push_run(folder: Path, run: dict[str, Any], repository: Repository) -> str:
    """Push what a run has saved in its folder: weights, configuration, tokenizer, card and results.

    The card is made anew and the base model gets the name that it has elsewhere: those in the folder load it from here.

    Args:
        run: the content of `run.json`.

    Returns:
        The repository's address.

    Raises:
        UserError: nothing is saved there.
        RunError: it could not be pushed.
    """
    files: dict[str, Path | bytes] = {
        name: folder / name for name in RUN_FILES if name not in _STAYS_HERE and (folder / name).is_file()
    }
    is_adapter = _ADAPTER[0] in files
    if missing := {*(_ADAPTER if is_adapter else _CHECKPOINT)} - files.keys():
        raise UserError(f"{folder}: has no {min(missing)}; train it again")
    if is_adapter:
        files[_ADAPTER[0]] = _adapter_config(folder / _ADAPTER[0], run)
    scores = best_scores(run["results"])
    card = model_card(run, scores, folder=repository.id, is_adapter=is_adapter, public=True)
    files["README.md"] = card.encode()
    way = f"python scripts/export.py {shlex.quote(str(folder))}{' --adapter' * is_adapter} {repository.flags}"
    return _push(folder, files, repository, way)


def push_adapter(folder: Path, run: dict[str, Any], repository: Repository) -> str:
    """`push_run` of a run that has saved an adapter.

    Raises:
        UserError: it has not.
        RunError: it could not be pushed.
    """
    if not (folder / _ADAPTER[0]).is_file():
        raise UserError(f"{folder}: holds no adapter but the whole model; leave --adapter out")
    return push_run(folder, run, repository)


def push_checkpoint(folder: Path, repository: Repository) -> str:
    """Push a plain checkpoint from `save_checkpoint`: all files of its folder.

    Returns:
        The repository's address.

    Raises:
        RunError: it could not be pushed.
    """
    way = f"hf upload {repository.id} {shlex.quote(str(folder))}" + (" --private" if repository.private else "")
    return _push(folder, {path.name: path for path in folder.iterdir()}, repository, way)


def _adapter_config(path: Path, run: dict[str, Any]) -> bytes:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name_for_others(run["model"])
    revision = run["arguments"].get("model_revision")
    if revision != "main" and hub_name_of_base(run["model"]) == run["model"]["name"]:
        config["revision"] = revision  # the base model's, to PEFT
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _push(folder: Path, files: Mapping[str, Path | bytes], repository: Repository, way: str) -> str:
    """All files in one commit, in which weights of the other kind go: an adapter's would be loaded over the model's.

    Args:
        files: name -> where it is, or its content.
        way: the command that pushes it again.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    try:
        # None leaves a new one to its owner's default, which is public but for some organisations.
        address = api.create_repo(repository.id, private=repository.private or None, exist_ok=True)
        stale = ({*_ADAPTER, *_CHECKPOINT} - files.keys()) & {*api.list_repo_files(repository.id)}
        api.create_commit(
            repository.id,
            [
                *(CommitOperationAdd(name, content) for name, content in sorted(files.items())),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message="End of training",
        )
    except Exception as error:  # of the client, its HTTP library or the system: they share no other class
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(
            f"{folder} holds the whole result, but it was not pushed to {repository.id} ({reason}); push it with: {way}"
        ) from error
    return str(address)
