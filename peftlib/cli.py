"""How a script ends: one line and an exit status that says whose turn it is."""

from __future__ import annotations

import gc
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from peftlib.errors import Interrupted, RunError, UserError
from peftlib.processes import end_with_launcher

_PATIENCE = 3.0  # seconds


def run(main: Callable[[], None]) -> None:
    """Call `main` and exit: 0 done, 1 the run failed, 2 the input was wrong, else a signal's own.

    Only the first process of each node speaks; the others leave with the same status.
    """
    if sys.platform == "win32":  # has no fcntl, no resource, no SIGUSR1
        _say("error: Windows is not supported; run it in WSL (wsl --install)")
        sys.exit(2)
    end_with_launcher()
    for stream in (sys.stdout, sys.stderr):  # LC_ALL=C has no letters for the names of classes, which may be any
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        _say(f"error: {error}")
        _tell_other_nodes(error)
        _wait_for_the_first()
        sys.exit(2)
    except RunError as error:
        _say(f"failed: {error}")
        _wait_for_the_first()
        sys.exit(1)
    except Interrupted as stop:
        _say(str(stop))
        _wait_for_the_first()
        sys.exit(stop.status)
    except KeyboardInterrupt:
        _say("interrupted")
        _wait_for_the_first()
        sys.exit(130)


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


def _say(line: str) -> None:
    """On the first process of each node, which may have failed alone."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def _wait_for_the_first() -> None:
    """Whoever has started the processes ends all when one has ended: the first of all may need a moment longer."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_PATIENCE)


def _tell_other_nodes(error: UserError) -> None:
    """Those of this node have a launcher in common, which ends them."""
    world = os.environ.get("WORLD_SIZE")
    if os.environ.get("LOCAL_WORLD_SIZE", world) != world:
        from peftlib.distributed import tell

        tell(error)
