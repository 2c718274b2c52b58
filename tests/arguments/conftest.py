"""A file of flags."""

from __future__ import annotations

import pytest


@pytest.fixture
def config(tmp_path):
    """Writes a YAML file and returns the flag that names it."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return f"--config={path}"

    return write
