"""What GLUE's server takes, and what it would not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlib.data.glue_server import SERVER_FILES, ServerFile, answer_file
from peftlib.data.sources import load_examples
from peftlib.data.tasks import HIDABLE_SPLITS, TASKS
from tests.conftest import GLUE, needs_glue

FILES = {name: file for name, file in SERVER_FILES.items() if file.examples < 10_000}


def test_they_are_the_eleven_of_the_sample_submission() -> None:
    names = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX"
    assert [file.name for file in SERVER_FILES.values()] == [f"{name}.tsv" for name in names.split()]
    assert list(SERVER_FILES) == names.split()
    hidden = {(name, split) for name, task in TASKS.items() for split in task.splits if split in HIDABLE_SPLITS}
    assert {(file.task_name, file.split) for file in SERVER_FILES.values()} == hidden - {("rotten_tomatoes", "test")}


@needs_glue
@pytest.mark.parametrize("name", ["MRPC", "SST-2"])
def test_the_real_test_splits_have_as_many_examples(name: str) -> None:
    file = SERVER_FILES[name]
    assert len(load_examples(file.task, file.split, GLUE)) == file.examples
    train = load_examples(file.task, "train", GLUE).labels
    assert max(set(train), key=train.count) == int(file.constant)


@pytest.mark.parametrize("name", SERVER_FILES)
def test_a_filled_file_is_as_the_server_takes_it(name: str) -> None:
    file = SERVER_FILES[name]
    content = file.filled()
    assert file.problem(content.encode()) is None
    assert content.startswith(f"index\tprediction\n0\t{file.constant}\n1\t")
    assert content.endswith(f"\n{file.examples - 1}\t{file.constant}\n")


@given(st.data())
def test_a_line_that_is_changed_is_named(data: st.DataObject) -> None:
    file = FILES[data.draw(st.sampled_from(sorted(FILES)))]
    place = data.draw(st.integers(0, file.examples - 1))
    allowed = file.task.classes_in_glue()
    answers = [file.constant] * file.examples
    if allowed:
        good = data.draw(st.sampled_from(allowed))
        bad = data.draw(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=8))
        wrong = bad not in allowed
    else:
        good = f"{data.draw(st.floats(0, 5)):.3f}"
        bad, wrong = data.draw(st.sampled_from(["nan", "-0.001", "5.001", "", "high", "2.5\t3", "inf"])), True
    answers[place] = good
    assert file.problem(answer_file(answers).encode()) is None
    answers[place] = bad
    problem = file.problem(answer_file(answers).encode())
    assert (problem is not None) == wrong
    assert problem is None or problem.startswith(f"line {place + 2}: the answer is {bad!r}; there are ")


@given(st.data())
def test_an_index_that_is_changed_is_named(data: st.DataObject) -> None:
    file = SERVER_FILES["WNLI"]
    lines = file.filled().split("\n")
    place = data.draw(st.integers(0, file.examples - 1))
    index = data.draw(st.sampled_from([str(place + 1), str(place - 1), f"0{place}", f"{place}.0", "", f" {place}"]))
    lines[place + 1] = f"{index}\t0"
    assert file.problem("\n".join(lines).encode()) == f"line {place + 2}: the index is {index!r}, not {place}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "line 1: the header is not index<TAB>prediction"),
        (b"index,prediction\n0,1\n1,0\n", "line 1: the header is not index<TAB>prediction"),
        (b"0\t1\n1\t0\n", "line 1: the header is not index<TAB>prediction"),
        (b"index\tprediction\r\n0\t1\r\n1\t0\r\n", "line 1: the header is not index<TAB>prediction"),
        (b"index\tprediction\n0\t1\n", "1 answers where the server wants 2"),
        (b"index\tprediction\n0\t1\n1\t0\n2\t0\n", "3 answers where the server wants 2"),
        (b"index\tprediction\n0\t1\n1\t0", "line 3: is cut off"),
        (b"index\tprediction\n1\t1\n0\t0\n", "line 2: the index is '1', not 0"),
        (b"index\tprediction\n0\t1\n1\tequivalent\n", "line 3: the answer is 'equivalent'; there are 0, 1"),
        (b"index\tprediction\n0\t1\n1\t\xff\n", "not UTF-8 (byte 23)"),
    ],
)
def test_what_the_server_would_not_take(content: bytes, problem: str) -> None:
    assert ServerFile("mrpc", "test", 2, "1").problem(content) == problem
