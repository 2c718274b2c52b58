"""Preview of a sweep's runs."""

from __future__ import annotations

import signal
import sys

from peftlib.console import not_written
from peftlib.sweeps.config import Sweep
from peftlib.sweeps.parameters import Parameter


def preview(sweep: Sweep) -> None:
    """Print a grid's runs, one per line, and their number; for a search, its distributions.

    Raises:
        RunError: they cannot be printed, as on a full disk.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when `| head` closes the pipe, as `cat` does
    try:
        _print(sweep)
        sys.stdout.flush()
    except OSError as error:
        raise not_written(error) from error


def _print(sweep: Sweep) -> None:
    if sweep.method == "grid":
        for index, point in enumerate(sweep.grid()):
            print(f"{index}: " + " ".join(f"--{flag}={value}" for flag, value in sweep.flags(point).items()))
        print(f"{sweep.size} run{'' if sweep.size == 1 else 's'}")
        return
    for parameter in sweep.parameters:
        settings = ", ".join(f"{name} {value}" for name, value in parameter.settings.items())
        print(f"{parameter.name}: {parameter.distribution}, {settings}{_most(parameter)}")
    print(f"{sweep.method}: {'no run_cap, runs until it is stopped' if sweep.size is None else f'{sweep.size} runs'}")


def _most(parameter: Parameter) -> str:
    """Where most values lie, which the settings of some distributions hardly tell: exponents, means, shapes."""
    kind = parameter.distribution.removeprefix("q_")
    if kind not in ("log_uniform", "inv_log_uniform", "normal", "log_normal", "beta"):
        return ""
    return "; nine values in ten from {:.4g} to {:.4g}".format(*map(parameter.quantile, (0.05, 0.95)))
