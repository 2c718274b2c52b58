"""Preview of a sweep's runs."""

from __future__ import annotations

import signal

from peftlib.sweeps.config import Sweep


def preview(sweep: Sweep) -> None:
    """Print a grid's runs, one per line, and their number; for a search, its distributions."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when `| head` closes the pipe, as `cat` does
    if sweep.method == "grid":
        for index, point in enumerate(sweep.grid()):
            print(f"{index}: " + " ".join(f"--{flag}={value}" for flag, value in sweep.flags(point).items()))
        print(f"{sweep.size} run{'' if sweep.size == 1 else 's'}")
        return
    for parameter in sweep.parameters:
        settings = ", ".join(f"{name} {value}" for name, value in parameter.settings.items())
        print(f"{parameter.name}: {parameter.distribution}, {settings}")
    print(f"{sweep.method}: {'no run_cap, runs until it is stopped' if sweep.size is None else f'{sweep.size} runs'}")
