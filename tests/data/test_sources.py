"""Rows from the package and from GLUE folders: the right ones, or an error that names file and line."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlib.data import dataset_tables
from peftlib.data.sources import Examples, load_examples
from peftlib.data.tasks import SPLITS, TASKS
from peftlib.errors import UserError
from tests.conftest import GLUE, needs_glue, write_stsb


@pytest.fixture(scope="module")
def rotten():
    return {split: load_examples(TASKS["rotten_tomatoes"], split) for split in SPLITS}


def test_rotten_tomatoes_is_divided_80_10_10(rotten):
    assert {split: len(examples) for split, examples in rotten.items()} == {
        "train": 6826,
        "validation": 852,
        "test": 852,
    }


def test_rotten_tomatoes_is_stratified(rotten):
    for split, each in (("train", 3413), ("validation", 426), ("test", 426)):
        assert Counter(rotten[split].labels) == {0: each, 1: each}


def test_no_sentence_is_in_two_splits_or_twice_in_one(rotten):
    texts = list(itertools.chain.from_iterable(examples.texts for examples in rotten.values()))
    assert len(set(texts)) == len(texts) == 8530


def test_the_split_is_fixed(rotten):
    assert {split: examples.fingerprint()[:16] for split, examples in rotten.items()} == {
        "train": "22d48874f19804c2",
        "validation": "3ebedd81773b33c0",
        "test": "569079baf9dd48bb",
    }


def test_the_first_rows_are_of_both_classes(rotten):
    for examples in rotten.values():
        assert 35 <= sum(examples.first(100).labels) <= 65


def test_the_first_rows_are_the_first(rotten):
    some = rotten["train"].first(3)
    assert (some.texts, some.labels) == (rotten["train"].texts[:3], rotten["train"].labels[:3])
    assert rotten["train"].first(None) is rotten["train"]
    assert len(rotten["test"].first(10**6)) == 852


# ── Fingerprints ─────────────────────────────────────────────────────────────────────────────────────────────────

ROW = st.tuples(st.lists(st.text("ab0123", max_size=3), min_size=1, max_size=3).map(tuple), st.integers(0, 3))
ROWS = st.lists(ROW, max_size=4)


def examples_of(rows, source="somewhere"):
    return Examples([text for text, _ in rows], [label for _, label in rows], source)


@given(ROWS, ROWS)
def test_fingerprints_are_equal_exactly_for_equal_rows(one, other):
    assert (examples_of(one).fingerprint() == examples_of(other, "elsewhere").fingerprint()) == (one == other)


@given(st.text(min_size=1), st.text(), st.data())
def test_a_fingerprint_notices_a_boundary_that_moved(left, right, data):
    cut = data.draw(st.integers(0, len(left) - 1))
    moved = (left[:cut], left[cut:] + right)
    assert examples_of([((left, right), 0)]).fingerprint() != examples_of([(moved, 0)]).fingerprint()
    pair, two = [((left, "1"), 0)], [((left,), 1)]
    assert examples_of(pair).fingerprint() != examples_of(two).fingerprint()


def test_pairs_are_not_taken_for_single_sentences_with_the_same_words():
    pairs = [(("a", "1"), 3), (("5", "2"), 4)]
    singles = [(("a",), 1), (("3",), 5), (("2",), 4)]
    assert examples_of(pairs).fingerprint() != examples_of(singles).fingerprint()


# ── GLUE folders ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sst2(tmp_path):
    """Writes SST-2's training file and reads it."""

    def load(content, split="train"):
        (tmp_path / "SST-2").mkdir(exist_ok=True)
        (tmp_path / "SST-2" / "train.tsv").write_bytes(content.encode() if isinstance(content, str) else content)
        return load_examples(TASKS["sst2"], split, tmp_path)

    return load


def test_a_byte_order_mark_is_no_part_of_the_first_column(glue_folder):
    folder = glue_folder(train=40, dev=10)
    assert (folder / "MRPC" / "train.tsv").read_bytes().startswith(b"\xef\xbb\xbf")
    train, dev = (load_examples(TASKS["mrpc"], split, folder) for split in ("train", "validation"))
    assert (len(train), len(dev)) == (40, 10)
    assert train.labels[:4] == [0, 1, 0, 1]


def test_quotes_quote_nothing(glue_folder):
    train = load_examples(TASKS["mrpc"], "train", glue_folder(train=3))
    assert train.texts == [(f'He said " {i} .', f"She {'said' if i % 2 else 'ran'} {i} .") for i in range(3)]


def test_an_opening_quote_does_not_swallow_tabs_and_lines(sst2):
    examples = sst2('sentence\tlabel\n"never closed\t0\nfine "\t1\n')
    assert examples.texts == [('"never closed',), ('fine "',)]
    assert examples.labels == [0, 1]


