"""Every launch configuration is one that accelerate reads, and what its name promises."""

from __future__ import annotations

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from peftlib.training.precision import choose_precision
from tests.conftest import ROOT

FOLDER = ROOT / "accelerate_configs"

# What the names promise, in the words of accelerate's loader.
PROMISES = {
    "cpu": {"use_cpu": True, "num_processes": 1, "distributed_type": "NO", "mixed_precision": None},
    # MULTI_CPU would start a single process unless mpirun does the starting.
    "multi_cpu": {"use_cpu": True, "num_processes": 2, "distributed_type": "MULTI_GPU", "mixed_precision": None},
    "single_gpu": {"use_cpu": False, "num_processes": 1, "distributed_type": "NO", "mixed_precision": None},
    "multi_gpu": {"use_cpu": False, "num_processes": 2, "distributed_type": "MULTI_GPU", "mixed_precision": None},
    "multi_node": {
        "use_cpu": False, "num_machines": 2, "num_processes": 2, "distributed_type": "MULTI_GPU",
        "mixed_precision": None,
    },
}  # fmt: skip


def test_every_file_has_a_promise_to_keep():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(f"{name}.yaml" for name in PROMISES)


@pytest.mark.parametrize("name", PROMISES)
def test_accelerate_reads_what_the_name_promises(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    for key, value in {"num_machines": 1, **PROMISES[name]}.items():
        assert getattr(config, key) == value, key


@pytest.mark.parametrize("name", PROMISES)
def test_train_py_chooses_the_precision(name, monkeypatch):
    """What the launcher passes on leaves `--mixed_precision auto` its choice."""
    args = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "scripts/train.py"])
    args, *_ = _validate_launch_command(args)
    prepare = prepare_multi_gpu_env if args.multi_gpu else lambda args: prepare_simple_launcher_cmd_env(args)[1]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", prepare(args)["ACCELERATE_MIXED_PRECISION"])
    assert choose_precision("auto", torch.device("cpu")).reason.startswith("auto: ")


@pytest.mark.parametrize("name", PROMISES)
def test_a_file_holds_no_key_twice_and_says_what_it_is_for(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    keys = [line.partition(":")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert sorted(keys) == sorted(yaml.safe_load(text))
    assert text.startswith("# ")
