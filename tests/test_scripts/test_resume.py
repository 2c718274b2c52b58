"""The real command, stopped by signals and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from peftlib.files import write_json
from tests.conftest import ROOT
from tests.launching import (
    CONFIGS,
    clean_environment,
    run_in_two,
    run_python,
    run_script,
    start_launcher,
    start_python,
    start_script,
    start_two,
)

pytestmark = pytest.mark.launch
TRAIN = ROOT / "scripts" / "train.py"
WATCHED_TRAIN = Path(__file__).with_name("status_of_train.py")
PATIENCE = 300  # seconds: a busy machine is no failure, a run that hangs is


@pytest.fixture
def flags(tiny_folder, glue_folder) -> list[object]:
    return [
        "--model_name_or_path", tiny_folder("bert"), "--task_name", "sst2", "--data_dir", glue_folder(train=400),
        "--num_train_epochs", 40, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2,
        "--logging_steps", 5, "--mixed_precision", "no", "--num_cpu_threads", 1, "--dropout", 0.1,
    ]  # fmt: skip


def wait_for_steps(folder: Path, count: int) -> None:
    """Until so many updates are logged."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        log = folder / "metrics.jsonl"
        if log.exists() and len(log.read_text().splitlines()) * 5 >= count:
            return
        time.sleep(0.05)
    raise TimeoutError(folder)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines]


def curves(folder: Path) -> list[dict[str, float]]:
    """All that is logged, without times and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    beside = ("perf/", "train/samples_per_second")
    return [{name: line[name] for name in line if not name.startswith(beside)} for line in lines]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


def statuses_of_two(folder: Path) -> list[str]:
    """What two processes of WATCHED_TRAIN ended with; a launcher's own status hides it."""
    files = [folder / f"status{rank}" for rank in (0, 1)]
    return [file.read_text() if file.exists() else "none" for file in files]


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0)])
def test_a_signal_ends_the_run_with_a_checkpoint_and_its_own_status(tmp_path, flags, number, expected):
    folder = tmp_path / "run"
    run = start_script(TRAIN, *flags, "--output_dir", folder, cwd=tmp_path)
    wait_for_steps(folder, 20)
    run.send_signal(number)
    _, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == expected, errors
    assert f"stopped by {number.name}" in errors and "Traceback" not in errors
    assert len(list((folder / "checkpoints").glob("step_*"))) == 1
    assert status(folder) == "interrupted"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
def test_a_signal_to_the_whole_group_reaches_data_loader_workers_too(tmp_path, flags, number, expected):
    """As `timeout` and SLURM send it. A worker that died of it would end the run as failed, without a checkpoint."""
    folder = tmp_path / "run"
    run = start_script(TRAIN, *flags, "--dataloader_num_workers", 2, "--output_dir", folder, cwd=tmp_path)
    wait_for_steps(folder, 20)
    workers = psutil.Process(run.pid).children()
    assert len(workers) >= 2
    for worker in workers:
        worker.send_signal(number)
    time.sleep(0.5)  # in which torch would notice a dead worker
    assert run.poll() is None
    run.send_signal(number)
    _, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == expected and f"stopped by {number.name}" in errors, errors
    assert len(list((folder / "checkpoints").glob("step_*"))) == 1
    assert not any(worker.is_running() for worker in workers)


