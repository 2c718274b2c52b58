"""A run's command, its files, and its processes; the real training is in tests/test_scripts/test_sweep.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from peftlib.files import try_lock
from peftlib.processes import _is_over
from peftlib.sweeps.config import Sweep, load_sweep
from peftlib.sweeps.run import TrialRun, end_early, in_use, reason_of, tail_of, values_in


def sweep_of(folder: Path, program: str = "train.py", command: list[str] | None = None) -> Sweep:
    content = {
        "program": program, "method": "grid", "metric": {"name": "eval/loss"}, "parameters": {"seed": {"value": 1}},
        "command": command or ["${env}", "${interpreter}", "${program}", "${args}"], "project": "a-project",
    }  # fmt: skip
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    return load_sweep(folder / "sweep.yaml", ["--seed"], lambda words: None)


def start(folder: Path, script: str) -> TrialRun:
    """Start a run of a small program that writes the files of a training."""
    opening = f"import os, pathlib, sys, time\nout = pathlib.Path({str(folder / '0')!r})\nout.mkdir(exist_ok=True)\n"
    (folder / "program.py").write_text(opening + script)
    lock = try_lock(folder / "lock")
    assert lock is not None
    run = TrialRun(sweep_of(folder, str(folder / "program.py")), {"seed": 1}, folder / "0", lock, ("s-1", 4), 3)
    lock.close()  # as if the sweep had died: only the run's processes hold it
    return run


def ended(run: TrialRun, seconds: float = 30) -> int:
    deadline = time.monotonic() + seconds
    while (status := run.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return status


def test_a_run_is_told_where_it_belongs_and_holds_its_trial(tmp_path):
    names = ("PEFTLIB_SWEEP_ID", "PEFTLIB_TRIAL", "PEFTLIB_RUNS_AT_ONCE", "WANDB_PROJECT")
    run = start(
        tmp_path,
        f"print(*[os.environ[name] for name in {names}], sys.argv[1:], flush=True)\n"
        "sys.stdin.read()\ntime.sleep(0.5)\nsys.exit(3)",
    )
    assert try_lock(tmp_path / "lock") is None
    assert ended(run) == 3
    assert try_lock(tmp_path / "lock") is not None
    words = ["--seed=1", f"--output_dir={tmp_path / '0'}", "--resume_from_checkpoint=auto"]
    assert tail_of(tmp_path / "0") == f"s-1 4 3 a-project {words}"
    assert reason_of(tmp_path / "0", 3) == "exit status 3"


def test_metrics_are_read_while_they_are_written_whole_lines_only(tmp_path):
    (tmp_path / "0").mkdir()
    path = tmp_path / "0" / "metrics.jsonl"
    lines = ['{"step": 1, "eval/loss": 0.5}', '{"step": 2, "eval/loss": null}', '{"step": 3, "other": 1}']
    path.write_text("\n".join([*lines, '{"step": 4, "eval/loss"']))
    run = start(tmp_path, "time.sleep(20)")
    assert run.poll() is None and run.values == [0.5] and run.steps == 3
    with path.open("a") as file:
        file.write(': 0.75}\n{"step": 5, "eval/loss": 1}\n')
    run.poll()
    assert run.values == [0.5, 0.75, 1.0] and run.steps == 5
    path.write_text('{"step": 1, "eval/loss": 0.25}\n')  # resumed from an earlier checkpoint
    run.poll()
    assert run.values == [0.25]
    run.stop()
    assert ended(run) == -signal.SIGTERM
    assert values_in(tmp_path / "0") == {"step": [1.0], "eval/loss": [0.25]}


def test_a_run_lasts_as_long_as_any_process_writes_into_its_folder(tmp_path):
    script = """
import fcntl, signal, subprocess
if os.fork():
    time.sleep(30)
