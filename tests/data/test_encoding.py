"""Tokens: what the tokenizer says, said once."""

from __future__ import annotations

import os
import tempfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlib.data.encoding import encode
from peftlib.errors import UserError
from peftlib.modeling import DEFAULT_MODEL, find_model, load_tokenizer
from tests.data.texts import PAIRS, ROWS, examples_of, rows_of


@pytest.fixture(scope="module")
def shared_tokenizer():
    return load_tokenizer(find_model(DEFAULT_MODEL))


@pytest.fixture
def calls(monkeypatch):
    """The tokenizer's calls, counted; they still happen."""
    counted = []
    kind = type(load_tokenizer(find_model(DEFAULT_MODEL)))
    original = kind.__call__

    def counting(self, *words, **options):
        counted.append(words)
        return original(self, *words, **options)

    monkeypatch.setattr(kind, "__call__", counting)
    return counted


def expected_rows(tokenizer, rows, max_length):
    """The tokenizer's own answer, one example at a time."""
    answers = [tokenizer(*([part] for part in text), truncation=True, max_length=max_length) for text, _ in rows]
    return {name: [answer[name][0] for answer in answers] for name in ("input_ids", "token_type_ids")}


def test_the_cache_tells_tokenizers_with_other_columns_apart(cache):
    """With and without segments, say, over the same vocabulary."""
    with_types, without = (load_tokenizer(find_model(DEFAULT_MODEL)) for _ in range(2))
    without.model_input_names = ["input_ids", "attention_mask"]
    for _ in range(2):  # filled, then read
        assert set(encode(examples_of(PAIRS), without, 16).columns) == {"input_ids"}
        assert set(encode(examples_of(PAIRS), with_types, 16).columns) == {"input_ids", "token_type_ids"}


def test_scores_stay_scores_and_classes_classes_in_the_cache_too(tokenizer, cache):
    """The same texts with the same numbers: 1 and 0 are classes, 1.0 and 0.0 are not."""
    scores = [(text, float(label)) for text, label in PAIRS]
    for _ in range(2):  # filled, then read
        for rows, kind in ((PAIRS, np.int64), (scores, np.float32), ([(PAIRS[0][0], 3.8)], np.float32)):
            encoded = encode(examples_of(rows), tokenizer, 16)
            assert encoded.labels.dtype == kind
            assert encoded.labels.tolist() == [kind(label) for _, label in rows]
    assert len(entries(cache)) == 3


def test_it_is_known_how_many_were_cut(tokenizer, cache):
    rows = [(("one two three four",), 0), (("one two three",), 1), (("one two three four five six",), 0)]
    for _ in range(2):  # filled, then read
        for most, cut in ((8, 0), (6, 1), (5, 2), (3, 3)):
            encoded = encode(examples_of(rows), tokenizer, most)
            assert (encoded.truncated, int(encoded.lengths.max())) == (cut, most)


@pytest.mark.parametrize(("rows", "least"), [(ROWS, 3), (PAIRS, 5)])
def test_there_has_to_be_room_for_a_token_of_each_text(tokenizer, cache, rows, least):
    with pytest.raises(UserError, match=f"--max_length {least - 1}: must be at least {least}, special tokens included"):
        encode(examples_of(rows), tokenizer, least - 1)
    assert encode(examples_of(rows), tokenizer, least).lengths.max() == least


def entries(cache):
    return sorted(path.name for path in (cache / "tokens").iterdir())


# ── Tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rows", [ROWS, PAIRS], ids=["sentences", "pairs"])
@pytest.mark.parametrize("max_length", [8, 128])
def test_the_tokens_are_the_tokenizers_own(tokenizer, cache, rows, max_length):
    encoded = encode(examples_of(rows), tokenizer, max_length)
    expected = expected_rows(tokenizer, rows, max_length)
    assert rows_of(encoded) == expected
    assert encoded.labels.tolist() == [label for _, label in rows]
    assert encoded.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    # Again, from the cache.
    assert rows_of(encode(examples_of(rows), tokenizer, max_length)) == expected


@given(st.lists(st.tuples(st.tuples(st.text(), st.text()), st.integers(0, 1)), min_size=1, max_size=5))
@settings(max_examples=10)
def test_any_text_is_encoded_as_the_tokenizer_does(shared_tokenizer, rows):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLIB_CACHE", folder)
        for _ in ("tokenised", "from the cache"):
            assert rows_of(encode(examples_of(rows), shared_tokenizer, 16)) == expected_rows(shared_tokenizer, rows, 16)


def test_long_examples_are_cut_and_keep_their_last_token(tokenizer, cache):
    encoded = encode(examples_of(ROWS), tokenizer, 8)
    assert encoded.lengths.max() == 8
    ids = rows_of(encoded)["input_ids"]
    assert {row[0] for row in ids} == {tokenizer.cls_token_id}
    assert {row[-1] for row in ids} == {tokenizer.sep_token_id}


