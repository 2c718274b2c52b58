"""Check access to the Hugging Face Hub, and the signed-in account, in seconds instead of minutes of retries."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from peftlib.errors import UserError, in_one_line

#: Time-outs in seconds, of one request and of a whole check (name resolution has its own retries).
_REQUEST_TIMEOUT = 5
_DEADLINE = 8


def hub_access(repo_id: str, *, repo_type: Literal["model", "dataset"], flag: str, ways_out: str) -> bool:
    """Check that the Hub has `repo_id`, before any call that would retry for minutes.

    Args:
        repo_id: such as "bert-base-uncased" or "nyu-mll/glue".
        flag: the flag that asked for it, for error messages.
        ways_out: the user's alternatives, for error messages.

    Returns:
        True if the Hub answered; False if it did not but the local cache has a copy, with a warning on stderr.

    Raises:
        UserError: neither the Hub nor the cache has it, or this user may not read it.
    """
    from huggingface_hub import HfApi, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound, GatedRepoError, HFValidationError, RepositoryNotFoundError

    _, error = _asked(lambda: HfApi().repo_info(repo_id, repo_type=repo_type, timeout=_REQUEST_TIMEOUT))
    if error is None:
        return True
    if isinstance(error, GatedRepoError):
        raise UserError(f"{flag}: {repo_id} is gated; ask for access on its page, then run `hf auth login`") from error
    if isinstance(error, RepositoryNotFoundError):
        raise UserError(
            f"{flag}: the Hub has no {repo_type} {repo_id}, or it is private (then run `hf auth login`); "
            f"check the name, or use {ways_out}"
        ) from error
    if isinstance(error, HFValidationError):
        raise UserError(f"{flag}: no such folder, and not a valid name on the Hub; use {ways_out}") from error
    try:
        cached = any(repo.repo_id == repo_id and repo.repo_type == repo_type for repo in scan_cache_dir().repos)
    except CacheNotFound:
        cached = False
    if cached:
        if os.environ.get("RANK", "0") == "0":
            print(
                f"warning: the Hub does not answer ({type(error).__name__}); reading {repo_id} from the cache",
                file=sys.stderr,
            )
        return False
    raise UserError(
        f"{flag}: the Hugging Face Hub cannot be reached ({type(error).__name__}) and the cache has no {repo_id}; "
        f"use {ways_out}"
    ) from error


class Account(NamedTuple):
    """The account that this machine's token belongs to.

    Attributes:
        name: the user.
        organisations: the user's organisations.
        role: the token's role, "read" or "write"; others, such as "fineGrained", do not say what they allow.
    """

    name: str
    organisations: tuple[str, ...]
    role: str | None


def signed_in(flag: str) -> Account:
    """Return the account of the token that `huggingface_hub` finds.

    Args:
        flag: the flag that asked for it, for error messages.

    Raises:
        UserError: HF_HUB_OFFLINE is set, there is no token, or the Hub rejects it or does not answer.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{flag}: HF_HUB_OFFLINE is set, and this needs the Hub; unset it")
    answer, error = _asked(HfApi().whoami)
    if isinstance(error, LocalTokenNotFoundError):
        raise UserError(
            f"{flag}: no token for the Hub on this machine; run `hf auth login`, or set HF_TOKEN"
        ) from error
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        way = "set another HF_TOKEN" if os.environ.get("HF_TOKEN") else "run `hf auth login --force`"
        raise UserError(f"{flag}: the Hub rejects this machine's token; {way}") from error
    if error is not None:
        raise _unreachable(flag, error) from error
    token = answer.get("auth", {}).get("accessToken") or {}
    return Account(answer["name"], tuple(one["name"] for one in answer.get("orgs", ())), token.get("role"))


def is_public(repo_id: str, flag: str) -> bool:
    """Return whether the Hub has such a model, and it is public.

    Args:
        flag: the flag that asked for it, for error messages.

    Raises:
        UserError: the Hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    found, error = _asked(lambda: HfApi().repo_info(repo_id, timeout=_REQUEST_TIMEOUT))
    if error is not None and not isinstance(error, RepositoryNotFoundError):
        raise _unreachable(flag, error) from error
    return error is None and not found.private


def _unreachable(flag: str, error: Exception) -> UserError:
    reason = in_one_line(error, named=True)
    return UserError(f"{flag}: the Hugging Face Hub cannot be reached ({reason}); try again, or leave the flag out")


def _asked(question: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return the client's answer or exception; a TimeoutError after `_DEADLINE` seconds."""
    outcome: list[tuple[Any, Exception | None]] = []

    def ask() -> None:
        try:
            outcome.append((question(), None))
        except Exception as error:  # passed on to the caller
            outcome.append((None, error))

    # In a daemon thread, since name resolution ignores the request's time-out.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_DEADLINE)
    return outcome[0] if outcome else (None, TimeoutError(f"no answer in {_DEADLINE} s"))
