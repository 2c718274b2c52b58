"""Whether the Hugging Face Hub can be reached, found out in seconds instead of minutes of retries."""

from __future__ import annotations

import os
import sys
import threading
from typing import Literal

from peftlib.errors import UserError

#: Seconds: what one request may take, and what all of finding out may take (name resolution has its own retries).
_REQUEST_TIMEOUT = 5
_DEADLINE = 8


def hub_access(repo_id: str, *, repo_type: Literal["model", "dataset"], flag: str, ways_out: str) -> bool:
    """Ask the Hub for `repo_id` before anything that would retry for minutes.

    Args:
        repo_id: such as "bert-base-uncased" or "nyu-mll/glue".
        flag: the flag that asked for it, for the error.
        ways_out: what else the user can do, for the error.

    Returns:
        True when the Hub answered; False when it did not but the local cache holds a copy, which is said on stderr.

    Raises:
        UserError: no answer and no copy, or the Hub's answer is that there is no such repository for this user.
    """
    from huggingface_hub import HfApi, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound, GatedRepoError, HFValidationError, RepositoryNotFoundError

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().repo_info(repo_id, repo_type=repo_type, timeout=_REQUEST_TIMEOUT)
            outcome.append(None)
        except Exception as error:  # handed over and judged below
            outcome.append(error)

    # A daemon thread, since a name that does not resolve ignores the request's own time-out.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_DEADLINE)
    error = outcome[0] if outcome else TimeoutError(f"no answer in {_DEADLINE} s")
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
        raise UserError(f"{flag}: no such folder, and no name that the Hub could have; use {ways_out}") from error
    try:
        cached = any(repo.repo_id == repo_id and repo.repo_type == repo_type for repo in scan_cache_dir().repos)
    except CacheNotFound:
        cached = False
    if cached:
        if os.environ.get("RANK", "0") == "0":
            print(
                f"warning: the Hub does not answer ({type(error).__name__}); {repo_id} is read from its cache",
                file=sys.stderr,
            )
        return False
    raise UserError(
        f"{flag}: the Hugging Face Hub cannot be reached ({type(error).__name__}) and the cache has no {repo_id}; "
        f"use {ways_out}"
    ) from error
