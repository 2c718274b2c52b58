"""How a script ends: one line and an exit status that says whose turn it is."""

from __future__ import annotations

import gc
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from peftlib.errors import Interrupted, RunError, UserError
from peftlib.processes import end_with_launcher

_PATIENCE = 3.0  # seconds


def run(main: Callable[[], None]) -> None:
    """Call `main` and exit: 0 done, 1 the run failed, 2 the input was wrong, else a signal's own.

    The first process of each node speaks at once; another one only if it is still there a while later: where the first
    has failed too, the launcher has ended it by then, and where it has failed alone, nobody else knows why.
    """
    if sys.platform == "win32":  # has no fcntl, no resource, no SIGUSR1
        _end("error: Windows is not supported; run it in WSL (wsl --install)", 2)
    end_with_launcher()
    for stream in (sys.stdout, sys.stderr):  # LC_ALL=C has no letters for the names of classes, which may be any
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        _end(f"error: {error}", 2, error)
    except RunError as error:
        _end(f"failed: {error}", 1)
    except Interrupted as stop:
        _end(str(stop), stop.status)
    except KeyboardInterrupt:
        _end("interrupted", 130)


@contextmanager
def importing() -> Iterator[None]:
    """For a script's imports: what they make stays, so the garbage collector need not look at it, now or ever.

    Python would search all of it again and again while it grows, and once more at the end: a second of the seven from
    launch to the first update, and a quarter of the processor time of a short run (benchmarks/NOTES.md, Start-up).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end(line: str, status: int, to_tell: UserError | None = None) -> NoReturn:
    """Say it, and exit with this status.

    Whoever has started the processes ends all when one has ended: the first of all may need a moment longer.
    """
    rank, speaks = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0") == "0"
    if speaks:
        print(line, file=sys.stderr, flush=True)
    if to_tell is not None:
        _tell_other_nodes(to_tell)
    if rank != "0":
        time.sleep(_PATIENCE)
    if not speaks:
        print(f"process {rank}: {line}", file=sys.stderr, flush=True)
    sys.exit(status)


def _tell_other_nodes(error: UserError) -> None:
    """Those of this node have a launcher in common, which ends them."""
    world = os.environ.get("WORLD_SIZE")
    if os.environ.get("LOCAL_WORLD_SIZE", world) != world:
        from peftlib.distributed import tell

        tell(error)
