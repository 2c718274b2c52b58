"""`scripts/sweep.py` as its users start it: killed, continued, crashed into, and given wrong files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial

from tests.conftest import ROOT, write_glue
from tests.launching import run_python, run_script, start_script

SCRIPT = ROOT / "scripts" / "sweep.py"
pytestmark = pytest.mark.launch


def write_sweep(path: Path, **changes: Any) -> Path:
    sweep = {
        "program": str(ROOT / "scripts" / "train.py"), "name": "s", "method": "grid",
        "metric": {"name": "eval/best_accuracy", "goal": "maximize"},
        "parameters": {"method": {"values": ["bitfit", "lora"]}},
        # Quicker to start than `accelerate launch`, which imports every other command of accelerate's first.
        "command": ["${env}", "${interpreter}", "-m", "accelerate.commands.launch", "${program}", "${args}"],
    }  # fmt: skip
    path.write_text(yaml.safe_dump({**sweep, **changes}))
    return path


def trials(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}").trials


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_sweep_killed_in_the_middle_goes_on(tmp_path, tiny_folder):
    work = tmp_path / "work"
    work.mkdir()
    parameters = {
        "model_name_or_path": {"value": str(tiny_folder())},
        "task_name": {"value": "mrpc"},
        "mixed_precision": {"value": "no"},
        "num_cpu_threads": {"value": 1},
        "logging_steps": {"value": 1},
        "eval_steps": {"value": 40},
        # The first is short; the third fails before it trains.
        "strategy": {
            "values": [
                {"method": "bitfit", "data_dir": str(write_glue(tmp_path / "glue", 64)), "num_train_epochs": 1},
                {"method": "lora", "data_dir": str(tmp_path / "glue"), "use_dora": False, "num_train_epochs": 40},
                {"method": "lora", "data_dir": str(tmp_path / "nowhere")},
            ]
        },
    }
    file = write_sweep(work / "sweep.yaml", parameters=parameters)
    folder = work / "outputs" / "sweeps" / "s"
    first = start_script(SCRIPT, file, cwd=work, PYTHONPATH=str(ROOT))
    # One after the other: when the second trains, the first is over.
    log = folder / "runs" / "0001" / "metrics.jsonl"
    wait_for(lambda: first.poll() is not None or (log.exists() and log.read_text().count("\n") > 2))
    first.kill()
    printed = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL, printed
    before = trials(folder)
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]
    written = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("0000*/*")}

    done = run_script(SCRIPT, file, "--workers", 2, cwd=work, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    after = trials(folder)
    assert [trial.state.name for trial in after] == ["COMPLETE", "COMPLETE", "FAIL"]
    # What was finished is not touched again.
    assert "run 0" not in done.stdout and after[0].datetime_complete == before[0].datetime_complete
    assert written and {path: path.stat().st_mtime_ns for path in written} == written
    points = [trial.user_attrs["values"]["strategy"] for trial in after]
    assert points == parameters["strategy"]["values"]
    # What had begun went on from the checkpoint that it wrote when the sweep was killed.
    assert "run 1 resumed" in done.stdout
    record = json.loads((folder / "runs" / "0001" / "run.json").read_text())
    assert record["resumed_at_step"] > 0 and record["status"] == "finished"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 161))  # 40 epochs of 4 updates, each once
    # Every run says where it belongs; crashes are told with their reason and the end of their log.
    assert record["sweep"]["trial"] == "1" and record["sweep"]["id"].startswith("s-")
    assert "nowhere" in after[2].user_attrs["error"] and "(exit status 1)" in after[2].user_attrs["error"]
    assert "error: --data_dir" in after[2].user_attrs["log_tail"]
    # The ranking, and where the best adapter lies.
    best = done.stdout.splitlines()[-1]
    assert (
        best.startswith("best: eval/best_accuracy")
        and (work / best.split(" in ")[1] / "adapter_model.safetensors").exists()
    )

    again = run_script(SCRIPT, file, cwd=work, PYTHONPATH=str(ROOT))
    assert again.returncode == 0 and "started" not in again.stdout and "3 runs have already ended" in again.stdout
    assert [trial.datetime_complete for trial in trials(folder)] == [trial.datetime_complete for trial in after]


def test_a_dry_run_prints_the_runs_and_their_number(tmp_path):
    done = run_python(SCRIPT, ROOT / "scripts" / "sweeps" / "report_grid.yaml", "--dry_run", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] == "8 runs" and len(lines) == 9
    assert "--lora_r=32 --task_name=sst2" in lines[7] and "--train_head=False" in lines[0]
    assert not (tmp_path / "outputs").exists()


def test_a_dry_run_of_a_search_says_where_most_values_lie(tmp_path):
    sweep = {
        "program": str(ROOT / "scripts" / "train.py"), "method": "random", "run_cap": 3,
        "metric": {"name": "eval/accuracy", "goal": "maximize"},
        "parameters": {  # W&B's exponents of e, and not what one would think
            "learning_rate": {"distribution": "log_uniform", "min": 1.0e-4, "max": 1.0e-2},
            "seed": {"min": 1, "max": 9},
        },
    }  # fmt: skip
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(sweep))
    done = run_python(SCRIPT, tmp_path / "search.yaml", "--dry_run", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "learning_rate: log_uniform, max 0.01, min 0.0001; nine values in ten from 1.001 to 1.01",
        "seed: int_uniform, max 9, min 1",
        "random: 3 runs",
    ]


def test_a_dry_run_finds_out_what_could_not_be_started(tmp_path):
    file = write_sweep(tmp_path / "s.yaml", program="nope.py")
    done = run_python(SCRIPT, file, "--dry_run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: program: nope.py is neither in")


def test_a_dry_run_into_head_says_nothing_else(tmp_path):
    words = [sys.executable, str(SCRIPT), str(ROOT / "scripts" / "sweeps" / "rank_ablation.yaml"), "--dry_run"]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    assert run.stderr.read() == "" and run.wait(60) == -signal.SIGPIPE


def test_a_sweep_whose_program_is_not_here_leaves_no_folder(tmp_path):
    done = run_script(SCRIPT, write_sweep(tmp_path / "s.yaml", program="elsewhere.py"), cwd=tmp_path)
    assert done.returncode == 2 and "error: program: elsewhere.py is neither in" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_command_that_is_not_here_leaves_no_folder(tmp_path):
    command = ["nosuchlauncher", "${program}", "${args}"]
    done = run_script(SCRIPT, write_sweep(tmp_path / "s.yaml", command=command), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "error: command: nosuchlauncher cannot be found" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_the_shipped_rate_search_runs(tmp_path, tiny_folder):
    """With hyperband and a Bayesian search, in small: one run on a tiny model."""
    content = yaml.safe_load((ROOT / "scripts" / "sweeps" / "rate_search.yaml").read_text())
    small = {"model_name_or_path": str(tiny_folder()), "max_train_samples": 64, "max_eval_samples": 32, "eval_steps": 4}
    small |= {"num_cpu_threads": 1}
    parameters = {**content["parameters"], **{name: {"value": value} for name, value in small.items()}}
    changes = {**content, "program": str(ROOT / "scripts" / "train.py"), "parameters": parameters, "run_cap": 1}
    changes["command"] = ["${env}", "${interpreter}", "${program}", "${args}"]  # the launcher is not what this is about
    work = tmp_path / "work"
    work.mkdir()
    done = run_script(SCRIPT, write_sweep(work / "s.yaml", **changes), cwd=work, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    finished = trials(work / "outputs" / "sweeps" / "rate-search")
    assert [trial.state.name for trial in finished] == ["COMPLETE"]
    assert 1e-4 <= finished[0].user_attrs["values"]["learning_rate"] <= 2e-2
    assert finished[0].intermediate_values, "hyperband has heard of its evaluations"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methd": "grid"}, "methd: unknown key; did you mean method?"),
        (
            {
                "parameters": {
                    "method": {"value": "peft"},
                    "peft_type": {"value": "prefix_tuning"},
                    "gradient_checkpointing": {"value": True},
                }
            },
            "run 0: --gradient_checkpointing: loses the keys and values of PEFT prefix_tuning; leave it out",
        ),
        ({"parameters": {"lora_rank": {"value": 8}}}, "parameters.lora_rank: --lora_rank: no such flag; use --lora_r"),
    ],
)
def test_a_wrong_file_is_one_line_and_starts_nothing(tmp_path, changes, message):
    file = write_sweep(tmp_path / "wrong.yaml", **changes)
    done = run_script(SCRIPT, file, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and f"error: {file}: {message}" in done.stderr
    assert not (tmp_path / "outputs").exists()
