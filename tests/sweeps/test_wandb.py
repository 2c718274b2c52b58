"""The real `wandb sweep`, `wandb agent` and training, with a local server that speaks W&B's protocol."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, write_glue
from tests.launching import CONFIGS, clean_environment
from tests.sweeps.wandb_server import WandbServer, serve

pytestmark = pytest.mark.launch


@dataclass(frozen=True)
class Sweep:
    """A sweep that `wandb sweep` has created on the test's server, and the folder where agents run."""

    server: WandbServer
    place: Path
    environment: dict[str, str]

    def wandb(self, *words: str) -> subprocess.Popen[str]:
        """Start the `wandb` command; its output goes to `wandb.log`."""
        command = [str(Path(sys.executable).parent / "wandb"), *words]
        with (self.place / "wandb.log").open("a") as log:
            return subprocess.Popen(command, cwd=self.place, env=self.environment, stdout=log, stderr=log, text=True)

    @property
    def log(self) -> str:
        return (self.place / "wandb.log").read_text()

    def folder(self, run: str) -> Path:
        return self.place / "outputs" / "sweeps" / "s1" / run

    def record(self, run: str) -> dict[str, Any]:
        return json.loads((self.folder(run) / "run.json").read_text())

    def state(self, run: str) -> str:
        return str(self.server.runs[run]["state"])


