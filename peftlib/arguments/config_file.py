"""Read the file of flags for `--config FILE`, YAML or the record of a run; the command line overrides it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from peftlib.arguments.parser import REFUSED, Parser, underscored
from peftlib.data.tasks import TASKS, Task
from peftlib.errors import UserError, in_one_line
from peftlib.files import load_yaml
from peftlib.flags import TAKES_JSON, as_json, name_own_data
from peftlib.strategies import STRATEGIES

#: Flags of a record that say where its run was, and what was to become of it.
_OF_ITS_RUN = frozenset({
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "extend_training", "dry_run", "run_name",
    "push_to_hub", "hub_model_id", "hub_private_repo",
})  # fmt: skip


def flags_of_file(path: Path, parser: Parser) -> list[str]:
    """Convert the file's mapping to command-line flags, so that the same code checks both.

    Raises:
        UserError: the file cannot be read, or an entry is not a flag with a value.
    """
    try:
        # The base loader keeps values as written; YAML's other loaders read `mixed_precision: no` as False.
        text = path.read_text(encoding="utf-8")
        content = load_yaml(text, yaml.BaseLoader)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = in_one_line(error).replace('"<unicode string>", ', "")
        raise UserError(f"--config {path}: not valid YAML ({reason})") from error
    of_record = path.suffix == ".json" and isinstance(content, dict) and "arguments" in content
    if of_record:
        content = _of_record(text, path)
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must contain lines such as `learning_rate: 0.003`")
    known = [flag for flag in parser.flags() if flag not in ("--config", "--help") and not flag.startswith("--no_")]
    argv, names = [], dict[str, str]()
    for key, value in content.items():
        flag = f"--{underscored(str(key))}"
        if flag[2:] in REFUSED:
            raise UserError(f"--config {path}: {key} {REFUSED[flag[2:]]}")
        if flag not in known:
            # Flags in a file have no dashes; the launcher's flags keep theirs.
            ours, *launcher = re.split(r"(?=accelerate launch)", parser.instead_of(flag[2:], "--config", "--help"))
            hint = "".join([ours.replace("--", ""), *launcher])
            raise UserError(f"--config {path}: {key} is not a flag of train.py{hint}")
        if names.setdefault(flag, key) != key:
            raise UserError(f"--config {path}: {names[flag]} and {key} are the same flag; keep one")
        if isinstance(value, dict) and flag.endswith(TAKES_JSON):
            try:
                value = as_json(load_yaml(text)[key])  # read again by a loader that parses numbers
            except (yaml.YAMLError, ValueError, TypeError) as error:
                reason = in_one_line(error)
                raise UserError(
                    f"--config {path}: {key} cannot be read as JSON ({reason}); put it in quotes"
                ) from error
        if isinstance(value, dict):
            raise UserError(f"--config {path}: {key} is a mapping; flags take single values or lists")
        if of_record or value not in ("", "~", "null"):
            word = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            argv.append(f"{flag}={word}")
    return argv


def _of_record(text: str, path: Path) -> dict[str, str]:
    """The flags with which a run is trained again, from its `run.json`, as YAML's base loader would read them.

    Rates, dropout and epochs that are the method's or the task's own are left out: with another method or task on the
    command line, its own apply.

    Raises:
        UserError: the record is damaged.
    """
    try:
        said = dict(json.loads(text)["arguments"])
        kind = STRATEGIES.get(said["method"])
        epochs = TASKS.get(said["task_name"], Task).num_train_epochs
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"--config {path}: is not the record of a run ({in_one_line(error, named=True)})") from error
    if kind is None:
        raise UserError(f"--config {path}: this version has no method {said['method']}")
    if name_own_data(said):
        said.pop("task_name", None)  # was found from the data
    settled = {"learning_rate": kind.default_learning_rate, "dropout": kind.default_dropout, "num_train_epochs": epochs}
    kept = {name: value for name, value in said.items() if name not in _OF_ITS_RUN and value is not None}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in kept.items()
        if name not in settled or value != settled[name]
    }
