"""Files that are whole or absent, and JSON that every reader accepts."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from peftlib.files import (
    cache_folder,
    load_yaml,
    obstacle,
    placed_when_whole,
    strict,
    to_csv,
    write_bytes,
    write_json,
    write_text,
)
from tests.conftest import ROOT


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new – ünïcode\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new – ünïcode\n"
    assert names(tmp_path) == ["a.txt"]


def test_bytes_stay_what_they_are(tmp_path):
    write_bytes(tmp_path / "a.zip", b"PK\x00\r\n\xff")
    assert (tmp_path / "a.zip").read_bytes() == b"PK\x00\r\n\xff" and names(tmp_path) == ["a.zip"]


def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path):
    write_text(tmp_path / "a.txt", "old and long")
    with (tmp_path / "a.txt").open() as reader:
        write_text(tmp_path / "a.txt", "new")
        assert reader.read() == "old and long"


def test_the_old_file_survives_a_write_that_fails(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new" * 10_000 + "\udc80")  # UTF-8 has no lone surrogates
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.txt", {"a": object()})
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_survives_a_disk_that_fails(tmp_path, monkeypatch):
    def fails(descriptor):
        raise OSError("no space left")

    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_permissions_are_those_of_any_new_file(tmp_path, mask, mode):
    code = (
        "from pathlib import Path; from peftlib.files import write_text; write_text(Path('a.txt'), 'x'); "
        "open('plain.txt', 'w')"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, umask=mask, check=True
    )
    # The second one is any file written later: reading the umask did not change it.
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.txt", "plain.txt")] == [mode, mode]


def test_writing_never_changes_the_umask_for_other_threads(tmp_path, monkeypatch):
    def refused(mask):
        raise AssertionError("another thread would create a file with this umask")

    monkeypatch.setattr(os, "umask", refused)
    write_text(tmp_path / "a.txt", "x")
    with placed_when_whole(tmp_path) as temporary:
        (temporary / "b.txt").write_text("x")
    assert names(tmp_path) == ["a.txt", "b.txt"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


@given(VALUES)
def test_written_json_is_strictly_valid_and_reads_back_but_for_non_finite_numbers(value):
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "a.json", value)
        text = (Path(folder) / "a.json").read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert json.loads(text, parse_constant=refuse) == without_non_finite(value)


def without_non_finite(value):
    """By another way than `strict`: Python's own JSON with its NaN and Infinity, read as null."""
    return json.loads(json.dumps(value), parse_constant=lambda constant: None)


def test_strict_goes_through_tuples_and_keeps_finite_numbers():
    value = {"a": (1.5, math.nan, -math.inf), 2: {"b": [math.inf, 0.0, 3, True, "NaN"]}}
    assert strict(value) == {"a": [1.5, None, None], "2": {"b": [None, 0.0, 3, True, "NaN"]}}


def test_the_cache_lies_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("PEFTLIB_CACHE", "/a")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("PEFTLIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/peftlib")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "peftlib"


def test_files_are_placed_when_all_are_whole(tmp_path):
    (tmp_path / "a").write_text("old")
    with placed_when_whole(tmp_path) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [("a", "new"), ("b", "new")]
    with pytest.raises(ZeroDivisionError), placed_when_whole(tmp_path) as temporary:
        (temporary / "a").write_text("half of")
        raise ZeroDivisionError
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [("a", "new"), ("b", "new")]


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {a: 1, a: 1}", "- {a: 1, b: {c: 1, c: 2}}"])
def test_a_key_that_stands_there_twice_is_an_error(text):
    """PyYAML's own loaders keep the last one."""
    yaml.safe_load(text)
    for kind in (yaml.SafeLoader, yaml.BaseLoader):
        with pytest.raises(yaml.YAMLError, match=r"a second [ac]\b"):
            load_yaml(text, kind)


def test_yaml_is_read_as_its_loader_reads_it():
    text = "a: no\nb: [1, {c: 2}]\nd: &x {e: 1}\nf:\n  g: &y {<<: *x, e: 2}\nh: {<<: *y}"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml(text, yaml.BaseLoader) == yaml.load(text, Loader=yaml.BaseLoader)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_a_csv_gives_its_cells_back(cells):
    clean = [cell.replace("\0", "") for cell in cells]  # no CSV reader takes a NUL
    text = to_csv([clean, clean])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [clean, clean]
    assert text.endswith("\n") and not text.endswith("\r\n")


def test_what_stands_in_the_way_of_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert obstacle(tmp_path) is None and obstacle(tmp_path / "new" / "below") is None
    assert obstacle(tmp_path / "file") == obstacle(tmp_path / "file" / "below") == f"{tmp_path / 'file'} is a file"
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)  # root may write anywhere
    assert obstacle(tmp_path / "new") == f"{tmp_path} is read-only"
