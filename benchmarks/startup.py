"""Start-up time as a user sees it: of `--help`, and to the first update of a real launch."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.jobs import ROOT, environment, launch_options
from peftlib.processes import end_with_parent
from peftlib.run_files import METRICS

_TRAIN = str(ROOT / "scripts" / "train.py")
_POLL = 0.01  # seconds


def seconds_to_help() -> float:
    """Return the wall time of `python scripts/train.py --help`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, _TRAIN, "--help"], env=environment(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def seconds_to_first_update(flags: tuple[str, ...], config: str, timeout: float = 600) -> float:
    """Return the wall time from `accelerate launch scripts/train.py` to the first line in `metrics.jsonl`; end the run.

    Args:
        config: a file of `accelerate_configs/`.

    Raises:
        RuntimeError: no update was made in `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="bench-launch-") as name:
        metrics = Path(name) / "run" / METRICS
        # Two updates, because the last one evaluates before it logs.
        own = f"--output_dir {shlex.quote(str(metrics.parent))} --logging_steps 1 --max_train_steps 2 --report_to none"
        words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *launch_options(config), _TRAIN]
        with (Path(name) / "said").open("w+") as said:
            start = time.perf_counter()
            launched = subprocess.Popen(
                [*words, *flags, *shlex.split(own)], env=environment(), stdout=said, stderr=said,
                start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip
            try:
                while time.perf_counter() - start < timeout and launched.poll() is None:
                    if metrics.exists() and metrics.read_text(encoding="utf-8").endswith("\n"):
                        return time.perf_counter() - start
                    time.sleep(_POLL)
            finally:
                with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                    os.killpg(launched.pid, signal.SIGKILL)
                launched.wait()
            said.seek(0)
            raise RuntimeError(f"no first update:\n{said.read()[-3000:]}")
