"""The packaged tokenizer, and a cache of a test's own."""

from __future__ import annotations

import pytest

from peftlib.modeling import DEFAULT_MODEL, find_model, load_tokenizer


@pytest.fixture
def tokenizer():
    return load_tokenizer(find_model(DEFAULT_MODEL))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
