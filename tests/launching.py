"""Starting the project's commands as a user does, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import accelerate.commands.launch
import torch

from tests.conftest import ROOT, share_kernels

CONFIGS = ROOT / "accelerate_configs"


def clean_environment(home: Path, **changes: str) -> dict[str, str]:
    """This one without launchers' and trackers' variables, offline, and with no files outside `home`."""
    share_kernels(home / "cache")
    of_launchers = ("ACCELERATE_", "WANDB_", "MASTER_", "GLOO_", "PMI_", "OMPI_")
    ranks = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(of_launchers) and name not in ranks
    }
    return {
        **kept,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "PEFTLIB_CACHE": str(home / "cache"),
        "HF_HUB_OFFLINE": "1",
        **changes,
    }


def home_beside(cwd: Path) -> Path:
    """The home of what runs in `cwd`, made where it is missing."""
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    return home


def run_python(*words: object, cwd: Path, seconds: int = 300, **changes: str) -> subprocess.CompletedProcess[str]:
    """`python words...` in `cwd`, with what it printed; its home is beside `cwd`."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=clean_environment(home_beside(cwd), **changes),
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )


class Forked:
    """A script in a process of its own that has all imports from the start: five of the seven seconds of a tiny run.

    It is forked off the tests and looks like a `subprocess.Popen`. For what a script does once it is loaded; what
    is about its start, its launcher or the interpreter's end needs `run_python`, `start_python` or `launch`.
    `changes` go into its environment.
    """

    def __init__(self, script: Path, *words: object, cwd: Path, **changes: str) -> None:
        # What a run imports late, once for all of them.
        import peft  # noqa: F401

        import peftlib.evaluation.metrics  # noqa: F401

        printed = Path(tempfile.mkdtemp(dir=home_beside(cwd), prefix="printed-"))
        self._printed = [printed / "stdout", printed / "stderr"]
        self._process = multiprocessing.get_context("fork").Process(
            target=self._become, args=(script, [str(word) for word in words], cwd, changes)
        )
        self._process.start()

    def _become(self, script: Path, words: list[str], cwd: Path, changes: dict[str, str]) -> None:
        os.setsid()
        for number, file in enumerate(self._printed, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        environment = clean_environment(home_beside(cwd), **changes)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        sys.argv = [str(script), *words]
        runpy.run_path(str(script), run_name="__main__")

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; what it has printed. It is killed, and the test fails, when it takes longer."""
        self._process.join(timeout)
        late = self._process.is_alive()
        if late:
            self._process.kill()
            self._process.join()
        output, errors = (file.read_text(encoding="utf-8") if file.exists() else "" for file in self._printed)
        assert not late, output + errors
        return output, errors


def start_python(*words: object, cwd: Path, **changes: str) -> subprocess.Popen[str]:
    """Start `python words...` in `cwd`, in a session of its own; its home is beside `cwd`."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=clean_environment(home_beside(cwd), **changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_script(script: Path, *words: object, cwd: Path, **changes: str) -> Forked | subprocess.Popen[str]:
    """Start a script whose start is not what the test is about; CUDA, where it is, cannot be forked."""
    start = start_python if torch.cuda.is_available() else Forked
    return start(script, *words, cwd=cwd, **changes)


def run_script(script: Path, *words: object, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """`start_script`, to its end."""
    return finished(start_script(script, *words, cwd=cwd, **changes), script, *words)


def finished(run: Forked | subprocess.Popen[str], script: Path, *words: object) -> subprocess.CompletedProcess[str]:
    output, errors = run.communicate(timeout=300)
    assert run.returncode is not None
    return subprocess.CompletedProcess([str(script), *map(str, words)], run.returncode, output, errors)


def start_launcher(
    config: str, script: Path, *words: object, cwd: Path, **changes: str
) -> Forked | subprocess.Popen[str]:
    """`accelerate launch -q --config_file accelerate_configs/<config>.yaml script words...` in `cwd`.

    The launcher has its imports from the start, what it launches is started as ever.
    """
    options: list[object] = ["-q", "--config_file", CONFIGS / f"{config}.yaml"]
    if config.startswith("multi"):
        options += ["--main_process_port", "0"]  # any free one: several test runs may share the machine
    return start_script(Path(accelerate.commands.launch.__file__), *options, script, *words, cwd=cwd, **changes)


def launch(config: str, script: Path, *words: object, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """`start_launcher`, to its end."""
    return finished(start_launcher(config, script, *words, cwd=cwd, **changes), script, *words)


def start_two(script: Path, *words: object, cwd: Path, **changes: str) -> list[Forked | subprocess.Popen[str]]:
    """Start a script in two processes, with what a launcher gives them but without the launcher."""
    return _start_both(script, [words, words], [cwd, cwd], ["0", "1"], changes)


def start_two_nodes(
    script: Path, *words: object, cwds: tuple[Path, Path], of_second: tuple[object, ...] = (), **changes: str
) -> list[Forked | subprocess.Popen[str]]:
    """`start_two`, each on a node of its own: with another working directory and home, no file in common."""
    return _start_both(script, [words, (*words, *of_second)], list(cwds), ["0", "0"], changes)


def _start_both(
    script: Path, words: list[tuple[object, ...]], cwds: list[Path], local_ranks: list[str], changes: dict[str, str]
) -> list[Forked | subprocess.Popen[str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    common["LOCAL_WORLD_SIZE"] = str(1 + int(local_ranks[1]))
    return [
        start_script(script, *words[rank], cwd=cwd, **common, RANK=str(rank), LOCAL_RANK=local, **changes)
        for rank, (cwd, local) in enumerate(zip(cwds, local_ranks, strict=True))
    ]


def run_in_two(script: Path, *words: object, cwd: Path) -> None:
    """`start_two`, to their good end."""
    for code, output, errors in ends_of(start_two(script, *words, cwd=cwd)):
        assert code == 0, (output + errors)[-3000:]


def ends_of(runs: list[Forked | subprocess.Popen[str]]) -> list[tuple[int | None, str, str]]:
    """The status of each, and what it has printed on both streams."""
    try:
        said = [run.communicate(timeout=300) for run in runs]
        return [(run.returncode, *printed) for run, printed in zip(runs, said, strict=True)]
    finally:
        for run in runs:  # one that is left alone would wait for the other for ever
            run.kill()