def test_columns_are_found_by_name(sst2):
    examples = sst2("label\tid\tsentence\n1\t7\tgood\n")
    assert (examples.texts, examples.labels) == ([("good",)], [1])


def test_glue_keeps_the_labels_of_its_test_splits_to_itself(tmp_path):
    (tmp_path / "SST-2").mkdir()
    path = tmp_path / "SST-2" / "test.tsv"
    path.write_text("index\tsentence\n0\tgood\n1\tbad\n")
    hidden = load_examples(TASKS["sst2"], "test", tmp_path)
    assert (hidden.texts, hidden.labels, hidden.labelled) == ([("good",), ("bad",)], [-1, -1], False)
    path.write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    known = load_examples(TASKS["sst2"], "test", tmp_path)
    assert (known.labels, known.labelled) == ([1, 0], True)
    path.rename(path.with_name("dev.tsv")).write_text("index\tsentence\n0\tgood\n")
    with pytest.raises(UserError, match="no column 'label'"):
        load_examples(TASKS["sst2"], "validation", tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_spaces_and_line_ends_do_not_matter(sst2, end):
    examples = sst2(end.join(["sentence\tlabel", " good \t1", "", "bad\t0 ", "", ""]))
    assert (examples.texts, examples.labels) == ([("good",), ("bad",)], [1, 0])


ANY_SENTENCE = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\t\r\n"), min_size=1).filter(
    lambda text: text.strip()
)


@given(st.lists(st.tuples(ANY_SENTENCE, st.integers(0, 1)), min_size=1))
def test_any_sentence_without_tabs_and_line_ends_survives_the_file(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp() / "any-glue"
    (folder / "SST-2").mkdir(parents=True, exist_ok=True)
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
    (folder / "SST-2" / "dev.tsv").write_text("\n".join(lines), encoding="utf-8")
    examples = load_examples(TASKS["sst2"], "validation", folder)
    assert examples.texts == [(text.strip(),) for text, _ in rows]
    assert examples.labels == [label for _, label in rows]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sentence\tlabels\ngood\t1\n", "no column 'label'; did you mean labels? (there are: sentence, labels)"),
        ("", "no column 'sentence' (there are: none)"),
        ("sentence\tlabel\ngood\t1\nbad\t2\n", "line 3: the label is '2'; sst2 has the labels 0, 1"),
        ("sentence\tlabel\ngood\t-1\n", "line 2: the label is '-1'"),
        ("sentence\tlabel\ngood\t\n", "line 2: the label is ''"),
        ("sentence\tlabel\ngood\t01\n", "line 2: the label is '01'"),
        ("sentence\tlabel\n", "the train split of sst2 has no rows"),
        ("sentence\tlabel\n\n\ngood\t1\tmore\n", "line 4: 3 fields where the header has 2"),
        ("sentence\tlabel\ngood 1\n", "line 2: 1 fields where the header has 2"),
        ("sentence\tlabel\na\rb\t1\n", "line 2"),
        ("sentence\tlabel\n" + "x" * 200_000 + "\t1\n", "line 2: field larger than field limit"),
        (b"sentence\tlabel\ncaf\xe9\t1\n", "not UTF-8 (byte "),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(sst2, tmp_path, content, expected):
    with pytest.raises(UserError) as caught:
        sst2(content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "SST-2" / "train.tsv"))
    assert expected in message
    assert "\n" not in message


def test_a_missing_file_is_named(sst2, tmp_path):
    with pytest.raises(UserError, match=r"dev\.tsv is missing; sst2 is read from SST-2/\*\.tsv"):
        sst2("sentence\tlabel\ngood\t1\n", "validation")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_examples(TASKS["mrpc"], "train", tmp_path / "nowhere")


def test_a_packaged_task_takes_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"leave --data_dir out, or choose one of GLUE's tasks with --task_name"):
        load_examples(TASKS["rotten_tomatoes"], "train", tmp_path)


def test_a_split_that_the_task_has_not():
    with pytest.raises(UserError, match=r"--split test_mismatched: mrpc has no such split \(known: train, valid"):
        load_examples(TASKS["mrpc"], "test_mismatched")


@pytest.mark.parametrize("task", ["mrpc", "sst2"])
def test_an_unreachable_hub_names_both_ways_out(task):
    with pytest.raises(UserError) as caught:
        load_examples(TASKS[task], "train")
    message = str(caught.value)
    assert message.startswith(f"--task_name {task}: the Hugging Face Hub cannot be reached")
    assert f"--data_dir DIR with {TASKS[task].glue.folder}/" in message
    assert "--task_name rotten_tomatoes (packaged)" in message


