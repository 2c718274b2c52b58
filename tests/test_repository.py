"""What is kept under version control."""

from __future__ import annotations

import shutil
import subprocess

import pytest

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
