"""Files of one's own: what is in them comes out, or an error names the file, the line and the way out."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from peftlib.data.own_data import name_of_own_data, own_data_of, task_in_table
from peftlib.data.places import OwnData
from peftlib.data.sources import find_task, load_examples
from peftlib.data.tables import read_delimited
from peftlib.data.tasks import METRICS_OF_OWN_DATA, SINGLE_LABEL, TASKS, Task
from peftlib.errors import UserError

KINDS = ("csv", "tsv", "json", "jsonl")
Rows = list[dict[str, object]]


def write(path: Path, rows: Rows) -> Path:
    """The rows, as pandas and everybody else writes them, by the file's name."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def task_of(train: Path, validation: Path | None = None, columns: str | None = None, label: str = "label") -> Task:
    flags = {"train_file": str(train), "validation_file": str(validation or train), "text_column_names": columns}
    return find_task("", own_data_of({**flags, "label_column_name": label}))


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Writes a training file as it stands, and gives what is said of it."""

    def refuse(content: str | bytes, name: str = "mine.csv", **how: str) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(UserError) as caught:
            load_examples(task_of(path, **how), "train")
        message = str(caught.value)
        assert "\n" not in message and str(path) in message
        return message.replace(str(path), name)

    return refuse


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: text.strip())
#: No measured number, and no list, which are refused.
LABEL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5).filter(
    lambda text: text.strip() and not re.fullmatch(r"\s*([-+]?([0-9]+\.[0-9]*|\.[0-9]+)|\[.*\])\s*", text)
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(st.lists(st.tuples(TEXT, TEXT, LABEL), min_size=2, max_size=8))
def test_any_texts_and_classes_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, kind: str, rows: list[tuple[str, str, str]]
) -> None:
    """Quotes, commas, tabs and line ends in them included, in TSV not both: a lost quote would look like that."""
    assume(kind != "tsv" or not any("\t" in text and "\n" in text for row in rows for text in row))
    rows = [*rows, ("a", "b", "one"), ("a", "b", "other")]
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    write(path, [{"id": 7, "first": one, "class": label, "second": other} for one, other, label in rows])
    task = task_of(path, columns="second,first", label="class")
    examples = load_examples(task, "train")
    assert examples.texts == [(other.strip(), one.strip()) for one, other, _ in rows]
    assert [task.labels[label] for label in examples.labels] == [label.strip() for *_, label in rows]
    assert task.labels == tuple(sorted({label.strip() for *_, label in rows}))
    assert examples.source == str(path)


def test_the_classes_are_those_of_the_training_file_in_both_splits(tmp_path: Path) -> None:
    train = write(tmp_path / "mails.csv", [{"text": name, "label": name} for name in ("spam", "ham", "news", "ham")])
    dev = write(tmp_path / "dev.jsonl", [{"label": "spam", "text": "a"}, {"label": "ham", "text": "b"}])
    task = task_of(train, dev)
    assert (task.name, task.labels, task.metrics) == (
        "mails",
        ("ham", "news", "spam"),
        METRICS_OF_OWN_DATA[SINGLE_LABEL],
    )
    assert load_examples(task, "train").labels == [2, 0, 1, 0]
    assert load_examples(task, "validation").labels == [2, 0]
    with pytest.raises(UserError, match="mails is read from files and has no test split"):
        load_examples(task, "test")


def test_a_class_that_was_not_trained_on_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "mine.csv", [{"text": name, "label": name} for name in ("spam", "ham")])
    dev = write(tmp_path / "dev.csv", [{"text": "a", "label": "ham"}, {"text": "a", "label": "spam "}])
    assert load_examples(task_of(train, dev), "validation").labels == [0, 1]
    write(dev, [{"text": "a", "label": "ham"}, {"text": "a", "label": "Spam"}])
    with pytest.raises(UserError) as caught:
        load_examples(task_of(train, dev), "validation")
    said = f"{dev}, line 3: the label 'Spam' is not a class of mine; did you mean spam? (known: ham, spam)"
    assert str(caught.value) == said


def test_only_a_test_file_may_lack_classes(tmp_path: Path) -> None:
    train = write(tmp_path / "mine.csv", [{"text": name, "label": name} for name in ("spam", "ham")])
    bare = write(tmp_path / "bare.csv", [{"text": "a"}])
    task = task_of(train, bare)
    with pytest.raises(UserError, match=r"bare.csv: no column 'label' \(there are: text\)"):
        load_examples(task, "validation")
    assert task.own is not None
    hidden = load_examples(replace(task, own=replace(task.own, test=str(bare))), "test")
    assert (hidden.texts, hidden.labels, hidden.labelled) == ([("a",)], [-1], False)


def test_a_column_of_classes_that_somebody_is_to_fill_in(tmp_path: Path) -> None:
    train = write(tmp_path / "mine.csv", [{"text": name, "label": name} for name in ("spam", "ham")])
    task = task_of(train, write(tmp_path / "new.csv", [{"text": "a", "label": ""}, {"text": "b", "label": " "}]))
    assert task.own is not None
    test = replace(task, own=replace(task.own, test=task.own.validation))
    assert load_examples(test, "test").labels == [-1, -1]
    with pytest.raises(UserError, match=r"new.csv, line 2: the label is empty"):
        load_examples(task, "validation")
    some = write(tmp_path / "some.csv", [{"text": "a", "label": "ham"}, {"text": "b", "label": ""}])
    with pytest.raises(UserError, match=r"some.csv, line 3: the label is empty"):
        load_examples(replace(task, own=replace(task.own, test=str(some))), "test")


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_are_classes_in_their_order(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"stars.{kind}", [{"text": "a", "label": number} for number in (10, 9, -1, 9)])
    task = task_of(path)
    assert task.labels == ("-1", "9", "10")
    assert load_examples(task, "train").labels == [2, 1, 0, 1]


def test_true_and_false_are_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [{"text": "a", "label": True}, {"text": "b", "label": False}])
    assert task_of(path).labels == ("false", "true")


def test_the_index_that_pandas_writes_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes('\ufeff,label,review\r\n0,good,fine\r\n\r\n1,bad,"so, so"\r\n'.encode())
    examples = load_examples(task_of(path), "train")
    assert (examples.texts, examples.labels) == ([("fine",), ("so, so",)], [1, 0])


def test_a_long_text_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", [{"text": "word " * 50_000, "label": name} for name in "ab"])
    assert len(load_examples(task_of(path), "train").texts[0][0]) == 249_999


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("mails.csv", "mails"),
        ("data/Mails 2026, all.tsv", "Mails-2026-all"),
        ("mails/train.csv", "mails"),
        ("mails/Train_v2.json", "mails"),
        ("mrpc.csv", "mrpc-file"),
        ("rotten_tomatoes/train.csv", "rotten_tomatoes-file"),
        ("<b>.csv", "b"),
        ("...csv", "files"),
    ],
)
def test_a_task_is_called_as_its_file_or_folder(path: str, name: str) -> None:
    assert name_of_own_data(OwnData(path, "dev.csv", None, ("label",))) == name
    assert name not in TASKS


def test_data_of_one_s_own_are_no_task_of_the_table_whatever_they_are_called(tmp_path: Path) -> None:
    """A run of an older version may be called as a task that came later; its labels are no indices."""
    assert task_in_table({"task_name": "mnli"}) is TASKS["mnli"]
    assert task_in_table({"task_name": "mnli", "train_file": "mnli/train.csv"}) is None
    assert task_in_table({"task_name": "mnli", "dataset_name": "me/mnli"}) is None
    assert task_in_table({"task_name": "mails"}) is None and task_in_table({}) is None
    path = write(tmp_path / "dev.csv", [{"text": f"so {label}", "label": label} for label in (1, 2, 3)])
    own = OwnData(str(path), str(path), None, ("label",))
    examples = load_examples(Task("mnli", ("1", "2", "3"), METRICS_OF_OWN_DATA[SINGLE_LABEL], own=own), "validation")
    assert examples.labels == [0, 1, 2]


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("fancyzhx/ag_news", "ag_news"), ("stanfordnlp/sst2", "sst2-dataset"), ("data/my mails/", "my-mails")],
)
def test_a_task_is_called_as_its_dataset(dataset: str, name: str) -> None:
    own = own_data_of({"dataset_name": dataset})
    assert own is not None and name_of_own_data(own) == name


def test_data_are_of_one_s_own_when_flags_say_so() -> None:
    assert own_data_of({}) is None
    files = {"train_file": "a.csv", "validation_file": "b.csv"}
    assert own_data_of(files) == OwnData("a.csv", "b.csv", None, ("label",))
    named = {**files, "text_column_names": " one , other", "label_column_name": "stars"}
    assert own_data_of(named) == OwnData("a.csv", "b.csv", ("one", "other"), ("stars",))
    assert own_data_of({"dataset_name": "x/y"}) == OwnData(
        "train", "validation", None, ("label",), "test", ("x/y", None)
    )
    flags = {"dataset_name": "x", "dataset_config_name": "en", "validation_split_name": "dev", "test_split_name": "all"}
    assert own_data_of(flags) == OwnData("train", "dev", None, ("label",), "all", ("x", "en"))
    part = {"validation_split_percentage": 10}
    assert own_data_of({"train_file": "a.csv", **part}) == OwnData("a.csv", "a.csv", None, ("label",), held_out=10)
    assert own_data_of({"dataset_name": "x", **part}) == OwnData(
        "train", "train", None, ("label",), "test", ("x", None), held_out=10
    )


FILES = {"train_file": "a.csv", "validation_file": "a.csv"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"train_file": "a.csv"},
            "--train_file a.csv: requires --validation_file, or --validation_split_percentage 10 to hold out a part of",
        ),
        ({"validation_file": "a.csv"}, "--validation_file requires --train_file or --dataset_name"),
        ({"text_column_names": "text"}, "--text_column_names requires --train_file or --dataset_name"),
        ({"label_column_name": "stars"}, "--label_column_name requires --train_file or --dataset_name"),
        ({"validation_split_percentage": 10}, "--validation_split_percentage requires --train_file or --dataset_name"),
        (
            {**FILES, "validation_split_percentage": 10},
            "--validation_file a.csv: cannot be combined with --validation_split_percentage; leave one of them out",
        ),
        (
            {"dataset_name": "x", "validation_split_name": "dev", "validation_split_percentage": 10},
            "--validation_split_name dev: cannot be combined with --validation_split_percentage; leave one of them",
        ),
        (
            {**FILES, "text_column_names": "one,two,three"},
            "--text_column_names one,two,three: must be one column",
        ),
        ({**FILES, "text_column_names": "one,"}, "--text_column_names one,: must be one column, or two"),
        ({**FILES, "text_column_names": "one,one"}, "--text_column_names one,one: must be one column, or two"),
        ({**FILES, "text_column_names": "one,label"}, "--text_column_names one,label: must be one column"),
        ({"dataset_config_name": "en"}, "--dataset_config_name requires --dataset_name"),
        ({**FILES, "test_split_name": "dev"}, "--test_split_name requires --dataset_name"),
        (
            {**FILES, "dataset_name": "x"},
            "--train_file a.csv: cannot be combined with --dataset_name; leave one of them out",
        ),
    ],
)
def test_flags_that_do_not_go_together(flags: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        own_data_of(flags)
    assert str(caught.value).startswith(message)


def test_where_the_text_is_has_to_be_said(refused: Callable[..., str]) -> None:
    assert refused("id,text,label\n1,a,b\n") == (
        "mine.csv: the columns besides 'label' are 'id', 'text'; name the text column, or two for sentence pairs, in "
        "--text_column_names"
    )
    said = "mine.csv: no column 'label'; did you mean lable? (there are: text, lable); name it in --label_column_name"
    header = ", or write a first line with the columns' names"
    assert refused("text,lable\na,b\n") == said + header
    assert refused('{"text": "a", "lable": "b"}', "mine.jsonl") == said.replace(".csv", ".jsonl")
    assert refused("label\na\n").startswith("mine.csv: the columns besides 'label' are none; name the text column")
    assert refused("text,label\na,b\n", columns="texts").endswith(f"name it in --text_column_names{header}")
    assert refused("text,text,label\na,b,c\n", columns="text") == (
        "mine.csv: more than one column is called 'text'; rename the others"
    )


@pytest.mark.parametrize("text", ["", "  ", None])
def test_missing_texts_and_classes_are_refused(refused: Callable[..., str], text: str | None) -> None:
    good = {"text": "a", "label": "b"}
    for name in good:
        rows = [good, good | {name: text}]
        said = f"the {name} is empty; remove the row"
        assert refused("\n".join(map(json.dumps, rows)), "mine.jsonl") == f"mine.jsonl, line 2: {said}"
        assert refused(json.dumps(rows), "mine.json") == f"mine.json, row 2: {said}"
    assert refused(f'text,label\n"a\nb",c\n{text or ""},c\n') == "mine.csv, line 4: the text is empty; remove the row"
    for rows, which in ((3, " (and 2 more: line 4, line 6)"), (30, " (and 29 more: line 4, line 6, line 8, line 10, ")):
        lines = [*itertools.chain.from_iterable([f"a,{text or ''}", "a,b"] for _ in range(rows))]
        said = refused("\n".join(["text,label", *lines]))
        assert said.startswith(f"mine.csv, line 2: the label is empty; remove the row{which}") and len(said) < 200
        said = refused("\n".join(["text,label", *(f"{text or ''},b" if line != "a,b" else line for line in lines)]))
        assert said.startswith(f"mine.csv, line 2: the text is empty; remove the row{which}")


def test_what_is_no_text_and_no_class(refused: Callable[..., str]) -> None:
    said = (
        "a class must be a name or a whole number: write 1, not 1.0; for numbers to predict, train with --do_regression"
    )
    assert refused('{"text": "a", "label": 0.5}', "mine.jsonl") == f"mine.jsonl, line 1: the label is 0.5; {said}"
    assert refused("text,label\na, 1.50\n") == f"mine.csv, line 2: the label is 1.50; {said}"
    assert len(refused(json.dumps({"text": "a", "label": ["b"] * 9999}), "mine.jsonl")) < 150
    rows = 'text\tlabel\n"hello world\tpos\nfoo "\tneg\nbar\tpos\nbaz\tneg\n'
    assert refused(rows, "mine.tsv").startswith("mine.tsv, line 3: ends a quoted text with tabs and line breaks in it;")
    assert "has semicolons between its columns; write commas" in refused("text;label\na;b\n")
    assert "has semicolons between its columns; write commas" in refused("text;label\na, too;b\n")
    assert "has commas between its columns; write commas in a .csv" in refused("text,label\na,b\n", "mine.tsv")
    assert "the text is not a text (3); write it in quotes" in refused('{"text": 3, "label": "a"}', "mine.jsonl")


def test_one_class_and_as_many_as_rows(refused: Callable[..., str]) -> None:
    said = "mine.csv: at least two classes are needed, 'label' has only 'a'"
    assert refused("text,label\na,a\nb,a\n") == said
    rows = "".join(f"text {number},id{number}\n" for number in range(20))
    assert refused("text,label\n" + rows).startswith("mine.csv: 'label' has 20 classes in 20 rows; name the column")


def test_half_a_character(refused: Callable[..., str]) -> None:
    """Where a text was cut in the middle of an emoji."""
    good = '{"text": "a", "label": "b"}\n'
    said = "mine.jsonl, line 2: the text has half a character at 4; repair it or remove the row"
    assert refused(good + '{"text": "cut \\ud83d", "label": "c"}', "mine.jsonl") == said
    assert "the label has half a character at 0" in refused(good + '{"text": "a", "label": "\\ud83d"}', "mine.jsonl")


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv", "mine.json", "mine.jsonl"])
def test_a_file_without_rows(refused: Callable[..., str], name: str) -> None:
    for content in ("", "\n", "[]" if name == "mine.json" else "\n\n"):
        assert refused(content, name) == f"--train_file {name}: has no rows"


def test_blank_lines_above_a_table_and_bare_delimiters_below_it_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "from_a_spreadsheet.csv"
    path.write_text("\n ,\ntext,label\ngood,1\n,\nbad,0\n,\n\n,\n")
    table = read_delimited(path, ",")
    assert table.columns == ["text", "label"]
    assert [row for _, row in table.rows] == [["good", "1"], ["", ""], ["bad", "0"]], "a gap is a mistake"
    assert [where for where, _ in table.rows] == ["line 4", "line 5", "line 6"]
    path.write_text('text\n"good"\n""\n')
    assert [row for _, row in read_delimited(path, ",").rows] == [["good"], [""]], "a text may be missing"


def test_a_line_of_blanks_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,label\none,a\n  \n\ntwo,b\n \t\n")
    assert load_examples(task_of(path), "train").texts == [("one",), ("two",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.parquet", "", "--train_file mine.parquet: its name must end in .csv, .tsv, .json, .jsonl; name its"),
        ("mine.xlsx", "", "--train_file mine.xlsx: its name must end in .csv, .tsv, .json, .jsonl"),
        ("mine.csv", "text,label\na,b,c\n", "mine.csv, line 2: 3 fields where the header has 2; a text with a comma"),
        ("mine.tsv", "text\tlabel\na\n", "mine.tsv, line 2: 1 fields where the header has 2; a text with a tab"),
        ("mine.csv", 'text,label\n"a,b\n', "mine.csv, line 2: unexpected end of data"),
        ("mine.csv", "text,label\na,é\n".encode("latin-1"), "mine.csv: not UTF-8 (byte 13); convert"),
        ("mine.csv", b"text,label\n" + b"a,b\n" * 30_000 + b"caf\xe9,b\n", "mine.csv: not UTF-8 (byte 120014); co"),
        ("mine.json", '[{"text": "a"},\n}]', "mine.json, line 2: not valid JSON (Expecting value)"),
        ("mine.jsonl", '{"text": "a", "label": "b"}\n{"text"\n', "mine.jsonl, line 2: not valid JSON"),
        ("mine.jsonl", '{"text": "a", "label": "b"}\n3\n', "mine.jsonl, line 2: not an object with columns ('3')"),
        ("mine.json", '{"data": [1]}', "mine.json: has a single object of columns; expected one object per row"),
        ("mine.jsonl", '{"text": "a", "label": "b"}\n{"text": 1, "text": 2}', "mine.jsonl, line 2: text is given twic"),
        ("mine.json", '[{"text": "a", "text": "c"}]', "mine.json: text is given twice; leave one out"),
        ("mine.tsv", 'text\tlabel\n"open\tb\n', "mine.tsv, line 2: unexpected end of data; quotes that belong to a"),
        ("mine.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}\n", "mine.jsonl, line 1: Exceeds the limit (4300 "
         "digits) for integer string conversion: value has 5000 digits; write it as a string"),
        ("mine.json", "[" * 100_000, "mine.json: not a table; expected one object per line"),
    ],
)  # fmt: skip
def test_what_is_no_table(refused: Callable[..., str], name: str, content: str | bytes, message: str) -> None:
    assert refused(content, name).startswith(message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "no.csv", "No such file or directory"),
        (tmp_path, "is a folder; name a file in it"),
        (tmp_path / "a.txt", "must end in"),
    ):
        with pytest.raises(UserError, match=why):
            task_of(path)
    train = write(tmp_path / "mine.csv", [{"text": name, "label": name} for name in "ab"])
    with pytest.raises(UserError, match=r"--validation_file .*/no.json: cannot be read \(No such file"):
        load_examples(task_of(train, tmp_path / "no.json"), "validation")
