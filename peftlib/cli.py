"""Run a script's main function, and turn errors into one line and an exit status."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from peftlib.errors import Ending, Interrupted, RunError, UserError
from peftlib.processes import end_with_launcher

_PATIENCE = 3.0  # seconds


def run(main: Callable[[], None]) -> None:
    """Call `main` and exit: status 0 on success, 1 if the run failed, 2 for bad input, else that of the signal.

    The first process of each node prints its error at once. Another process prints one that it alone has raised, after
    a while, in which the launcher ends it if the first one has failed too.
    """
    if sys.platform == "win32":  # lacks fcntl, resource and SIGUSR1
        _end("error: Windows is not supported; run it in WSL (wsl --install)", 2)
    end_with_launcher()
    for stream in (sys.stdout, sys.stderr):  # class names may contain characters that LC_ALL=C cannot encode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        _end("\n".join(f"error: {mistake}" for mistake in error.args), 2, error)
    except RunError as error:
        _end(f"failed: {error}", 1, error)
    except Interrupted as stop:
        _end(str(stop), stop.status, stop)
    except KeyboardInterrupt:
        _end("interrupted", 130)


@contextmanager
def importing() -> Iterator[None]:
    """Disable the garbage collector during a script's imports, then freeze the imported objects, which all stay alive.

    Otherwise Python scans them again and again as they grow, and once more at exit: a second of the seven from launch
    to the first update, and a quarter of the processor time of a short run (benchmarks/NOTES.md, Start-up).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def importing_torch() -> Iterator[None]:
    """Do the same, and without a GPU keep torch from importing Triton for nothing: 79 MB, and up to half a second.

    torch looks for it once in a process, when `torch._dynamo` is imported, as transformers and all optimizers do.
    """
    with importing():
        import torch

        if "triton" not in sys.modules and not torch.accelerator.is_available():
            sys.modules["triton"] = None  # type: ignore[assignment]  # makes importing it fail
            try:
                import torch._dynamo
            finally:
                del sys.modules["triton"]
        yield


def _end(line: str, status: int, error: Ending | None = None) -> NoReturn:
    """Print the line and exit with this status.

    The launcher ends all processes when one exits, so every process but rank 0 waits: rank 0 may need a moment longer.
    """
    rank, speaks = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0") == "0"
    if speaks:
        _say(line)
    if isinstance(error, UserError):
        _tell_other_nodes(error)
    if isinstance(error, Interrupted):
        # A launcher's threads die one by one, and the kernel sends SIGTERM for each that was a parent. Nor may an
        # impatient person's signal change the status, or cut off what still has to be cleaned up.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    if rank != "0":
        time.sleep(_PATIENCE)
    if not speaks and error is not None and not error.shared:
        _say(f"process {rank}: {line}")
    sys.exit(status)


def _say(line: str) -> None:
    """Print to standard error in one write, so that lines of several processes do not mix."""
    print(f"{line}\n", end="", file=sys.stderr, flush=True)


def _tell_other_nodes(error: UserError) -> None:
    """Pass an error on to the other nodes; processes on this node are ended by their common launcher."""
    world = os.environ.get("WORLD_SIZE")
    if os.environ.get("LOCAL_WORLD_SIZE", world) != world:
        from peftlib.distributed import tell

        tell(error)
