"""The runs that a sweep would make."""

from __future__ import annotations

import signal

from peftlib.sweeps.config import Sweep


def preview(sweep: Sweep) -> None:
    """Print a line per run of a grid, and their number; of a search, what it draws from."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word, as it ends `cat`
    if sweep.method == "grid":
        for index, point in enumerate(sweep.grid()):
            print(f"{index}: " + " ".join(f"--{flag}={value}" for flag, value in sweep.flags(point).items()))
        print(f"{sweep.size} run{'' if sweep.size == 1 else 's'}")
        return
    for parameter in sweep.parameters:
        settings = ", ".join(f"{name} {value}" for name, value in parameter.settings.items())
        print(f"{parameter.name}: {parameter.distribution}, {settings}")
    print(
        f"{sweep.method}: {'no run_cap, goes on until it is stopped' if sweep.size is None else f'{sweep.size} runs'}"
    )
