"""The choice of trackers, and W&B without an API key, which must neither prompt nor fail."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from peftlib.errors import UserError
from peftlib.tracking.trackers import DEFAULT_PROJECT, choose_trackers, start_trackers, wandb_goes_offline
from tests.conftest import ROOT
from tests.launching import run_python
from tests.sweeps.wandb_server import serve


def complaint(wanted):
    with pytest.raises(UserError) as caught:
        choose_trackers(wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("none", []),
        ("", []),
        (" , ", []),
        ("wandb", ["wandb"]),
        (" tensorboard , wandb ", ["tensorboard", "wandb"]),
        ("wandb,wandb", ["wandb"]),  # twice would start two runs
        ("auto", []),
    ],
)
def test_the_trackers_are_those_that_were_named(wanted, chosen):
    assert choose_trackers(wanted) == chosen


@pytest.mark.parametrize("variable", ["WANDB_SWEEP_ID", "WANDB_API_KEY", "WANDB_MODE"])
def test_auto_watches_where_wandb_was_asked_for(variable, monkeypatch):
    monkeypatch.setenv(variable, "offline")
    assert choose_trackers("auto") == ["wandb"]
    monkeypatch.setenv(variable, "")
    assert choose_trackers("auto") == []


def test_all_means_all_that_are_installed():
    chosen = choose_trackers("all")
    assert {"tensorboard", "wandb"} <= set(chosen)
    assert choose_trackers(",".join(chosen)) == chosen


@pytest.mark.parametrize(
    ("wanted", "expected"), [("wandbb", "did you mean wandb?"), ("none,tensorbord", "none stands")]
)
def test_an_unknown_tracker_gets_the_nearest_one(wanted, expected):
    assert expected in complaint(wanted)
    assert complaint("wandb,tensorbord").startswith("--report_to tensorbord: unknown; did you mean tensorboard?")


@pytest.mark.parametrize("word", ["all", "none", "auto"])
def test_the_words_for_many_stand_alone(word):
    assert complaint(f"wandb,{word}").endswith(f"{word} stands alone")


def test_a_tracker_that_is_not_installed_says_how_to_get_it():
    missing = next(name for name in ("aim", "dvclive", "swanlab", "clearml") if name not in choose_trackers("all"))
    assert complaint(missing) == f"--report_to {missing}: not installed; pip install {missing}"


# ── W&B without a network ────────────────────────────────────────────────────────────────────────────────────────

ASK = "from peftlib.tracking.trackers import wandb_goes_offline; print(wandb_goes_offline())"


@pytest.mark.launch
@pytest.mark.parametrize(
    ("changes", "offline"),
    [
        ({}, "True"),
        ({"WANDB_API_KEY": "0" * 40}, "False"),
    ],
)
def test_wandb_goes_offline_exactly_without_a_key(tmp_path, changes, offline):
    done = run_python("-c", ASK, cwd=tmp_path, HOME=str(tmp_path), NETRC=str(tmp_path / ".netrc"), **changes)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, offline, "")


@pytest.mark.launch
def test_a_key_in_the_netrc_is_a_key(tmp_path):
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    done = run_python("-c", ASK, cwd=tmp_path, HOME=str(tmp_path), NETRC=str(tmp_path / ".netrc"))
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_mode_that_somebody_chose_is_left_alone(mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_goes_offline() is False


@pytest.mark.launch
def test_wandb_without_a_key_records_offline_and_says_how_to_sync(tmp_path):
    code = f"""
from pathlib import Path
from accelerate import Accelerator
from peftlib.tracking.trackers import start_trackers
accelerator = Accelerator(cpu=True, log_with=["wandb"])
config = {{"seed": 1, "data_dir": None}}
folder = Path({str(tmp_path / "a run")!r})
folder.mkdir()
print(start_trackers(accelerator, ["wandb"], project=None, name="a", folder=folder, config=config, ids={{}},
                     group="s-1")[1])
run = accelerator.get_tracker("wandb", unwrap=True)
print(run.project, run.name, run.group, dict(run.config))
accelerator.log({{"train/global_step": 1, "train/loss": 0.5}}, step=1)
accelerator.end_training()
"""
    done = run_python("-c", code, cwd=tmp_path, HOME=str(tmp_path), NETRC=str(tmp_path / ".netrc"))
    assert done.returncode == 0, done.stderr
    notice, run = done.stdout.splitlines()
    command = f"wandb sync '{tmp_path}/a run'/wandb/offline-run-*-"
    assert notice.startswith(f"W&B has no API key, so it records offline; to upload later: wandb login, then {command}")
    assert run == f"{DEFAULT_PROJECT} a s-1 {{'seed': 1, 'data_dir': 'None'}}"
    assert len(list((tmp_path / "a run" / "wandb").glob("offline-run-*"))) == 1


# ── The state of failed and stopped runs in W&B ─────────────────────────────────────────────────────────────────

ENDS = """
import os, signal
import wandb
from peftlib.errors import Interrupted, RunError
from peftlib.processes import CaughtSignals
from peftlib.tracking.trackers import end_wandb_run

errors = {
    "diverged": RunError("the loss is nan"),
    "ctrl-c": Interrupted("stopped", 130, by_hand=True),
    "sigterm": Interrupted("stopped", 143, by_hand=False),
    "time-limit": Interrupted("stopped", 0, by_hand=False),
    "hyperband": Interrupted("stopped", 143, by_hand=False),
}
wandb.setup()
os.environ["WANDB_SWEEP_ID"] = "s1"  # set after the client has read its environment: in a sweep it would ignore the ids
for name, error in errors.items():
    with CaughtSignals(signal.SIGINT):  # W&B's client sends one to a run that must end
        end_wandb_run(wandb.init(id=name), error)
"""


@pytest.mark.launch
def test_wandb_learns_which_runs_of_a_sweep_are_wanted_back(tmp_path):
    with serve([]) as server:
        server.stop = lambda run: run == "hyperband"
        variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
        done = run_python("-c", ENDS, cwd=tmp_path, PYTHONPATH=str(ROOT), **variables)
    assert done.returncode == 0, done.stderr
    assert {name: (run["state"], run["exitcode"]) for name, run in server.runs.items()} == {
        "diverged": ("failed", 1),
        "ctrl-c": ("killed", 255),
        "sigterm": ("preempted", 143),
        "time-limit": ("preempted", 1),
        "hyperband": ("killed", 255),
    }


# ── TensorBoard, which needs no account ──────────────────────────────────────────────────────────────────────────


def test_any_configuration_and_curve_reaches_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(
        cpu=True,
        log_with=["tensorboard"],
        project_config=ProjectConfiguration(project_dir=str(tmp_path), logging_dir=str(tmp_path)),
    )
    config = {"seed": 1, "learning_rate": None, "method": "bitfit", "use_dora": False, "list": [1, 2]}
    _, notice = start_trackers(
        accelerator, ["tensorboard"], project="p", name="a", folder=tmp_path, config=config, ids={}
    )
    assert notice is None
    accelerator.log({"train/loss": 0.5}, step=3)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "p")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.5)]
    (hparams,) = (tmp_path / "p").rglob("hparams.yml")
    assert "method: bitfit" in hparams.read_text()
