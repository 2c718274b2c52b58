"""Fixtures that keep tests in Triton's interpreter fast."""

from __future__ import annotations

import pytest


@pytest.fixture
def few_programs(monkeypatch):
    """Few programs, so that each has several blocks of rows, and few rows: an interpreted block takes milliseconds."""
    from peftlib.acceleration import layer_calls  # it imports Triton, which is not everywhere
    from peftlib.data import collation

    monkeypatch.setattr(layer_calls, "_PROGRAMS", 3)
    monkeypatch.setattr(layer_calls, "_FORWARD_ROWS", 8)
    monkeypatch.setattr(layer_calls, "_ROWS", 8)
    monkeypatch.setattr(layer_calls, "_GELU_ROWS", 8)
    monkeypatch.setattr(collation, "STEP", 32)
