"""Compile the C++ kernels into a library for this machine, on first use (it takes seconds), and cache it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from peftlib.acceleration.cpus import has_slow_bf16
from peftlib.files import cache_folder, sync

_SOURCES = sorted(Path(__file__).with_name("cpp").iterdir())
_FLAGS = (
    "-O3", "-march=native", "-std=gnu++17", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
    "-Wno-psabi", "-fPIC",
)  # fmt: skip
_TIMEOUT_S = 120


def _flags() -> tuple[str, ...]:
    wide = ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
    slow = ("-DSLOW_BF16",) if has_slow_bf16() else ()  # which g++ does not know of this processor
    return (*_FLAGS, *wide, *slow)


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels; None outside Linux, and, with one warning, if they cannot be built."""
    if sys.platform != "linux":
        return None
    try:
        return _cached()
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        reason = (said.strip() or str(error)).partition("\n")[0]
        warnings.warn(f"no CPU kernels, and training takes up to 2.2 times as long: {reason}", stacklevel=2)
        return None


def _cached() -> ctypes.CDLL:
    name, folder = f"{_fingerprint()}.so", cache_folder() / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_only_ours(folder):
            raise PermissionError("other users can put libraries there, whose code would run here")
        scratch = tempfile.TemporaryDirectory(dir=folder)
    except OSError:  # also if the home is read-only or full: build for this process only
        with tempfile.TemporaryDirectory() as elsewhere:
            return ctypes.CDLL(str(_compiled(Path(elsewhere) / name)))
    with scratch as inside:
        if (library := _loaded(folder / name)) is not None:
            return library
        with _one_at_a_time(folder):
            if (library := _loaded(folder / name)) is not None:
                return library
            made = _compiled(Path(inside) / name)
            sync(made)
            made.replace(folder / name)  # once it is complete: others may look for it
    return ctypes.CDLL(str(folder / name))


def _loaded(library: Path) -> ctypes.CDLL | None:
    """Load it if it is there, nobody else can have put it there, and it is whole, as it is not on a full disk."""
    if _is_only_ours(library):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(library))
    return None


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of the processes that a launcher starts, one builds, with all cores, while the others wait for it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks know no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_only_ours(path: Path) -> bool:
    """Whether a file or folder exists, and no user but this one and root can write to it."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return False
    return facts.st_uid == os.geteuid() and not facts.st_mode & 0o022


def _compiled(path: Path) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("they need g++ (apt install g++, or conda install gxx)")

    def compiled(source: Path) -> Path:
        made = path.with_name(f"{source.stem}.o")
        _run(compiler, *_flags(), "-c", "-o", made, source)
        return made

    # One process per source: on two cores 3.3 s, where a single one takes 5.5.
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, (source for source in _SOURCES if source.suffix == ".cpp")))
    _run(compiler, *_FLAGS, "-shared", "-o", path, *objects, *_openmp())
    path.chmod(0o700)
    return path


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)


def _openmp() -> list[str]:
    """Return flags to link torch's own OpenMP: a second thread pool would compete with torch's for the cores."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ["-Wl,--as-needed", *map(str, found)]


def _fingerprint() -> str:
    """Hash what the build has to fit: sources, flags, torch's OpenMP, the processor and its instruction sets."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = {line.partition(":")[0].strip(): line for line in lines}
    processor = [about[name] for name in ("model name", "flags", "Features") if name in about]
    facts = [*(source.read_text() for source in _SOURCES), *_flags(), *_openmp(), platform.machine(), *processor]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
