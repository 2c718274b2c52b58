"""Who may import whom: the walls of the house, checked on the source.

    scripts -> training -> {evaluation, tracking} -> {data, modeling, strategies} -> {hub, files, errors}
    scripts -> sweeps -> {tracking, ...}: a sweep starts trainings, it never imports one
    scripts -> reporting -> {evaluation, data, ...}: a report reads what runs have left

`arguments` and `cli` are the scripts' own; no script imports another and the library never imports a script;
`strategies` imports nothing above it; `training` names no method.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from peftlib.strategies import STRATEGIES
from tests.conftest import ROOT
from tests.launching import run_python

_FLOOR = {"errors", "files", "flags", "run_files"}
_ROOMS = {"data", "modeling", "fingerprint", "strategies"}

# Room of peftlib -> the other rooms that it may import.
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "flags": {"files"},
    "run_files": set(),
    "processes": set(),
    "distributed": {"errors"},
    "cli": {"errors", "processes", "distributed"},
    "console": {"errors"},
    "hub": _FLOOR,
    "data": {"hub", "processes", *_FLOOR},
    "misfits": {"errors"},
    "fingerprint": set(),
    "modeling": {"hub", "misfits", *_FLOOR},
    # Knows modules and dtypes, no method and no task.
    "acceleration": {"errors", "files"},
    "strategies": _FLOOR,
    "evaluation": {"distributed"} | _ROOMS | _FLOOR,
    "tracking": {"console", "distributed"} | _ROOMS | _FLOOR,
    # A sweep starts trainings as processes of their own; it never imports one.
    "sweeps": {"console", "tracking", "data", "modeling", "strategies", "processes"} | _FLOOR,
    # Reads what runs have left; trains and sweeps nothing.
    "reporting": {"console", "evaluation", *_ROOMS, *_FLOOR},
    "training": {"evaluation", "tracking", "acceleration", "distributed", "processes", "hub"} | _ROOMS | _FLOOR,
    # The command line reads the tables of tasks, models and methods, and nothing that trains.
    "arguments": _ROOMS | _FLOOR,
}


def module_of(path: Path, root: Path) -> str:
    """peftlib/data/tasks.py -> peftlib.data.tasks; scripts/train.py -> scripts.train."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path) -> set[str]:
    """Every module that a file imports, wherever in the file, relative imports resolved."""
    module = module_of(path, root).split(".")
    package = module if path.name == "__init__.py" else module[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from peftlib import data` imports the module peftlib.data.
            found |= {f"{origin}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__")
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(node.args[0].value)
    return found


def violations(root: Path) -> list[str]:
    """Every import under `root` that goes against the house, as `importer -> imported`."""
    scripts = {path.stem for path in (root / "scripts").glob("*.py")}
    found = []
    for path in sorted([*(root / "peftlib").rglob("*.py"), *(root / "scripts").glob("*.py")]):
        importer = module_of(path, root)
        for imported in sorted(imports_of(path, root)):
            top, *rest = imported.split(".")
            is_script = top == "scripts" or (top in scripts and importer.startswith("scripts."))
            if is_script:
                wrong = imported != importer
            elif top == "peftlib" and rest and importer.startswith("peftlib."):
                here, there = importer.split(".")[1], rest[0]
                wrong = here != there and there not in MAY_IMPORT.get(here, set()) | {"__version__"}
            else:
                # The package itself offers the methods, and finished runs.
                wrong = importer == "peftlib" and top == "peftlib" and rest[0] not in {"strategies", "evaluation"}
            if wrong:
                found.append(f"{importer} -> {imported}")
    return found


# What is written in `training` never depends on the method; a classification head is a `head` with every method,
# so that one word may be a variable's name.
_METHOD_NAMES = set(STRATEGIES)
_METHOD_CLASSES = {strategy.__name__ for strategy in STRATEGIES.values()}
_METHOD_MODULES = {strategy.__module__ for strategy in STRATEGIES.values()}
_COMMON_WORDS = {"head"}


def methods_named(path: Path, root: Path) -> list[str]:
    """Names of methods in a file: as strings, identifiers, attributes, arguments or imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and node.value in _METHOD_NAMES:
            found.append(repr(node.value))
        name = {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg", ast.keyword: "arg"}.get(type(node))
        if name and getattr(node, name) in (_METHOD_NAMES - _COMMON_WORDS) | _METHOD_CLASSES:
            found.append(getattr(node, name))
    for imported in imports_of(path, root):
        if imported.rpartition(".")[0] in _METHOD_MODULES or imported in _METHOD_MODULES:
            found.append(imported)
    return found


def test_every_room_has_its_place():
    rooms = {
        path.stem for path in (ROOT / "peftlib").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == set(MAY_IMPORT)


def test_the_direction_has_no_circle():
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        free = [room for room, below in MAY_IMPORT.items() if room not in order and below <= set(order)]
        assert free, f"a circle above {order}"
        order += free


def test_every_import_goes_down():
    assert violations(ROOT) == []


def test_training_names_no_method():
    files = sorted((ROOT / "peftlib" / "training").rglob("*.py"))
    assert files
    assert {path.name: named for path in files if (named := methods_named(path, ROOT))} == {}


@pytest.mark.parametrize(
    ("file", "line", "violation"),
    [
        ("peftlib/strategies/new.py", "from peftlib.training.loop import train", "peftlib.training.loop.train"),
        ("peftlib/data/new.py", "from peftlib import modeling", "peftlib.modeling"),
        ("peftlib/data/new.py", "def f():\n    import peftlib.tracking.record", "peftlib.tracking.record"),
        ("peftlib/data/new.py", "from ..evaluation import metrics", "peftlib.evaluation.metrics"),
        ("peftlib/data/__init__.py", "from .. import cli", "peftlib.cli"),
        (
            "peftlib/evaluation/new.py",
            "from peftlib.tracking.card import model_card",
            "peftlib.tracking.card.model_card",
        ),
        ("peftlib/training/new.py", "from peftlib.arguments import TrainArguments", "peftlib.arguments.TrainArguments"),
        ("peftlib/training/new.py", "import importlib; importlib.import_module('peftlib.cli')", "peftlib.cli"),
        ("peftlib/training/new.py", "from scripts.train import main", "scripts.train.main"),
        ("peftlib/__init__.py", "from peftlib.data.tasks import TASKS", "peftlib.data.tasks.TASKS"),
        ("scripts/new.py", "from scripts.train import main", "scripts.train.main"),
        ("scripts/new.py", "import train", "train"),
    ],
)
def test_the_walker_catches_a_violation(tmp_path, file, line, violation):
    for name in ("scripts/train.py", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / file).write_text(f"{line}\n")
    assert violations(tmp_path) == [f"{module_of(tmp_path / file, tmp_path)} -> {violation}"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("peftlib/training/new.py", "from peftlib.data.tasks import TASKS\nfrom . import loop\nimport torch"),
        (
            "peftlib/data/new.py",
            "from peftlib.data import tasks\nfrom .tasks import TASKS\nfrom ..hub import hub_access",
        ),
        ("scripts/new.py", "from peftlib.arguments import parse_train_arguments\nfrom peftlib import cli"),
    ],
)
def test_the_walker_lets_good_imports_pass(tmp_path, file, line):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"{line}\n")
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    "line",
    [
        "if method == 'bitfit': pass",
        "def f(kind='head'): pass",
        "lora = 1",
        "def f(bitfit): pass",
        "f(lora=1)",
        "isinstance(strategy, Full)",
        "from peftlib.strategies.lora import LoRA",
        "import peftlib.strategies.bitfit",
        "from peftlib.strategies import lora",
    ],
)
def test_the_walker_catches_a_method_by_name(tmp_path, line):
    (tmp_path / "new.py").write_text(f"{line}\n")
    assert methods_named(tmp_path / "new.py", tmp_path)


def test_a_head_is_not_the_method_of_that_name(tmp_path):
    (tmp_path / "new.py").write_text('"""Trains the full head."""\ndef save(head): return head\n')
    assert methods_named(tmp_path / "new.py", tmp_path) == []


@pytest.mark.parametrize("module", ["peftlib", "peftlib.arguments", "peftlib.cli", "peftlib.strategies"])
def test_what_a_wrong_flag_needs_is_imported_without_torch(module, tmp_path):
    done = run_python("-c", f"import sys, {module}; assert 'torch' not in sys.modules", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


#: Runs scripts/train.py until its first update is made, then says what was imported.
_FIRST_UPDATE = """
import runpy, sys
from peftlib.training import loop

def stop(training):
    print("IMPORTED", *sys.modules)
    raise SystemExit

loop.finish_window = stop
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

#: Packages that a BitFit run's first update does not wait for: seconds, each of them.
_LATER = {"wandb", "datasets", "evaluate", "sklearn", "pandas", "peft", "tensorboard", "matplotlib", "optuna"}


@pytest.mark.launch
def test_the_first_update_waits_for_no_import_that_it_does_not_need(tiny_folder, glue_folder, tmp_path):
    (tmp_path / "work").mkdir()
    words = ["--model_name_or_path", tiny_folder("bert"), "--task_name", "sst2", "--data_dir", glue_folder()]
    script = ROOT / "scripts" / "train.py"
    done = run_python("-c", _FIRST_UPDATE, script, *words, cwd=tmp_path / "work")
    said = [line for line in done.stdout.splitlines() if line.startswith("IMPORTED ")]
    assert said, done.stderr
    imported = set(said[0].split())
    assert "torch" in imported
    # Before 5.21, transformers itself imports it.
    own = {"sklearn"} if Version(transformers.__version__) < Version("5.21") else set()
    assert imported & (_LATER - own | {"transformers.trainer", "transformers.optimization"}) == set()


#: Runs scripts/train.py with these flags, says what was imported, and imports what was not.
_A_RUN = """
import contextlib, runpy, sys
sys.argv = sys.argv[1:]
with contextlib.suppress(SystemExit):
    runpy.run_path(sys.argv[0], run_name="__main__")
print("IMPORTED", *sys.modules)
import triton
"""


@pytest.mark.launch
@pytest.mark.skipif(torch.accelerator.is_available(), reason="Triton's kernels train on a GPU")
@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton to leave out")
def test_without_a_gpu_triton_stays_out_and_can_be_imported_all_the_same(tiny_folder, glue_folder, tmp_path):
    words = ["--model_name_or_path", tiny_folder("bert"), "--task_name", "sst2", "--data_dir", glue_folder()]
    script = ROOT / "scripts" / "train.py"
    done = run_python("-c", _A_RUN, script, *words, "--dry_run", cwd=tmp_path)
    said = [line for line in done.stdout.splitlines() if line.startswith("IMPORTED ")]
    assert said and done.returncode == 0, done.stderr
    imported = set(said[0].split())
    assert "torch._dynamo" in imported and "triton" not in imported


@pytest.mark.parametrize("name", ["train", "predict"])
def test_a_launched_script_imports_little_before_it_can_end_with_its_launcher(name):
    """A signal to the launcher in these seconds would leave the script running to its end."""
    tree = ast.parse((ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8"))
    imported = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert set(imported) <= {"from peftlib import cli", "from pathlib import Path"}
    done = run_python("-c", "import peftlib.cli, sys; print(*sys.modules)", cwd=ROOT)
    assert not {"torch", "transformers", "numpy", "yaml", "rich"} & set(done.stdout.split())
