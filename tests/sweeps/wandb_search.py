"""W&B's own search, as a reference for ours."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


def wandb_search(module: str) -> Any:
    """Import a module of W&B's `sweeps` package, or fail: a skipped comparison would look like one that passed."""
    try:
        return importlib.import_module(f"sweeps.{module}")
    except ImportError as error:
        pytest.fail(f"{error}: make test installs it; by hand, pip install --no-deps 'sweeps>=0.3,<0.4'")
