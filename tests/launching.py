"""Starting the project's commands as a user does, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

CONFIGS = ROOT / "accelerate_configs"


def clean_environment(home: Path, **changes: str) -> dict[str, str]:
    """This one without launchers' and trackers' variables, offline, and with no files outside `home`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ACCELERATE_", "WANDB_", "MASTER_")) and name not in ("RANK", "WORLD_SIZE")
    }
    return {
        **kept,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "PEFTLIB_CACHE": str(home / "cache"),
        "HF_HUB_OFFLINE": "1",
        **changes,
    }


def run_python(*words: object, cwd: Path, seconds: int = 300, **changes: str) -> subprocess.CompletedProcess[str]:
    """`python words...` in `cwd`, with what it printed; its home is beside `cwd`."""
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=clean_environment(home, **changes),
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )


def launch(
    config: str, script: Path, *words: object, cwd: Path, seconds: int = 300, **changes: str
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch -q --config_file accelerate_configs/<config>.yaml script words...` in `cwd`."""
    options = ["-q", "--config_file", CONFIGS / f"{config}.yaml"]
    if config.startswith("multi"):
        options += ["--main_process_port", "0"]  # any free one: several test runs may share the machine
    return run_python("-m", "accelerate.commands.launch", *options, script, *words, cwd=cwd, seconds=seconds, **changes)


def launch_two(script: Path, folder: Path, *words: object) -> None:
    """Run one of the tests' own scripts in two processes; it is given `folder` and `words`."""
    done = launch("multi_cpu", script, folder, *words, cwd=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
