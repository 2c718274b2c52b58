"""The real `wandb sweep` and `wandb agent`, the real training, and a server of W&B's protocol on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, write_glue
from tests.launching import clean_environment
from tests.sweeps.wandb_server import WandbServer, serve

pytestmark = pytest.mark.launch


@dataclass(frozen=True)
class Story:
    """What happened: the agent's output, what the server was told, and the runs' own records."""

    agent: subprocess.CompletedProcess[str]
    server: WandbServer
    place: Path

    def record(self, run: str) -> dict[str, Any]:
        return json.loads((self.place / "outputs" / "sweeps" / "s1" / run / "run.json").read_text())


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Iterator[Story]:
    """Three runs: one diverges, one is stopped by the server, one ends well."""
    place = tmp_path_factory.mktemp("agent") / "work"
    place.mkdir()
    home = place.parent / "home"
    home.mkdir()
    common = {
        "model_name_or_path": str(tiny_folder()), "task_name": "mrpc", "data_dir": str(write_glue(place / "glue")),
        "mixed_precision": "no", "num_cpu_threads": 1,
    }  # fmt: skip
    long = {"num_train_epochs": 100_000, "logging_steps": 1}
    points = [
        {**common, "method": "full", "learning_rate": 1e30, "weight_decay": 1e30, "num_warmup_steps": 0},
        {**common, **long, "method": "bitfit"},
        {**common, "strategy": {"method": "lora", "lora_r": 4, "use_dora": True}, "group_by_length": False,
         "max_train_steps": 4, "eval_steps": 2},
    ]  # fmt: skip
    sweep = yaml.safe_load((ROOT / "scripts" / "sweeps" / "quick.yaml").read_text())
    (place / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "program": str(ROOT / "scripts" / "train.py")}))
    tools = Path(sys.executable).parent
    with serve(points) as server:
        server.stop = lambda run: run == "run1" and any("train/loss" in line for line in server.runs[run]["history"])
        environment = clean_environment(
            home,
            WANDB_BASE_URL=server.url,
            WANDB_API_KEY="0" * 40,
            WANDB_ERROR_REPORTING="false",
            WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL="1",
            PYTHONPATH=str(ROOT),
            PATH=f"{tools}:/usr/bin:/bin",
        )

        def wandb(*words: str) -> subprocess.CompletedProcess[str]:
            command = [str(tools / "wandb"), *words]
            return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)

        made = wandb("sweep", "sweep.yaml")
        assert made.returncode == 0 and "wandb agent" in made.stderr, made.stderr
        yield Story(wandb("agent", "s1"), server, place)


def test_the_agent_gets_and_starts_every_run(story):
    assert story.agent.returncode == 0, story.agent.stderr[-3000:]
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
    assert [story.server.runs[run]["exitcode"] for run in ("run0", "run2")] == [1, 0]
    assert "the loss is nan" in story.record("run0")["error"]


def test_a_run_that_the_server_stops_ends_with_its_launcher(story):
    # The agent does not wait for the run that it has told to end.
    deadline = time.monotonic() + 60
    while story.record("run1")["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
    record = story.record("run1")
    assert record["status"] == "interrupted" and story.server.runs["run1"]["exitcode"] not in (0, None)


def test_records_and_runs_name_the_sweep(story):
    for run in story.server.given:
        assert story.record(run)["sweep"] == {"id": "s1", "trial": run}
        assert story.server.runs[run]["sweep"] == story.server.runs[run]["groupName"] == "s1"
