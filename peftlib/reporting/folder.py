"""The report's folder: only files that a report has written there are ever overwritten or removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath

from peftlib.errors import UserError
from peftlib.files import TEMPORARY, obstacle, write_json

#: Lists the files of the report, except itself.
MANIFEST = ".report.json"
_PART = ".part"  # suffix of a file that is still being copied


def check_folder(folder: Path) -> None:
    """Refuse a folder where the report cannot be written, before any work is done.

    Raises:
        UserError: it is a file, holds files that no report has written, or is read-only.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; name a folder")
    # A symlink to a folder counts as a file: its target's content is not the report's.
    present = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    own = {folder / (name + end) for name in _listed(folder) for end in ("", _PART)}
    own |= {folder / MANIFEST, *folder.glob(f".{MANIFEST}.*{TEMPORARY}")}
    if foreign := sorted(present - own):
        raise UserError(f"--output_dir {folder}: contains {foreign[0].relative_to(folder)}, which is not part of a "
                        "report; name another folder")  # fmt: skip
    if (problem := obstacle(folder)) is not None:
        raise UserError(f"--output_dir {folder}: {problem}; name another folder")


def put_in_place(staged: Path, folder: Path) -> None:
    """Replace the report in `folder`, if there is one, with the finished one in `staged`.

    If this is interrupted at any point, the next report can still replace what the folder holds.

    Raises:
        UserError: see `check_folder`.
    """
    check_folder(folder)
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    earlier = _listed(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The manifest lists both reports' files before any of them is touched.
    write_json(folder / MANIFEST, sorted(names | earlier))
    for name in sorted(names):
        target, part = folder / name, folder / (name + _PART)
        target.parent.mkdir(exist_ok=True)
        try:
            shutil.copyfile(staged / name, part)
        except OSError:  # a full disk must not stay full
            part.unlink(missing_ok=True)
            raise
        part.replace(target)
    for name in earlier - names:
        (folder / name).unlink(missing_ok=True)
    for name in earlier:
        (folder / (name + _PART)).unlink(missing_ok=True)
    write_json(folder / MANIFEST, sorted(names))


def _listed(folder: Path) -> set[str]:
    """The files that the manifest lists; empty if there is none, or it cannot be read."""
    try:
        names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(names, list):
        return set()
    paths = {PurePosixPath(name) for name in names if isinstance(name, str)}
    # An edited manifest must not point outside the folder.
    return {str(path) for path in paths if path.name and not path.is_absolute() and ".." not in path.parts}
