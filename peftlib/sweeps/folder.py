"""A sweep's folder: which sweep it belongs to, and the locks in it."""

from __future__ import annotations

import fcntl
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from peftlib.data.own_data import DATA_FLAGS
from peftlib.errors import UserError, in_one_line
from peftlib.files import strict, write_json
from peftlib.run_files import record_in
from peftlib.sweeps.config import Sweep


def open_folder(folder: Path) -> None:
    """Create the folder and its subfolders if they are missing.

    Raises:
        UserError: it cannot be written, or holds files that are not a sweep's, such as a run or data.
    """
    if folder.is_dir() and not (folder / "sweep.json").exists():
        # Another process may be creating the same sweep just now.
        known = ("runs", "locks", "study.db")
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", *known)))
        if others:
            raise UserError(
                f"--sweep_dir {folder}: contains {others[0]}, but no sweep; name a new folder, or an empty one"
            )
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        (folder / "locks").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--sweep_dir {folder}: cannot be written ({error.strerror})") from error


def keep_to(sweep: Sweep, folder: Path, seed: int) -> None:
    """Store the sweep's content on the first call; refuse a different sweep later.

    `run_cap` and `description` may change, and a grid may grow: finished runs stay, and the new points are added.

    Raises:
        UserError: the folder holds another sweep.
    """
    path = folder / "sweep.json"
    now = {key: value for key, value in sweep.content.items() if key not in ("run_cap", "description")}
    now = strict(now | {"seed": seed})
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({in_one_line(error)}); name a new --sweep_dir") from error
    others = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)] if before else []
    for key in others:
        grid = key == "parameters" and sweep.method == "grid" == before["method"]
        if not grid:
            raise UserError(f"--sweep_dir {folder}: contains a sweep with a different {key}; name another folder")
        if not sweep.covers(before["parameters"]):
            raise UserError(
                f"--sweep_dir {folder}: contains a sweep with different parameters (values may be added to a grid, but "
                "not removed or changed); name another folder"
            )
    if others or not before:
        write_json(path, now)


def of_other_data(folders: Mapping[int, Path]) -> list[str]:
    """Return a line for each split that was not the same in runs with the same flags: the files have changed meanwhile.

    Args:
        folders: number of a run -> its folder.
    """
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for number, folder in sorted(folders.items()):
        record = record_in(folder)
        flags = {name: record.get("arguments", {}).get(name) for name in DATA_FLAGS}
        for split, facts in record.get("data", {}).items():
            by_content = found.setdefault((split, repr(flags)), {})
            by_content.setdefault(str(facts.get("fingerprint")), []).append(str(number))
    return [
        f"the {split} data have changed: runs {', '.join(now)} cannot be ranked with runs {', '.join(before)}"
        for (split, _), by_content in found.items()
        for before, now in itertools.pairwise(by_content.values())
    ]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the study's lock: one process of this machine at a time."""
    with (folder / "locks" / "study").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
