"""What the README and the pages under docs/ name exists: files, flags, make targets; their commands parse."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

from peftlib.arguments import (
    CompareArguments,
    ExportArguments,
    PredictArguments,
    ReproduceArguments,
    SubmitArguments,
    SweepArguments,
    parse_predict_arguments,
    parse_submit_arguments,
    parse_train_arguments,
    train_parser,
)
from tests.conftest import ROOT

PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
# docs/extending.md is about files and flags that are not here yet: test_scripts/test_extending.py makes them.
TEXT = "\n".join(text for path, text in PAGES.items() if path.name != "extending.md")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
SHELL = "\n".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ")
TREE = next(text for language, text in BLOCKS if "peftlib/" in text and not language)

#: Flags of accelerate's launcher, of W&B's agent and of the project's other commands, which the text names too.
OTHERS = {"--forward_signals", "--config_file", "--num_processes", "--cpu", "--help", "--config"}


def tree_paths() -> list[str]:
    """The tree's files and folders, with the folders that its indentation puts them in."""
    paths, parents = [], []
    for line in TREE.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        words = re.split(r"\s{2,}", line.strip())[0].split()
        names = [word for word in words if "." in word or word.endswith("/") or word == "Makefile"]
        parents = parents[:depth]
        paths += ["".join(parents) + name for name in names]
        if names and names[0].endswith("/"):
            parents.append(names[0])
    return paths


def test_the_tree_was_read():
    assert len(tree_paths()) > 40
    assert "peftlib/strategies/bitfit.py" in tree_paths()


@pytest.mark.parametrize("path", tree_paths())
def test_what_the_tree_names_exists(path):
    assert (ROOT / path).exists()


def test_the_tree_leaves_no_module_out():
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "peftlib").rglob("*.py")}
    scripts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").glob("*.py")}
    assert {path for path in modules | scripts if not path.endswith("__init__.py")} <= set(tree_paths())


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:scripts|accelerate_configs|benchmarks|peftlib|tests)/[\w/.*-]+)`", TEXT)))
)
def test_a_path_in_the_text_exists(path):
    assert list(ROOT.glob(path.rstrip("/")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[page]):
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_every_flag_exists():
    named = {"--" + flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", TEXT)}
    assert named, "no flags found"
    assert named - set(train_parser().flags()) <= OTHERS | other_scripts_flags()


def other_scripts_flags() -> set[str]:
    """Flags of the other scripts."""
    chaos = re.findall(r'add_argument\(\s*"(--[\w-]+)"', (ROOT / "tests" / "chaos.py").read_text())
    groups = (PredictArguments, ExportArguments, SweepArguments, CompareArguments, ReproduceArguments, SubmitArguments)
    return {*chaos, *(f"--{field.name}" for group in groups for field in dataclasses.fields(group))}


@pytest.mark.parametrize("line", [line for line in SHELL.splitlines() if "scripts/predict.py" in line])
def test_a_predicting_command_parses(line):
    words = shlex.split(line, comments=True)
    assert parse_predict_arguments(words[words.index("scripts/predict.py") + 1 :])[0] == "outputs/my-run"


@pytest.mark.parametrize("line", [line for line in SHELL.splitlines() if "scripts/submit.py" in line])
def test_a_submitting_command_parses(line):
    words = shlex.split(line, comments=True)
    assert parse_submit_arguments(words[words.index("scripts/submit.py") + 1 :])


@pytest.mark.parametrize("line", [line for line in SHELL.splitlines() if "scripts/train.py" in line])
def test_a_training_command_parses(line, tmp_path):
    words = shlex.split(line.replace("$seed", "42"), comments=True)
    flags = words[words.index("scripts/train.py") + 1 :]
    if "--config" in flags:
        file = tmp_path / "run.yaml"
        file.write_text("method: lora\n")
        flags[flags.index("--config") + 1] = str(file)
    assert parse_train_arguments(flags)


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", TEXT, flags=re.MULTILINE))
    assert {name for pair in named for name in pair if name} <= targets