def test_the_hub_s_rows_are_those_of_glue_s_folders(sst2, monkeypatch):
    """Its SST-2 has a blank behind every sentence."""
    rows = {"sentence": ["hide new secretions ", "so good "], "label": [0, 1]}
    monkeypatch.setattr(dataset_tables, "hub_access", lambda *words, **options: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **options: rows)
    hub, folder = load_examples(TASKS["sst2"], "train"), sst2("sentence\tlabel\nhide new secretions \t0\nso good \t1\n")
    assert hub.texts == folder.texts and hub.fingerprint() == folder.fingerprint()
    rows["label"] = [-1, -1]
    assert not load_examples(TASKS["sst2"], "test").labelled
    with pytest.raises(UserError, match="has hidden labels"):
        load_examples(TASKS["sst2"], "train")


#: Per task the header of its files in GLUE's download, a row with its class, and what comes out; then the test split's.
GLUE_ROWS = {
    "cola": (None, "gj04\t0\t*\tThey made him the.", ("They made him the.",), 0, "index\tsentence"),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "133\t213\t214\tHow is it?\tWhat is it like?\t1",
        ("How is it?", "What is it like?"),
        1,
        "id\tquestion1\tquestion2",
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t31193\t31193n\tgovernment\t( A )\t( B )\t(ROOT A)\t(ROOT B)\tIt rains.\tIt is dry.\tneutral\tcontradiction",
        ("It rains.", "It is dry."),
        2,
        "index\tsentence1\tsentence2",
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        "0\tWhen?\tIt was in 1066.\tentailment",
        ("When?", "It was in 1066."),
        0,
        "index\tquestion\tsentence",
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        "0\tIt rains.\tIt is dry.\tnot_entailment",
        ("It rains.", "It is dry."),
        1,
        "index\tsentence1\tsentence2",
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel",
        "0\tIt fell.\tThe cup fell.\t1",
        ("It fell.", "The cup fell."),
        1,
        "index\tsentence1\tsentence2",
    ),
}


@pytest.mark.parametrize("name", GLUE_ROWS)
def test_every_task_of_glue_as_its_files_are_written(tmp_path, name):
    header, row, texts, label, test_header = GLUE_ROWS[name]
    task = TASKS[name]
    folder = tmp_path / task.glue.folder
    folder.mkdir()
    known = "\n".join([*([header] if header else []), row, ""])
    hidden = "\n".join([test_header, "\t".join(["0", *texts]), ""])
    for split in task.splits:
        path = folder / f"{split.replace('validation', 'dev')}.tsv"
        if name == "mnli" and split in ("validation", "test"):
            path = path.with_name(f"{path.stem}_matched.tsv")
        if split == "ax":
            path = tmp_path / "diagnostic" / "diagnostic.tsv"
            path.parent.mkdir()
        path.write_text(known if split in ("train", "validation", "validation_mismatched") else hidden)
    for split in task.splits:
        examples = load_examples(task, split, tmp_path)
        labelled = split in ("train", "validation", "validation_mismatched")
        assert (examples.texts, examples.labelled) == ([texts], labelled)
        assert examples.labels == [label if labelled else -1]


def test_diagnostics_that_are_missing_are_named_with_their_place(tmp_path):
    (tmp_path / "MNLI").mkdir()
    with pytest.raises(UserError) as caught:
        load_examples(TASKS["mnli"], "ax", tmp_path)
    path = tmp_path / "diagnostic" / "diagnostic.tsv"
    assert str(caught.value) == f"--data_dir {tmp_path}: {path} is missing; the split ax is read from diagnostic/*.tsv"
    with pytest.raises(UserError, match=r"--split ax: rte has no such split \(known: train, validation, test\)"):
        load_examples(TASKS["rte"], "ax", tmp_path)


def test_sts_b_has_scores_in_single_precision_and_hides_those_of_its_test_split(tmp_path):
    write_stsb(tmp_path, train=5, dev=3, test=4)
    train, dev, test = (load_examples(TASKS["stsb"], split, tmp_path) for split in SPLITS)
    assert [len(train), len(dev), len(test)] == [5, 3, 4]
    assert dev.texts[1] == ("cloud tiger window music garden", "cloud tiger window music stone")
    assert dev.labels == [float(np.float32(score)) for score in (3.0, 3.8, 4.6)] and dev.labelled
    assert all(map(math.isnan, test.labels)) and not test.labelled
    assert all(isinstance(label, float) for examples in (train, dev, test) for label in examples.labels)
    (tmp_path / "STS-B" / "test.tsv").write_text((tmp_path / "STS-B" / "dev.tsv").read_text())  # as others have it
    assert load_examples(TASKS["stsb"], "test", tmp_path).labels == dev.labels


