"""The packaged tokenizer, and a cache of a test's own."""

from __future__ import annotations

import pytest

from peftlib.data.dataset_tables import _hub_answers
from peftlib.modeling import DEFAULT_MODEL, find_model, load_tokenizer


@pytest.fixture(autouse=True)
def _the_hub_is_asked_again():
    yield
    _hub_answers.cache_clear()


@pytest.fixture
def tokenizer():
    return load_tokenizer(find_model(DEFAULT_MODEL))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
