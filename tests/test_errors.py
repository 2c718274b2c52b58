"""The nearest right name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peftlib.errors import in_one_line, nearest

METHODS = ["bitfit", "lora", "full", "head"]


def test_the_nearest_known_name_is_offered():
    assert nearest("bitfti", METHODS) == "; did you mean bitfit?"
    assert nearest("lorra", iter(METHODS)) == "; did you mean lora?"


def test_parts_are_nearer_than_shared_letters_and_case_does_not_matter():
    assert nearest("F1", ["accuracy", "macro_f1", "loss"]) == "; did you mean macro_f1?"
    assert nearest("f1", ["eval/accuracy", "eval/best_f1", "eval/f1"]) == "; did you mean eval/f1?"
    assert nearest("cosine_with_restarts", ["constant_with_warmup", "cosine"]) == "; did you mean cosine?"
    assert nearest("macro_f1s", ["macro", "macro_f1"]) == "; did you mean macro_f1?"
    assert nearest("Spam", ["spam", "ham"]) == "; did you mean spam?"
    assert nearest("--output", ["--output_dir"], cutoff=0.86) == ""  # of flags, slips alone


def test_nothing_is_offered_for_a_word_like_none_of_them():
    assert nearest("xyz", METHODS) == ""
    assert nearest("lora", []) == ""


@given(st.sampled_from(METHODS), st.data())
def test_one_lost_letter_is_always_found_again(name, data):
    place = data.draw(st.integers(0, len(name) - 1))
    assert nearest(name[:place] + name[place + 1 :], METHODS) == f"; did you mean {name}?"


def test_a_foreign_message_becomes_one_line():
    assert in_one_line(ValueError("first\n  second")) == "first second"
    assert in_one_line(KeyError("a"), named=True) == "KeyError: 'a'"
    assert in_one_line(ValueError("x" * 500)) == "x" * 300