lock = open(out / ".lock", "a"); fcntl.flock(lock, fcntl.LOCK_EX)
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.7), (out / "saved").touch(), sys.exit(143)))
(out / "ready").touch()
time.sleep(30)
"""
    run = start(tmp_path, script)
    while not (tmp_path / "0" / "ready").exists():
        time.sleep(0.02)
    assert in_use(tmp_path / "0")
    run.stop()
    assert ended(run) == -signal.SIGTERM and (tmp_path / "0" / "saved").exists()


def test_the_reason_is_the_run_s_own_word(tmp_path):
    (tmp_path / "0.log").write_text("noise\nerror: --data_dir x: is missing\nTraceback\n")
    assert reason_of(tmp_path / "0", 1) == "--data_dir x: is missing (exit status 1)"
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "run.json").write_text('{"status": "failed", "error": "the loss is nan"}')
    assert reason_of(tmp_path / "0", 1) == "the loss is nan (exit status 1)"
    (tmp_path / "0" / "run.json").write_text('{"status": "running"}')
    (tmp_path / "0.log").write_text("")
    assert reason_of(tmp_path / "0", -9) == "killed by SIGKILL"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize(("sweep", "lives"), [("s1", False), ("", True)])
def test_inside_a_sweep_a_training_ends_with_its_launcher(tmp_path, sweep, lives):
    inner = (
        "import time; from peftlib.processes import end_with_launcher\n"
        "end_with_launcher(); print('ready', flush=True); time.sleep(60)"
    )
    outer = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {inner!r}]); print(child.pid, flush=True); child.wait()"
    )
    environment = {**os.environ, "WANDB_SWEEP_ID": sweep}
    launcher = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True, env=environment)
    assert launcher.stdout is not None
    child = int(launcher.stdout.readline())
    assert launcher.stdout.readline() == "ready\n"
    launcher.kill()
    launcher.wait()
    end = time.monotonic() + (0.5 if lives else 30)  # the kernel's signal may come late on a busy machine
    while (alive := is_alive(child)) and time.monotonic() < end:
        time.sleep(0.05)
    if alive:
        os.kill(child, signal.SIGKILL)
    assert alive == lives


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("sweep", ["s1", ""])
def test_a_training_whose_launcher_has_died_before_it_was_up_does_not_begin(tmp_path, sweep):
    """Nobody would wait for it, while its trial is free for the next call."""
    inner = (
        "import os, sys, time; from pathlib import Path; from peftlib.processes import end_with_launcher\n"
        "while os.getppid() == int(sys.argv[1]): time.sleep(0.01)\n"
        "end_with_launcher(); Path('began').touch()"
    )
    outer = (
        "import os, subprocess, sys\n"
        f"print(subprocess.Popen([sys.executable, '-c', {inner!r}, str(os.getpid())]).pid, flush=True)"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True,
        env={**os.environ, "PEFTLIB_SWEEP_ID": sweep, "WANDB_SWEEP_ID": ""},
    )  # fmt: skip
    child = int(launcher.communicate()[0])
    end = time.monotonic() + 30
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(child) and (tmp_path / "began").exists() == (not sweep)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("status", "error"), [("interrupted", "stopped early by the sweep, after 2 evaluations"),
                                               ("failed", "the loss is nan")])  # fmt: skip
def test_a_run_that_was_stopped_early_says_so_unless_it_had_failed(tmp_path, status, error):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"status": status, "error": "the loss is nan"}))
    end_early(tmp_path, 2)
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": status, "error": error}
    assert not (tmp_path / "checkpoints").exists()


def test_a_process_that_cannot_be_seen_is_not_taken_for_one_that_is_over():
    done = subprocess.Popen([sys.executable, "-c", ""])
    while is_alive(done.pid):
        time.sleep(0.01)
    assert sys.platform != "linux" or _is_over(done.pid), "a zombie"
    done.wait()
    assert _is_over(done.pid)
    assert not any(map(_is_over, (0, 1, os.getpid())))