def test_more_tokens_than_the_model_takes_are_refused(tokenizer, cache):
    assert tokenizer.model_max_length == 512
    encode(examples_of(ROWS), tokenizer, 512)
    with pytest.raises(UserError, match=r"--max_length 513: this model takes at most 512 tokens"):
        encode(examples_of(ROWS), tokenizer, 513)


def test_the_fingerprint_and_source_come_along(tokenizer, cache):
    examples = examples_of(ROWS)
    for _ in ("tokenised", "from the cache"):
        encoded = encode(examples, tokenizer, 8)
        assert (encoded.fingerprint, encoded.source) == (examples.fingerprint(), "made here")


# ── The cache ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_second_time_nothing_is_tokenised(cache, calls):
    for _ in range(2):
        encode(examples_of(ROWS), load_tokenizer(find_model(DEFAULT_MODEL)), 16)
    assert len(calls) == 1


def test_a_second_run_tokenises_neither_of_its_two_splits(cache, calls):
    # A fast tokenizer remembers how it was called last: that must not move the second split's place in the cache.
    for _ in range(2):
        tokenizer = load_tokenizer(find_model(DEFAULT_MODEL))
        encode(examples_of(ROWS), tokenizer, 16)
        encode(examples_of(PAIRS), tokenizer, 16)
    assert len(calls) == 2
    assert len(entries(cache)) == 2


def test_the_tokenizer_stays_as_it_was_loaded(tokenizer, cache):
    before = tokenizer.backend_tokenizer.to_str()
    for _ in ("tokenised", "from the cache"):
        encode(examples_of(ROWS), tokenizer, 8)
        assert tokenizer.backend_tokenizer.to_str() == before


def test_other_data_labels_lengths_and_tokenizers_have_other_entries(tokenizer, cache, calls):
    relabelled = [(text, 1 - label) for text, label in ROWS]
    special = [(("one [SEP] two",), 1)]
    extended = load_tokenizer(find_model(DEFAULT_MODEL))
    extended.add_tokens(["unbelievably"])
    left = load_tokenizer(find_model(DEFAULT_MODEL))
    left.truncation_side = "left"
    ignorant = load_tokenizer(find_model(DEFAULT_MODEL))
    ignorant.split_special_tokens = True
    variants = [
        (ROWS, tokenizer, 16),
        (ROWS[:3], tokenizer, 16),
        (relabelled, tokenizer, 16),
        (ROWS, tokenizer, 15),
        (ROWS, extended, 16),
        (ROWS, left, 16),
        (special, tokenizer, 16),
        (special, ignorant, 16),
    ]
    encoded = [encode(examples_of(rows), chosen, length) for rows, chosen, length in variants]
    assert len(entries(cache)) == len(calls) == len(variants)
    assert len({(tuple(one.columns["input_ids"]), tuple(one.labels)) for one in encoded}) == len(variants)


def test_a_damaged_entry_is_tokenised_and_written_anew(tokenizer, cache, calls):
    expected = rows_of(encode(examples_of(ROWS), tokenizer, 16))
    (entry,) = (cache / "tokens").iterdir()
    whole = entry.read_bytes()
    for damaged in (b"", b"no safetensors", whole[: len(whole) // 2]):
        entry.write_bytes(damaged)
        assert rows_of(encode(examples_of(ROWS), tokenizer, 16)) == expected
        assert entry.read_bytes() == whole
    assert len(calls) == 4
    assert len(entries(cache)) == 1  # no temporary file is left


def test_a_cache_that_cannot_be_written_costs_time_only(tokenizer, tmp_path, monkeypatch, calls):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTLIB_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert len(encode(examples_of(ROWS), tokenizer, 16)) == len(ROWS)
    assert len(calls) == 2


def test_others_may_read_what_umask_lets_them(tokenizer, cache):
    encode(examples_of(ROWS), tokenizer, 16)
    (name,) = entries(cache)
    (cache / "plain").touch()
    assert (cache / "tokens" / name).stat().st_mode == (cache / "plain").stat().st_mode


def test_what_nobody_has_read_for_long_goes(tokenizer, cache):
    encode(examples_of(ROWS), tokenizer, 16)
    encode(examples_of(PAIRS), tokenizer, 16)
    folder, long_ago = cache / "tokens", time.time() - 100 * 24 * 3600
    for name in ("half.tmp", "of-others.txt"):
        (folder / name).write_text("")
    for path in folder.iterdir():
        os.utime(path, (long_ago, long_ago))
    encode(examples_of(ROWS), tokenizer, 16)  # read again
    assert len(entries(cache)) == 4, "reading removes nothing"
    encode(examples_of(ROWS), tokenizer, 8)  # written
    assert len(entries(cache)) == 3 and "of-others.txt" in entries(cache)
    before = folder.stat().st_mtime_ns
    encode(examples_of(ROWS), tokenizer, 16)
    assert folder.stat().st_mtime_ns == before, "it was still there"
