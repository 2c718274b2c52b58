"""W&B and accelerate's other trackers: which to use, how to start them, and how to end a W&B run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shlex
from pathlib import Path
from typing import Any

import requests
from accelerate import Accelerator
from accelerate.utils import LoggerType

from peftlib.errors import Interrupted, UserError, nearest

DEFAULT_PROJECT = "peft-text-classification"

_KILLED = 255  # exit code of W&B's client after a Ctrl-C, which W&B shows as "killed"
_ANSWER_SECONDS = 5.0
_STOPPED = """query RunStoppedStatus($project: String, $entity: String, $runId: String!) {
  project(name: $project, entityName: $entity) { run(name: $runId) { stopped } }
}"""


def choose_trackers(wanted: str) -> list[str]:
    """Turn `--report_to` into accelerate's tracker names.

    Raises:
        UserError: a tracker that accelerate does not know, or that is not installed.
    """
    known = sorted(str(kind) for kind in LoggerType if kind != LoggerType.ALL)
    names = list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
    if names == ["none"] or not names:
        return []
    if names == ["auto"]:
        asked_for = any(os.environ.get(name) for name in ("WANDB_SWEEP_ID", "WANDB_API_KEY", "WANDB_MODE"))
        return ["wandb"] if asked_for else []
    if names == ["all"]:
        return [name for name in known if importlib.util.find_spec(name)]
    for name in names:
        if name in ("all", "none", "auto"):
            raise UserError(f"--report_to {wanted}: {name} stands alone")
        if name not in known:
            words = [*known, "all", "none", "auto"]
            raise UserError(f"--report_to {name}: unknown{nearest(name, words)} (known: {', '.join(words)})")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--report_to {name}: not installed; pip install {name}")
    return names


def wandb_goes_offline() -> bool:
    """Whether to make W&B record offline: without a key it would prompt for one, or fail if nobody can answer."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_DISABLED"):
        return False
    return _api_key() is None


def _api_key() -> str | None:
    import wandb

    # Newer versions warn that this is deprecated, but older ones lack the replacement.
    with contextlib.redirect_stderr(io.StringIO()):
        return wandb.api.api_key


def _keep_out_of_imports() -> None:
    """Remove W&B's import hooks, which report imports to its service: if that has died, the import itself fails.

    The run imports modules as it needs them, so a failing import would end it.
    """
    with contextlib.suppress(ImportError, AttributeError):  # not W&B's public API: a version may lack it
        from wandb.sdk.lib import import_hooks

        import_hooks.unregister_all_post_import_hooks()


def leave_wandb() -> None:
    """Disconnect from a W&B service that has died: the client would contact it again at interpreter exit."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def end_wandb_run(run: Any, error: BaseException) -> None:
    """End a W&B run that failed or was interrupted, and tell W&B whether its sweep should requeue it.

    W&B requeues a run that was marked as preempting and ends with a nonzero exit code
    (https://docs.wandb.ai/models/sweeps/signal-handling-sweep-runs). A run that somebody stopped is not marked.

    Args:
        run: the W&B client's run object.
        error: why the run ends.
    """
    if not isinstance(error, Interrupted):
        run.finish(exit_code=1)
    elif error.by_hand or _told_to_stop(run):
        run.finish(exit_code=_KILLED)
    else:
        run.mark_preempting()
        run.finish(exit_code=error.status or 1)


def _told_to_stop(run: Any) -> bool:
    """Whether W&B's server wants a sweep's run to stop: it performs badly (Hyperband), or somebody pressed stop.

    An agent passes that on as SIGTERM, which is also what a cluster sends to preempt a run. The client learns of it
    too, but up to 15 seconds later; a preempted run may not have that long, so ask the server.
    """
    if not os.environ.get("WANDB_SWEEP_ID"):
        return False
    variables = {"entity": run.entity, "project": run.project, "runId": run.id}
    try:
        answer = requests.post(
            f"{run.settings.base_url}/graphql",
            json={"query": _STOPPED, "variables": variables},
            auth=("api", _api_key() or ""),
            timeout=_ANSWER_SECONDS,
        )
        return bool(answer.json()["data"]["project"]["run"]["stopped"])
    except (requests.RequestException, KeyError, TypeError):
        return False  # requeueing a run in vain costs less than losing it


def start_trackers(
    accelerator: Accelerator,
    trackers: list[str],
    *,
    project: str | None,
    name: str,
    folder: Path,
    config: dict[str, Any],
    ids: dict[str, str],
    group: str | None = None,
) -> tuple[dict[str, str], str | None]:
    """Start the trackers on the main process, with the run's configuration.

    Args:
        trackers: from `choose_trackers`, as given to the `Accelerator`.
        project: None for $WANDB_PROJECT, else `DEFAULT_PROJECT`.
        name: name of the run.
        folder: where the trackers' local files go.
        config: flag -> value, and other facts about the run.
        ids: tracker -> the run's id there before it was stopped.
        group: W&B group of the run; $WANDB_RUN_GROUP takes precedence.

    Returns:
        tracker -> the run's id there (empty for those that have none), and a notice for the user if there is something
        to do later.
    """
    notice = None
    wandb_options: dict[str, Any] = {"name": name, "dir": str(folder)}
    if "wandb" in trackers and accelerator.is_main_process and not os.environ.get("WANDB_INIT_TIMEOUT"):
        import wandb

        # An unreachable server delays the run by 30 seconds instead of W&B's 90.
        wandb_options["settings"] = wandb.Settings(init_timeout=30)
    if group is not None and not os.environ.get("WANDB_RUN_GROUP"):
        wandb_options["group"] = group
    if "wandb" in trackers and accelerator.is_main_process and wandb_goes_offline():
        wandb_options["mode"] = "offline"  # W&B has already read WANDB_MODE
    if "wandb" in ids:
        wandb_options["resume"] = "allow"
        if not os.environ.get("WANDB_RUN_ID"):  # set by an agent to which the run was requeued
            wandb_options["id"] = ids["wandb"]
    # TensorBoard takes numbers and strings only.
    plain = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in config.items()}
    accelerator.init_trackers(
        project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
        config=plain,
        init_kwargs={"wandb": wandb_options},
    )
    started = dict.fromkeys(trackers, "")
    if "wandb" in trackers and accelerator.is_main_process:
        # All curves use the number of updates as their x-axis, not W&B's own count of log calls.
        run = accelerator.get_tracker("wandb", unwrap=True)
        _keep_out_of_imports()
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step")
        started["wandb"] = run.id
        if wandb_options.get("mode") == "offline":
            # One folder per resume; the shell expands the asterisk only outside quotes.
            sync = f"wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*-{run.id}"
            notice = f"W&B has no API key, so it records offline; to upload later: wandb login, then {sync}"
    return started, notice
