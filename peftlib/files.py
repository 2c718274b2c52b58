"""Files that are whole or absent: written beside their place, synced, then renamed over it; and where caches are."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def write_text(path: Path, text: str) -> None:
    """`write_bytes`, of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` atomically: a reader, or a crash, sees the old file or the new one."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
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
    """Replace `path` by strictly valid JSON: NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(strict(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def placed_when_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` when the block ends well, and vanish when it does not."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        temporary = Path(name)
        yield temporary
        for path in sorted(temporary.iterdir()):
            share(path)
            sync(path)
            path.replace(folder / path.name)


def cache_folder() -> Path:
    """`$PEFTLIB_CACHE`, else `$XDG_CACHE_HOME/peftlib`, else `~/.cache/peftlib`."""
    if folder := os.environ.get("PEFTLIB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftlib"


def load_yaml(text: str, kind: type[Any] = yaml.SafeLoader) -> Any:
    """YAML in which no mapping has a key twice: of two, the loaders keep the last without a word.

    Args:
        kind: PyYAML's loader.

    Raises:
        yaml.YAMLError: it is none.
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
    """`value` with every non-finite float replaced by None, through dicts, lists and tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


def share(path: Path) -> None:
    """Give a file or folder the permissions that a plain `open` or `mkdir` would have given it.

    Temporary files, and those of safetensors, are their owner's alone, which would hide results from a group.
    """
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # The umask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def bytes_in_words(count: float) -> str:
    """In kB, MB or GB, as file managers count them."""
    if count < 1e6:
        return f"{count / 1e3:,.0f} kB"
    return f"{count / 1e6:,.2f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"