def test_a_signal_ends_a_long_evaluation_which_is_made_by_the_next_life(tmp_path, flags, glue_folder):
    glue_folder(train=400, dev=250)
    slow = [*flags, "--max_train_steps", 20, "--eval_steps", 10, "--per_device_eval_batch_size", 1]
    slow += ["--checkpointing_steps", 10]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = start_script(TRAIN, *slow, "--output_dir", parts, cwd=tmp_path)
    wait_for(parts / "checkpoints" / "step_00000010")  # which is there before the evaluation begins
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=PATIENCE)
    assert first.returncode == 143 and "stopped by SIGTERM after step 10" in errors
    assert len(losses(parts)) == 1, "the line of update 10 would have come when the evaluation ended"
    assert json.loads((parts / "checkpoints" / "step_00000010" / "state.json").read_text())["due"] is not None

    for folder, more in ((parts, ["--resume_from_checkpoint", "auto"]), (whole, [])):
        done = run_script(TRAIN, *slow, "--output_dir", folder, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    left, right = (load_file(folder / "adapter_model.safetensors") for folder in (whole, parts))
    assert all(left[key].tobytes() == right[key].tobytes() for key in left)
    left, right = (curves(folder) for folder in (whole, parts))
    assert left == right and sum("eval/accuracy" in line for line in left) == 2


def test_stopped_in_two_processes_and_resumed_equals_uninterrupted(tmp_path, flags):
    short = [*flags, "--max_train_steps", 150]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_in_two(TRAIN, *short, "--output_dir", whole, cwd=tmp_path)
    run = start_launcher("multi_cpu", WATCHED_TRAIN, TRAIN, tmp_path, *short, "--output_dir", parts, cwd=tmp_path)
    wait_for_steps(parts, 30)
    run.send_signal(signal.SIGINT)  # to the launcher, which passes it on
    _, errors = run.communicate(timeout=PATIENCE)
    assert "stopped by SIGINT" in errors and "interrupted twice" not in errors
    assert run.returncode != 0 and status(parts) == "interrupted"
    assert statuses_of_two(tmp_path) == ["130", "130"]
    run_in_two(TRAIN, *short, "--output_dir", parts, "--resume_from_checkpoint", "auto", cwd=tmp_path)
    assert 30 <= json.loads((parts / "run.json").read_text())["resumed_at_step"] < 150
    left, right = (load_file(folder / "adapter_model.safetensors") for folder in (whole, parts))
    assert all(left[key].tobytes() == right[key].tobytes() for key in left)
    left, right = (losses(folder) for folder in (whole, parts))
    assert left == right and len(left) == 30


def test_a_run_goes_on_with_more_or_fewer_processes(tmp_path, flags):
    """Every update sees the examples that it would have seen; without dropout, only the rounding of sums differs."""
    alike = [*flags[:6], "--mixed_precision", "no", "--num_cpu_threads", 1, "--logging_steps", 1, "--eval_steps", 10]
    alike += ["--checkpointing_steps", 5, "--max_train_steps", 20, "--per_device_train_batch_size", 4]
    one, two = ([*alike, "--gradient_accumulation_steps", steps] for steps in (2, 1))
    whole, more, fewer = (tmp_path / name for name in ("whole", "more", "fewer"))
    assert run_script(TRAIN, *one, "--output_dir", whole, cwd=tmp_path).returncode == 0
    from_five = ["--resume_from_checkpoint", whole / "checkpoints" / "step_00000005"]
    run_in_two(TRAIN, *two, "--output_dir", more, *from_five, cwd=tmp_path)
    from_ten = ["--resume_from_checkpoint", more / "checkpoints" / "step_00000010"]
    done = run_script(TRAIN, *one, "--output_dir", fewer, *from_ten, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: updates see the same examples as before, cut in another way" in done.stdout
    expected = losses(whole)
    assert len(expected) == 20 and len(set(expected)) == 20
    assert losses(more) == pytest.approx(expected[5:], rel=1e-4)
    assert losses(fewer) == pytest.approx(expected[9:], rel=1e-4), "its evaluation of update 10 is still due"
    records = [json.loads((folder / "run.json").read_text()) for folder in (more, fewer)]
    assert [record["processes"] for record in records] == [2, 1]
    cuts = [(cut["until"], cut["micro_batch_size"], cut["processes"]) for cut in records[1]["earlier_cuts"]]
    assert cuts == [(5, 4, 1), (10, 4, 2)] and len(records[0]["earlier_cuts"]) == 1
    kept = (whole / "run.json").read_bytes(), losses(whole)
    done = run_script(TRAIN, *one, "--output_dir", whole, *from_ten, cwd=tmp_path)
    assert done.returncode == 2 and "step_00000010 is not of it; choose another folder" in done.stderr
    assert kept == ((whole / "run.json").read_bytes(), losses(whole))
    done = run_script(TRAIN, *one, "--output_dir", more, *from_five, "--overwrite_output_dir", cwd=tmp_path)
    assert done.returncode == 0 and losses(more) == expected[5:]
    done = run_script(TRAIN, *two, "--output_dir", tmp_path / "half", *from_five, cwd=tmp_path)
    assert done.returncode == 2
    assert "the effective batch was 8 (4 × 2 on 1 process), is 4 (4 × 1 on 1 process): here" in done.stderr
    # What is finished was made as its record says, whatever a later call asks for.
    done = run_script(TRAIN, *alike, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4,
                      "--output_dir", whole, "--resume_from_checkpoint", "auto", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0 and "cut in another way" not in done.stdout
    assert "earlier_cuts" not in json.loads((whole / "run.json").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_alone_leaves_a_checkpoint_and_nobody_behind(tmp_path, flags, number):
    folder = tmp_path / "run"
    words = ["-m", "accelerate.commands.launch", "-q", "--config_file", CONFIGS / "cpu.yaml"]
    launcher = start_python(*words, TRAIN, *flags, "--output_dir", folder, cwd=tmp_path)
    wait_for_steps(folder, 10)
    launcher.send_signal(number)
    launcher.communicate(timeout=PATIENCE)  # its pipes end with the last process that holds them
    assert status(folder) == "interrupted"
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    assert int(checkpoint.name[5:]) >= 10


def test_two_processes_end_alike_when_one_got_sigusr1(tmp_path, flags):
    folder = tmp_path / "run"
    both = start_two(TRAIN, *flags, "--output_dir", folder, cwd=tmp_path)
    try:
        wait_for_steps(folder, 10)
        both[1].send_signal(signal.SIGUSR1)
        said = [run.communicate(timeout=PATIENCE) for run in both]
    finally:
        for run in both:  # one that is left alone would wait for the other for ever
            run.kill()
    assert [run.returncode for run in both] == [0, 0], said
    assert status(folder) == "interrupted"
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    assert int(checkpoint.name[5:]) >= 10


def test_two_processes_end_alike_when_their_launcher_got_sigusr1(tmp_path, flags):
    """Its own status hides theirs; it dies of SIGUSR1, which reaches the training as the SIGTERM of that."""
    folder = tmp_path / "run"
    words = ["-m", "accelerate.commands.launch", "-q", "--config_file", CONFIGS / "multi_cpu.yaml"]
    words += ["--main_process_port", 0, WATCHED_TRAIN, TRAIN, tmp_path]
    launcher = start_python(*words, *flags, "--output_dir", folder, cwd=tmp_path)
    wait_for_steps(folder, 10)
    assert len(psutil.Process(launcher.pid).children(recursive=True)) == 2
    launcher.send_signal(signal.SIGUSR1)
    printed = launcher.communicate(timeout=PATIENCE)  # waits for them too, whose output it is
    assert statuses_of_two(tmp_path) == ["143", "143"], printed
    assert status(folder) == "interrupted"
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    assert int(checkpoint.name[5:]) >= 10


def test_the_second_run_into_a_folder_is_refused(tmp_path, flags):
    folder = tmp_path / "run"
    first = start_script(TRAIN, *flags, "--output_dir", folder, cwd=tmp_path)
    try:
        wait_for_steps(folder, 5)
        second = run_script(TRAIN, *flags, "--output_dir", folder, "--overwrite_output_dir", cwd=tmp_path)
        assert second.returncode == 2
        assert "another run is writing there" in second.stderr
    finally:
        first.kill()
        first.communicate(timeout=PATIENCE)


def test_resuming_another_run_is_refused_with_the_differences(tmp_path, flags):
    folder = tmp_path / "run"
    short = [*flags, "--max_train_steps", 4, "--checkpointing_steps", 2, "--output_dir", folder]
    assert run_script(TRAIN, *short, cwd=tmp_path).returncode == 0
    other = run_script(TRAIN, *short, "--seed", 7, "--resume_from_checkpoint", "auto", cwd=tmp_path)
    assert other.returncode == 2
    assert "--seed was 42, is 7" in other.stderr and len(other.stderr.splitlines()) == 1
    assert status(folder) == "finished"


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path, flags):
    folder = tmp_path / "run"
    watched = [*flags, "--report_to", "wandb", "--output_dir", folder]
    run = start_script(TRAIN, *watched, cwd=tmp_path)
    wait_for_steps(folder, 10)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=PATIENCE)
    assert len(losses(folder)) < 12, "the run must not have come to step 60 by itself"
    (first,) = (path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*"))
    finish = [*watched, "--max_train_steps", 60, "--extend_training", "--resume_from_checkpoint", "auto"]
    again = run_script(TRAIN, *finish, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")} == {first}
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 60
    assert 10 <= json.loads((folder / "run.json").read_text())["resumed_at_step"] < 60


def test_a_run_outlives_wandb(tmp_path, flags):
    """Its client hooks into imports, and the first evaluation imports: a dead service would have broken that."""
    folder = tmp_path / "run"
    watched = ["--report_to", "wandb", "--max_train_steps", 110, "--eval_steps", 105]
    run = start_script(TRAIN, *flags, *watched, "--output_dir", folder, cwd=tmp_path)
    wait_for_steps(folder, 10)
    services = psutil.Process(run.pid).children(recursive=True)
    assert any("wandb" in word for service in services for word in service.cmdline()[:1])
    for service in services:
        service.kill()
    output, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, errors
    assert "warning: a tracker failed, the run continues without it" in output and "Traceback" not in errors
    assert status(folder) == "finished" and len(losses(folder)) == 22


def test_chaos_in_short(tmp_path, flags):
    short = [*flags[:6], "--num_train_epochs", 2, "--per_device_train_batch_size", 4, "--max_train_samples", 160]
    done = run_python(ROOT / "tests" / "chaos.py", "--kills", 2, "--seed", 9, "--", *short, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "adapter: bit-equal; losses: equal; orphans: 0; the last life went on from step" in done.stdout


def test_the_slurm_script_requeues_a_run_that_was_stopped_and_only_that(tmp_path, flags):
    (tmp_path / "bin").mkdir()
    requeue = tmp_path / "bin" / "scontrol"
    requeue.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    requeue.chmod(0o755)
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    environment = clean_environment(home, SLURM_JOB_ID="7", PYTHONPATH=str(ROOT))
    environment["PATH"] = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{environment['PATH']}"
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    words = ["bash", "scripts/slurm/train.sbatch", *map(str, flags)]
    folder = tmp_path / "outputs" / "slurm-7"

    def start_job(*more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*words, *more], cwd=tmp_path, env=environment, start_new_session=True)

    job = start_job()
    wait_for_steps(folder, 10)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(PATIENCE) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert status(folder) == "interrupted"
    # A life that ends at its flags leaves run.json as it was; the same flags would fail for ever.
    assert start_job("--seed", "7").wait(PATIENCE) == 2
    assert status(folder) == "interrupted"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert start_job("--max_train_steps", "100", "--extend_training").wait(PATIENCE) == 0
    assert status(folder) == "finished"
    assert json.loads((folder / "run.json").read_text())["resumed_at_step"] >= 10
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("ended", "recorded", "requeued"),
    [
        (0, "finished", False), (0, "interrupted", True), (0, None, False),  # as of --help
        (138, None, True), (138, "finished", False),  # SIGUSR1 before the run could catch it
        (143, "interrupted", True), (143, "finished", False),
        (1, "failed", False), (2, "interrupted", False), (130, "interrupted", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("job", "runs"), [("train", "python"), ("train_multinode", "srun")])
def test_what_the_slurm_scripts_make_of_a_status(tmp_path, ended, recorded, requeued, job, runs):
    said = '[ "$1" = show ] && echo here || echo "$@" > requeued'
    for name, line in ((runs, f"exit {ended}"), ("scontrol", said)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    if recorded is not None:
        (tmp_path / "outputs" / "slurm-7").mkdir(parents=True)
        write_json(tmp_path / "outputs" / "slurm-7" / "run.json", {"status": recorded})
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here"}
    done = subprocess.run(["bash", ROOT / "scripts" / "slurm" / f"{job}.sbatch"], cwd=tmp_path, env=environment)
    assert done.returncode == ended
    assert (tmp_path / "requeued").exists() is requeued
