"""Atomic writing of files (temporary file, fsync, rename), strict JSON and YAML, and the cache folder."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

#: What the names of temporary folders begin with, and those of temporary files end with.
SAVING, TEMPORARY = ".saving-", ".tmp"

# It can only be read by setting it: once, while there are no threads that write files.
_UMASK = os.umask(0)
os.umask(_UMASK)


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text` in UTF-8, atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` with `content` atomically: readers find the old file or the new one, even after a crash."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        share(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with strictly valid JSON, atomically; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(strict(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


class Twice(ValueError):
    """A name occurs twice in a JSON object, of which Python would keep the last value."""


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object's dictionary, as the `object_pairs_hook` of `json.loads`.

    Raises:
        Twice: a name occurs twice.
    """
    options: dict[str, Any] = {}
    for name, value in pairs:
        if name in options:
            raise Twice(f"{name} is given twice; leave one out")
        options[name] = value
    return options


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Format as CSV, as in RFC 4180 but with `\\n` as line ending; None becomes an empty field."""
    lines: list[str] = []

    class Lines:
        def write(self, line: str) -> None:
            lines.append(line.removesuffix("\r\n") + "\n")

    csv.writer(Lines()).writerows(rows)  # it quotes a carriage return only if that is in its own line ending
    return "".join(lines)


@contextlib.contextmanager
def placed_when_whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move into `folder` if the block succeeds, and are deleted if it fails."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=SAVING) as name:
        temporary = Path(name)
        yield temporary
        for path in sorted(temporary.iterdir()):
            share(path)
            sync(path)
            path.replace(folder / path.name)


def obstacle(folder: Path) -> str | None:
    """Return why nothing can be written into a folder, which need not exist yet; None if it can be."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        return f"{existing} is a file"
    return None if os.access(existing, os.W_OK | os.X_OK) else f"{existing} is read-only"


def plain_name(text: str, *, otherwise: str) -> str:
    """Return `text` as a valid name of a file or folder, or another one if nothing is left of it."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or otherwise


def cache_folder() -> Path:
    """Return `$PEFTLIB_CACHE`, else `$XDG_CACHE_HOME/peftlib`, else `~/.cache/peftlib`."""
    if folder := os.environ.get("PEFTLIB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftlib"


def load_yaml(text: str, kind: type[Any] = yaml.SafeLoader) -> Any:
    """Parse YAML and refuse duplicate keys, of which PyYAML silently keeps the last.

    Args:
        kind: PyYAML loader class.

    Raises:
        yaml.YAMLError: the text is not valid, or has a duplicate key.
    """

    class Loader(kind):
        def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
            node: yaml.MappingNode = super().compose_mapping_node(anchor)
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"a second {key.value}", key.start_mark)
                seen.add(key.value)
            return node

    return yaml.load(text, Loader=Loader)


def strict(value: Any) -> Any:
    """Replace every non-finite float by None, recursively in dicts, lists and tuples (which become lists)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


def share(path: Path) -> None:
    """Give a file or folder the permissions that `open` or `mkdir` would have given it.

    Temporary files, and those that safetensors writes, are readable by their owner only, which would hide results
    from a group.
    """
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> TextIO | None:
    """Lock a file without waiting; returns None if another process holds the lock.

    Closing the file, or the end of the process, releases it.

    Raises:
        OSError: the file cannot be written.
    """
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
