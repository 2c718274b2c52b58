"""The command of a run: W&B's macros, and whether it can be started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from peftlib.errors import UserError
from peftlib.sweeps.command import expand, prepared
from peftlib.sweeps.config import Sweep, load_sweep
from tests.conftest import ROOT


def sweep_of(folder: Path, program: str = "train.py", command: list[str] | None = None) -> Sweep:
    content = {
        "program": program, "method": "grid", "metric": {"name": "eval/loss"}, "parameters": {"seed": {"value": 1}},
        "command": command or ["${env}", "${interpreter}", "${program}", "${args}"],
    }  # fmt: skip
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    return load_sweep(folder / "sweep.yaml", ["--seed"], lambda words: None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["${env}", "accelerate", "launch", "${program}", "${args}"],
         ["/usr/bin/env", "accelerate", "launch", "p.py", "--lora_r=8", "--use_dora=False"]),
        (["${interpreter}", "${program}", "${args_no_boolean_flags}"], ["python", "p.py", "--lora_r=8"]),
        (["${program}", "${args_no_equals}"], ["p.py", "--lora_r", "8", "--use_dora", "False"]),
        (["nice", "-n", "${envvar:NICENESS}", "${program}", "${args}"],
         ["nice", "-n", "5", "p.py", "--lora_r=8", "--use_dora=False"]),
    ],
)  # fmt: skip
def test_a_command_is_filled_in_as_wandb_s_agent_does(tmp_path, monkeypatch, words, expected):
    monkeypatch.setenv("NICENESS", "5")
    assert expand(sweep_of(tmp_path, "p.py", words), {"lora_r": 8, "use_dora": False}, tmp_path / "0") == expected


def test_arguments_in_a_file_lie_beside_the_run(tmp_path):
    sweep = sweep_of(tmp_path, command=["${program}", "${args_json_file}"])
    _, path = expand(sweep, {"seed": 1}, tmp_path / "0003")
    assert json.loads(Path(path).read_text()) == {"seed": 1}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["${env}", "${interpretr}", "${program}", "${args}"], "unknown macro ${interpretr}; did you mean ${interpret"),
        (["python", "${program}", "${arg}"], "unknown macro ${arg}; did you mean ${args}? (known: ${env}, "),
        (["nice", "${envvar:niceness}", "${program}", "${args}"], "unknown macro ${envvar:niceness}"),
        (["python", "${program}"], "has no ${args}, so runs would not be given their values"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(tmp_path, command, message):
    with pytest.raises(UserError) as error:
        sweep_of(tmp_path, command=command)
    assert f"sweep.yaml: command: {message}" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Create a program in a temporary folder and change to it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["nosuchlauncher", "${program}", "${args}"], "nosuchlauncher cannot be found; install it, or give its"),
        (["${env}", "A=1", "nosuchlauncher", "${program}", "${args}"], "nosuchlauncher cannot be found"),
        (["/nowhere/python", "${program}", "${args}"], "/nowhere/python cannot be found"),
        (["./train.py", "${args}"], "./train.py is not executable; put ${interpreter} before it"),
        (["${envvar:LAUNCHER}", "${program}", "${args}"], "nosuchlauncher cannot be found"),
        (["${args}", "${program}"], "--an_argument=0 cannot be found"),
    ],
)
def test_a_command_that_cannot_be_started_is_found_before_a_run(place, monkeypatch, command, message):
    monkeypatch.setenv("LAUNCHER", "nosuchlauncher")
    with pytest.raises(UserError) as error:
        prepared(sweep_of(place, command=command), place / "sweep.yaml")
    assert str(error.value).startswith(f"command: {message}")


@pytest.mark.parametrize(
    "command",
    [
        ["${env}", "accelerate", "launch", "${program}", "${args}"],  # beside this interpreter, if not on the PATH
        ["${env}", "-i", "anything", "${program}", "${args}"],
        ["${interpreter}", "${program}", "${args}"],
    ],
)
def test_a_command_that_can_be_started_passes(place, monkeypatch, command):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    sweep = sweep_of(place, command=command)
    assert prepared(sweep, place / "sweep.yaml") == sweep


def test_a_program_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(tmp_path, "scripts/train.py")
    found = prepared(sweep, ROOT / "scripts" / "sweeps" / "reproduce.yaml")
    assert found.program == str(ROOT / "scripts" / "train.py") and found.content == sweep.content
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text("")
    assert prepared(sweep, ROOT / "scripts" / "sweeps" / "reproduce.yaml").program == "scripts/train.py"


def test_a_program_that_is_nowhere_is_named(place):
    with pytest.raises(UserError) as error:
        prepared(sweep_of(place, "elsewhere.py"), place / "sweep.yaml")
    assert str(error.value).startswith(f"program: elsewhere.py is neither in {place} nor in a parent folder of ")