@contextmanager
def made_sweep(place: Path, points: list[dict[str, Any]], **changes: Any) -> Iterator[Sweep]:
    """Create a packaged sweep with some keys changed; the server hands out these points."""
    (place / "work").mkdir()
    (place / "home").mkdir()
    sweep = yaml.safe_load((ROOT / "scripts" / "sweeps" / "quick.yaml").read_text())
    sweep |= {"program": str(ROOT / "scripts" / "train.py"), **changes}
    (place / "work" / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with serve(points) as server:
        environment = clean_environment(
            place / "home",
            WANDB_BASE_URL=server.url,
            WANDB_API_KEY="0" * 40,
            WANDB_ERROR_REPORTING="false",
            WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL="1",
            WANDB_AGENT_REPORT_INTERVAL="1",  # seconds between requests for the next run and for runs to stop
            PYTHONPATH=str(ROOT),
            PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin",
        )
        made = Sweep(server, place / "work", environment)
        assert made.wandb("sweep", "sweep.yaml").wait(60) == 0 and "wandb agent" in made.log, made.log
        yield made


def common(place: Path, model: Path) -> dict[str, Any]:
    """Return the flags of all runs here."""
    return {
        "model_name_or_path": str(model), "task_name": "mrpc", "data_dir": str(write_glue(place / "glue", 160)),
        "mixed_precision": "no", "num_cpu_threads": 1,
    }  # fmt: skip


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


# ── Three runs: one diverges, one is stopped by the server, one ends well ────────────────────────────────────────


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Iterator[Sweep]:
    place = tmp_path_factory.mktemp("agent")
    same = common(place, tiny_folder())
    points = [
        {**same, "method": "full", "learning_rate": 1e30, "weight_decay": 1e30, "num_warmup_steps": 0},
        {**same, "method": "bitfit", "num_train_epochs": 100_000, "logging_steps": 1},
        {**same, "strategy": {"method": "lora", "lora_r": 4, "use_dora": True}, "group_by_length": False,
         "max_train_steps": 4, "eval_steps": 2},
    ]  # fmt: skip
    with made_sweep(place, points) as sweep:
        runs = sweep.server.runs
        sweep.server.stop = lambda run: run == "run1" and any("train/loss" in line for line in runs[run]["history"])
        assert sweep.wandb("agent", "s1").wait(300) == 0, sweep.log
        # The agent does not wait for a run that it has stopped.
        wait_for(lambda: sweep.state("run1") != "running")
        yield sweep


def test_the_agent_gets_and_starts_every_run(story):
    assert story.server.given == list(story.server.runs) == ["run0", "run1", "run2"]
    assert story.server.sweep["command"][1:3] == ["accelerate", "launch"]


def test_the_values_arrive(story):
    arguments = story.record("run2")["arguments"]
    assert {name: arguments[name] for name in ("method", "lora_r", "use_dora", "group_by_length")} == {
        "method": "lora", "lora_r": 4, "use_dora": True, "group_by_length": False,
    }  # fmt: skip
    assert story.record("run1")["arguments"]["method"] == "bitfit"


def test_the_metrics_stream_in_under_the_documented_keys(story):
    history = story.server.runs["run2"]["history"]
    assert {"params/trainable", "params/total", "params/trainable_ratio"} <= set(history[0])
    evaluations = [line for line in history if "eval/accuracy" in line]
    assert [line["train/global_step"] for line in evaluations] == [2, 4]
    assert all({"eval/accuracy", "eval/best_accuracy", "eval/f1", "eval/loss"} <= set(line) for line in evaluations)
    assert any({"train/loss", "train/learning_rate", "train/grad_norm"} <= set(line) for line in history)
    steps = [line["_step"] for line in history]
    assert steps == sorted(set(steps))
    assert story.server.runs["run2"]["summary"]["eval/best_accuracy"] == evaluations[-1]["eval/best_accuracy"]


def test_a_failed_run_is_marked_failed_and_the_agent_goes_on(story):
    assert (story.state("run0"), story.server.runs["run0"]["exitcode"]) == ("failed", 1)
    assert "the loss is nan" in story.record("run0")["error"]
    assert (story.state("run2"), story.server.runs["run2"]["exitcode"]) == ("finished", 0)


def test_a_run_that_the_server_stops_ends_with_its_launcher_and_is_not_queued_again(story):
    assert story.record("run1")["status"] == "interrupted"
    assert story.state("run1") == "killed"


def test_records_and_runs_name_the_sweep(story):
    for run in story.server.given:
        assert story.record(run)["sweep"] == {"id": "s1", "trial": run}
        assert story.server.runs[run]["sweep"] == story.server.runs[run]["groupName"] == "s1"


# ── One run, preempted in the middle ─────────────────────────────────────────────────────────────────────────────

STEPS = 100


@pytest.fixture(scope="module")
def preempted(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Iterator[Sweep]:
    """The agent gets a SIGTERM, as on a cluster; a second agent starts later."""
    place = tmp_path_factory.mktemp("preempted")
    point = {
        **common(place, tiny_folder()), "strategy": {"method": "lora", "lora_r": 4}, "seed": 7,
        "max_train_steps": STEPS, "eval_steps": STEPS // 2, "logging_steps": 1,
    }  # fmt: skip
    # Starts faster than `accelerate launch`, which imports all of accelerate's other commands first.
    launcher = ["${interpreter}", "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml")]
    command = ["${env}", *launcher, "${program}", "${args}"]
    with made_sweep(place, [point], command=command) as sweep:
        first = sweep.wandb("agent", "--forward-signals", "s1")
        log = sweep.folder("run0") / "metrics.jsonl"
        wait_for(lambda: first.poll() is not None or (log.exists() and log.read_text().count("\n") >= 5))
        first.terminate()
        first.wait(60)
        wait_for(lambda: sweep.state("run0") in ("preempted", "finished"))
        assert (sweep.state("run0"), sweep.server.runs["run0"]["exitcode"]) == ("preempted", 143), sweep.log
        assert sweep.wandb("agent", "s1").wait(120) == 0, sweep.log
        yield sweep


def test_a_preempted_run_is_handed_out_again_and_goes_on_from_its_checkpoint(preempted):
    assert preempted.server.given == ["run0", "run0"]
    record = preempted.record("run0")
    assert 0 < record["resumed_at_step"] < STEPS
    assert (record["status"], preempted.state("run0")) == ("finished", "finished")


def test_no_step_of_a_preempted_run_is_logged_twice_or_lost(preempted):
    lines = (preempted.folder("run0") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
    history = preempted.server.runs["run0"]["history"]
    assert [line["_step"] for line in history] == list(range(STEPS + 1))
    assert [line["train/global_step"] for line in history] == list(range(STEPS + 1))


def test_every_life_takes_the_values_and_has_a_client_of_its_own(preempted):
    record = preempted.record("run0")
    assert {name: record["arguments"][name] for name in ("method", "lora_r", "seed")} == {
        "method": "lora", "lora_r": 4, "seed": 7,
    }  # fmt: skip
    assert list(preempted.server.runs) == ["run0"]
    assert len(list((preempted.folder("run0") / "wandb").glob("run-*-run0"))) == 2
