"""What is kept under version control."""

from __future__ import annotations

import shutil
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="no git checkout")
def test_no_large_file_is_tracked() -> None:
    """A wheel or a model once committed is in every clone for good."""
    # Whoever owns the checkout: git would refuse to read another user's.
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    assert len(paths) > 100
    assert not [path for path in paths if path.exists() and path.stat().st_size > 500_000]


def test_requirements_bound_every_dependency_within_what_the_package_takes() -> None:
    stored = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    bounded = [Requirement(line) for line in lines if line and not line.startswith(("#", "-e"))]
    taken = [Requirement(one) for one in stored["dependencies"] + stored["optional-dependencies"]["packaged"]]
    assert sorted(one.name for one in bounded) == sorted(one.name for one in taken)
    for one, wider in zip(*(sorted(each, key=lambda one: one.name) for each in (bounded, taken)), strict=True):
        lowest = next(bound.version for bound in one.specifier if bound.operator in (">=", "=="))
        assert wider.specifier.contains(lowest), f"{one} is not within {wider}"
