"""Every launch configuration is one that accelerate reads, and what its name promises."""

from __future__ import annotations

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from tests.conftest import ROOT

FOLDER = ROOT / "accelerate_configs"

# What the names promise, in the words of accelerate's loader.
PROMISES = {
    "cpu": {"use_cpu": True, "num_processes": 1, "distributed_type": "NO", "mixed_precision": None},
    # MULTI_CPU would start a single process unless mpirun does the starting.
    "multi_cpu": {"use_cpu": True, "num_processes": 2, "distributed_type": "MULTI_GPU", "mixed_precision": None},
    "single_gpu_fp16": {"use_cpu": False, "num_processes": 1, "distributed_type": "NO", "mixed_precision": "fp16"},
    "single_gpu_bf16": {"use_cpu": False, "num_processes": 1, "distributed_type": "NO", "mixed_precision": "bf16"},
    "multi_gpu_fp16": {
        "use_cpu": False, "num_processes": 2, "distributed_type": "MULTI_GPU", "mixed_precision": "fp16",
    },
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
def test_a_file_holds_no_key_twice_and_says_what_it_is_for(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    keys = [line.partition(":")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert sorted(keys) == sorted(yaml.safe_load(text))
    assert text.startswith("# ")
