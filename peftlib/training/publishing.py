"""Push a result to the Hugging Face Hub: one commit of what others need, without paths of this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peftlib.distributed import on_main
from peftlib.errors import RunError, UserError, in_one_line
from peftlib.hub import is_public, signed_in
from peftlib.modeling import hub_name_of_base
from peftlib.run_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, METRICS, PREDICTIONS, RECORD, best_scores
from peftlib.tracking.card import model_card, name_for_others
from peftlib.tracking.folder import RUN_FILES, sweep_of_run
from peftlib.tracking.reporter import Reporter

_ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
_CHECKPOINT = ("config.json", "model.safetensors")
#: The record contains paths of this machine, and the predictions are of no use without it.
_STAYS_HERE = (METRICS, PREDICTIONS, RECORD)


class Repository(NamedTuple):
    """A repository on the Hub.

    Attributes:
        id: including the owner, as in "me/reviews".
        private: create it as private if it is new.
    """

    id: str
    private: bool

    @property
    def flags(self) -> str:
        """The command line flags that select it."""
        return f"--push_to_hub --hub_model_id {self.id}" + (" --hub_private_repo" if self.private else "")


def find_repository(wanted: str | None, name: str, private: bool) -> Repository:
    """Find the repository to push to, and check the account's permissions; create nothing yet.

    Args:
        wanted: `--hub_model_id`, with or without an owner; None takes `name`.

    Raises:
        UserError: the name is invalid, or the Hub tells in advance that it would refuse the push.
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
            f"{flag}: is not a valid name on the Hub (letters, digits, -, _ and .); choose one with --hub_model_id, "
            f"such as {account.name}/reviews"
        ) from error
    if account.role == "read":
        raise UserError(
            "--push_to_hub: this machine's token may only read; create one that may write "
            "(https://huggingface.co/settings/tokens) and run `hf auth login --force`"
        )
    owners = (account.name, *account.organisations)
    # Tokens of other roles do not list all that they may write to.
    if account.role == "write" and place.split("/")[0].lower() not in map(str.lower, owners):
        raise UserError(f"{flag}: the token of {account.name} may write to {', '.join(owners)}; name one of these")
    if private and is_public(place, flag):
        raise UserError(
            f"{flag}: already exists and is public; make it private in its settings, name another one, or leave out "
            "--hub_private_repo"
        )
    return Repository(place, private)


def choose_repository(push: bool, wanted: str | None, private: bool, reporter: Reporter) -> Repository | None:
    """Call `find_repository` on the main process; return None for a run that is not pushed.

    Raises:
        UserError: see `find_repository`, on every process; or the run is part of a sweep.
    """
    if not push:
        return None
    if sweep_of_run() is not None:
        raise UserError(
            "--push_to_hub: a sweep would push all its runs; leave it out, and push the best one at the end with "
            "scripts/export.py"
        )
    name = reporter.folder.resolve().name
    repository = on_main(lambda: find_repository(wanted, name, private))
    access = "private if it is new" if private else "public"
    reporter.notes([f"the result will be pushed to {repository.id} on the Hub ({access})"])
    return repository


def push_result(repository: Repository | None, reporter: Reporter) -> None:
    """Push the result of a finished run, on the main process; do nothing without a repository.

    Raises:
        RunError: it could not be pushed; the run's folder stays as it is.
    """
    if repository is not None and reporter.facts:
        reporter.console.note(f"pushed to {push_run(reporter.folder, reporter.facts, repository)}")


def push_run(folder: Path, run: dict[str, Any], repository: Repository) -> str:
    """Push what a run has saved in its folder: weights, configuration, tokenizer, card and results.

    The card and the adapter's configuration get the base model's public name: in the folder it may be a local path.

    Args:
        run: the content of `run.json`.

    Returns:
        The repository's URL.

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
    """Push the result of a run that has saved an adapter, with `push_run`.

    Raises:
        UserError: the run has saved no adapter.
        RunError: it could not be pushed.
    """
    if not (folder / _ADAPTER[0]).is_file():
        raise UserError(f"{folder}: holds the whole model and no adapter; leave out --adapter")
    return push_run(folder, run, repository)


def push_checkpoint(folder: Path, repository: Repository) -> str:
    """Push all files of a plain checkpoint from `save_checkpoint`.

    Returns:
        The repository's URL.

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
        config["revision"] = revision  # PEFT's field for the base model's revision
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _push(folder: Path, files: Mapping[str, Path | bytes], repository: Repository, way: str) -> str:
    """Push all files in one commit, which also deletes weights of the other kind: an adapter would modify the model.

    Args:
        files: name -> path or content.
        way: the command that retries the push.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    try:
        # None creates it with the owner's default: public, except in some organisations.
        address = api.create_repo(repository.id, private=repository.private or None, exist_ok=True)
        stale = ({*_ADAPTER, *_CHECKPOINT} - files.keys()) & {*api.list_repo_files(repository.id)}
        api.create_commit(
            repository.id,
            [
                *(CommitOperationAdd(name, content) for name, content in sorted(files.items())),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message="Upload model",
        )
    except Exception as error:  # the client's, its HTTP library's or the system's: they share no other base
        reason = in_one_line(error, named=True)
        raise RunError(
            f"{folder} holds the whole result, but it was not pushed to {repository.id} ({reason}); push it with: {way}"
        ) from error
    return str(address)