def test_the_hub_s_sts_b_is_that_of_glue_s_folder(tmp_path, monkeypatch):
    folder = load_examples(TASKS["stsb"], "train", write_stsb(tmp_path))
    first, second = zip(*folder.texts, strict=True)
    rows = {"sentence1": [f"{text} " for text in first], "sentence2": [*second], "label": folder.labels}
    monkeypatch.setattr(dataset_tables, "hub_access", lambda *words, **options: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **options: rows)
    assert load_examples(TASKS["stsb"], "train").fingerprint() == folder.fingerprint()
    rows["label"] = [-1.0] * len(folder)
    assert not load_examples(TASKS["stsb"], "test").labelled
    with pytest.raises(UserError, match="has hidden labels"):
        load_examples(TASKS["stsb"], "validation")


@pytest.mark.parametrize("written", ["", "5.2", "-1", "nan", "high"])
def test_what_is_no_score_of_sts_b_is_refused_with_its_line(tmp_path, written):
    path = write_stsb(tmp_path) / "STS-B" / "dev.tsv"
    path.write_text(path.read_text().replace("\t3.800\n", f"\t{written}\n", 1))
    with pytest.raises(UserError) as caught:
        load_examples(TASKS["stsb"], "validation", tmp_path)
    assert str(caught.value) == f"{path}, line 3: the score is {written!r}; stsb has scores from 0 to 5"


def test_rows_of_qqp_that_a_line_break_divides_are_left_out_as_the_hub_does(tmp_path):
    header, row, texts, label, _ = GLUE_ROWS["qqp"]
    (tmp_path / "QQP").mkdir()
    broken = row.replace("How is it?", "How\nis it?")
    (tmp_path / "QQP" / "train.tsv").write_text("\n".join([header, row, broken, row, ""]))
    examples = load_examples(TASKS["qqp"], "train", tmp_path)
    assert (examples.texts, examples.labels) == ([texts] * 2, [label] * 2)


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("rte", "not_entailment", "0", "line 2: the label is '0'; rte has the labels entailment, not_entailment"),
        ("mnli", "contradiction", "-", "gold_label is '-'; mnli has the labels entailment, neutral, contradiction"),
        ("cola", "\t0\t", "\tlabel\t", "line 1: the label is 'label'; cola has the labels 0, 1"),
        ("cola", "\t*\t", "\t", "line 1: 3 fields where there are 4 columns"),
    ],
)
def test_classes_are_written_as_glue_writes_them(tmp_path, name, old, new, expected):
    header, row, *_ = GLUE_ROWS[name]
    task = TASKS[name]
    (tmp_path / task.glue.folder).mkdir()
    path = tmp_path / task.glue.folder / "train.tsv"
    path.write_text("\n".join([*([header] if header else []), row.replace(old, new), ""]))
    with pytest.raises(UserError) as caught:
        load_examples(task, "train", tmp_path)
    assert str(caught.value).startswith(str(path)) and expected in str(caught.value)


def test_the_hub_calls_mnli_s_splits_matched(monkeypatch):
    asked = []

    def load_dataset(path, config, *, split, **options):
        asked.append((path, config, split))
        return {"premise": ["a"], "hypothesis": ["b"], "label": [-1 if split.startswith("test") else 2]}

    monkeypatch.setattr(dataset_tables, "hub_access", lambda *words, **options: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for split in TASKS["mnli"].splits:
        examples = load_examples(TASKS["mnli"], split)
        assert (examples.texts, examples.labelled) == ([("a", "b")], "test" not in split and split != "ax")
        assert examples.source == f"nyu-mll/glue ({'ax' if split == 'ax' else 'mnli'})"
    names = ["train", "validation_matched", "test_matched", "validation_mismatched", "test_mismatched"]
    assert asked == [*(("nyu-mll/glue", "mnli", name) for name in names), ("nyu-mll/glue", "ax", "test")]


@needs_glue
@pytest.mark.parametrize(
    ("task", "split", "count", "positive"),
    [
        ("mrpc", "train", 3668, 2474),
        ("mrpc", "validation", 408, 279),
        ("sst2", "train", 67349, 37569),
        ("sst2", "validation", 872, 444),
    ],
)
def test_the_real_glue_files_have_their_known_sizes(task, split, count, positive):
    examples = load_examples(TASKS[task], split, GLUE)
    assert (len(examples), sum(examples.labels)) == (count, positive)
    assert all(all(text) for text in examples.texts)


@needs_glue
def test_mrpcs_first_row_is_whole():
    first = load_examples(TASKS["mrpc"], "train", GLUE).texts[0]
    assert first == (
        'Amrozi accused his brother , whom he called " the witness " , of deliberately distorting his evidence .',
        'Referring to him as only " the witness " , Amrozi accused his brother of deliberately distorting his '
        "evidence .",
    )
