"""The real commands on two nodes, which share no file, and SLURM's job for them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launching import clean_environment, ends_of, start_two_nodes
from tests.test_scripts.test_resume import PATIENCE, status, wait_for_steps

pytestmark = pytest.mark.launch
TRAIN, PREDICT = ROOT / "scripts" / "train.py", ROOT / "scripts" / "predict.py"
SLURM = ROOT / "scripts" / "slurm"
THREAD = {"OMP_NUM_THREADS": "1"}  # as launchers set it; accelerate warns where nobody does


@pytest.fixture
def nodes(tmp_path) -> tuple[Path, Path]:
    """The working directory on each, with a home beside it."""
    places = tmp_path / "a" / "work", tmp_path / "b" / "work"
    for place in places:
        place.mkdir(parents=True)
    return places


@pytest.fixture
def flags(tiny_folder, glue_folder) -> list[object]:
    return [
        "--model_name_or_path", tiny_folder("bert"), "--task_name", "sst2", "--data_dir", glue_folder(train=80),
        "--per_device_train_batch_size", 4, "--logging_steps", 5, "--mixed_precision", "no", "--num_cpu_threads", 1,
        "--dropout", 0.1,
    ]  # fmt: skip


def test_a_checkpoint_of_the_first_node_is_enough_for_both(nodes, flags):
    words = [*flags, "--max_train_steps", 12, "--checkpointing_steps", 5, "--output_dir", "run"]
    weights = []
    (nodes[1] / "run").mkdir()
    (nodes[1] / "run" / "notes.txt").write_text("of somebody else")  # where this node would write, if it wrote
    for more in ([], ["--resume_from_checkpoint", "auto"]):
        ends = ends_of(start_two_nodes(TRAIN, *words, *more, cwds=nodes, **THREAD))
        assert [code for code, *_ in ends] == [0, 0], ends
        weights.append((nodes[0] / "run" / "adapter_model.safetensors").read_bytes())
        shutil.rmtree(nodes[0] / "run" / "checkpoints" / "step_00000012")
    assert weights[0] == weights[1]
    assert json.loads((nodes[0] / "run" / "run.json").read_text())["resumed_at_step"] == 10
    assert [path.name for path in nodes[1].rglob("*")] == ["run", "notes.txt"]
    ends = ends_of(start_two_nodes(PREDICT, "run", "--split", "validation", cwds=nodes, **THREAD))
    line = "run: contains no run (no run.json in it); name a finished run's folder\n"
    assert [code for code, *_ in ends] == [2, 2]
    assert all(errors.startswith("error: in process 1 on ") and errors.endswith(line) for _, _, errors in ends), ends


def test_a_file_that_one_node_lacks_ends_both_with_its_line(nodes, tiny_folder):
    for name in ("train.csv", "dev.csv"):
        rows = "".join(f"a {kind} text {number},{kind}\n" for number in range(9) for kind in ("good", "bad"))
        (nodes[0] / name).write_text(f"text,label\n{rows}")
    words = ["--model_name_or_path", tiny_folder("bert"), "--train_file", "train.csv", "--validation_file", "dev.csv"]
    ends = ends_of(start_two_nodes(TRAIN, *words, cwds=nodes, **THREAD))
    assert [code for code, *_ in ends] == [2, 2]
    for _, _, errors in ends:
        assert errors.startswith("error: in process 1 on ") and errors.count("\n") == 1, errors
        assert "--train_file train.csv: cannot be read" in errors


def test_a_flag_that_one_node_cannot_parse_ends_both(nodes, flags):
    first, second = start_two_nodes(TRAIN, *flags, cwds=nodes, of_second=("--config", "absent.yaml"), **THREAD)
    for code, _, errors in ends_of([first, second]):
        assert code == 2, errors
        assert "--config absent.yaml: " in errors and errors.count("\n") == 1


SRUN = """
import os, signal, subprocess, sys
command = sys.argv[sys.argv.index("bash"):]
tasks = [
    subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"})
    for rank in range(2)
]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""


def test_the_slurm_job_of_two_nodes_passes_the_signal_on_and_is_requeued(tmp_path, flags):
    commands = tmp_path / "bin"
    commands.mkdir()
    hosts = f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/requeued'
    (tmp_path / "srun.py").write_text(SRUN)
    for name, line in (
        ("scontrol", hosts),
        ("python", f'exec {sys.executable} "$@"'),
        ("srun", f'exec {sys.executable} {tmp_path}/srun.py "$@"'),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    home = tmp_path / "home"
    home.mkdir()
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS_PER_NODE": "1"}
    environment = clean_environment(home, PYTHONPATH=str(ROOT), **slurm)
    environment["PATH"] = f"{commands}:{environment['PATH']}"
    words = ["bash", SLURM / "train_multinode.sbatch", *map(str, flags), "--num_train_epochs", "400"]
    folder = tmp_path / "outputs" / f"slurm-{os.getpid()}"
    job = subprocess.Popen(words, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        wait_for_steps(folder, 5)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(PATIENCE) == 0
    finally:
        job.kill()
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    assert status(folder) == "interrupted"
    assert json.loads((folder / "run.json").read_text())["processes"] == 2
