"""Two runs side by side, example by example."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from peftlib.arguments import parse_train_arguments
from peftlib.data.sources import find_task, load_examples
from peftlib.data.tasks import TASKS
from peftlib.errors import UserError
from peftlib.evaluation.predictions import PREDICTIONS, save_predictions
from peftlib.reporting.console import CompareConsole
from peftlib.reporting.examples import show_disagreements
from peftlib.reporting.runs import Run, read_run
from tests.conftest import write_glue, write_stsb
from tests.reporting.made_up import make_run


def answering(folder: Path, glue: Path, answers: list[int], task: str = "mrpc") -> Run:
    """Make a run with these predictions for the first examples of a GLUE folder's dev split."""
    limit = len(answers)
    examples = load_examples(TASKS[task], "validation", glue).first(limit)
    words = ("--task_name", task, "--data_dir", glue, "--max_eval_samples", limit)
    run = make_run(folder, *words, fingerprint=examples.fingerprint())
    save_predictions(run, np.eye(2)[answers], np.array(examples.labels))
    return read_run(run)


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    return write_glue(tmp_path / "glue")  # labels 0, 1, 0, 1, ...


def shown(capsys: pytest.CaptureFixture[str], *runs: Run, most: int = 20) -> list[str]:
    show_disagreements(runs, CompareConsole(), most)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_both_sides_with_their_texts(tmp_path: Path, glue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = answering(tmp_path / "a", glue, [0, 1, 1, 1, 0, 0])  # wrong in 2, 5
    b = answering(tmp_path / "b", glue, [1, 1, 0, 1, 0, 0])  # wrong in 0, 5
    lines = shown(capsys, a, b)
    assert lines[0] == "mrpc: both right 3, both wrong 1 of 6"
    assert lines[2] == "a right, b wrong: 1"
    assert lines[3].split("  ")[0] == "example" and lines[3].endswith("predicted by b")
    first, *_ = examples = load_examples(TASKS["mrpc"], "validation", glue).texts
    cells = [cell for cell in lines[4].split("  ") if cell]
    assert [cell.strip() for cell in cells] == ["0", " ‖ ".join(first), "not_equivalent", "equivalent"]
    assert lines[6] == "b right, a wrong: 1"
    assert lines[8].startswith("2") and examples[2][0] in lines[8]


def two_on_files(place: Path, words: list[str], *answers: list[int]) -> list[Run]:
    """Make runs `a` and `b` with these predictions for the validation file that the flags name."""
    examples = load_examples(find_task("mails", parse_train_arguments(words).data.own), "validation")
    runs = []
    for name, predicted in zip("ab", answers, strict=True):
        folder = make_run(place / name, *words, fingerprint=examples.fingerprint())
        save_predictions(folder, np.eye(2)[predicted], np.array(examples.labels))
        runs.append(read_run(folder))
    return runs


def test_the_texts_of_files_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mails.csv"
    path.write_text("id,mail,folder\n1,hello,ham\n2,buy now,spam\n3,see you,ham\n")
    words = ["--train_file", str(path), "--validation_file", str(path), "--text_column_names", "mail"]
    words += ["--label_column_name", "folder"]
    lines = shown(capsys, *two_on_files(tmp_path, words, [0, 1, 0], [0, 0, 0]))
    assert lines[0] == "mails: both right 2, both wrong 0 of 3"
    assert lines[4].startswith("1 ") and "buy now" in lines[4]


def run_on_mails(folder: Path, classes: list[str], answers: list[int], labels: list[int] | None = None) -> Run:
    """Make a run on `folder`'s own training file, and on `mails.csv` beside it, of whose classes it may know more."""
    folder.mkdir()
    train, dev = folder / "train.csv", folder.parent / "mails.csv"
    train.write_text("text,label\n" + "".join(f"a,{name}\n" for name in classes))
    dev.write_text("text,label\nhello,ham\nbuy now,spam\nsee you,ham\n")
    words = ["--train_file", str(train), "--validation_file", str(dev)]
    task = find_task("x", parse_train_arguments(words).data.own)
    examples = load_examples(task, "validation")
    run = make_run(folder / "run", *words, fingerprint=examples.fingerprint())
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"labels": list(task.labels)}))
    save_predictions(run, np.eye(len(classes))[answers], np.array(examples.labels if labels is None else labels))
    return read_run(run)


def test_one_of_the_runs_may_know_more_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = run_on_mails(tmp_path / "v1", ["ham", "spam"], [0, 0, 1])
    more = run_on_mails(tmp_path / "v2", ["ham", "spam", "urgent"], [2, 1, 0])
    assert few.task != more.task, "one's own files are called after their folders"
    for runs in ((few, more), (more, few)):
        rows = [line.split() for line in shown(capsys, *runs)]
        assert ["0", "hello", "ham", "urgent"] in rows
        assert ["1", "buy", "now", "spam", "ham"] in rows and ["2", "see", "you", "ham", "spam"] in rows


def test_equal_numbers_of_other_classes_are_not_the_same_answers(tmp_path: Path) -> None:
    a = run_on_mails(tmp_path / "v1", ["ham", "spam"], [0, 1, 0])
    b = run_on_mails(tmp_path / "v2", ["ham", "spam"], [0, 1, 0])
    b.record["labels"] = ["ham", "urgent"]
    with pytest.raises(UserError, match=r"have other classes \(spam, urgent\)$"):
        show_disagreements([a, b], CompareConsole(), 5)


def test_predictions_for_other_examples_than_recorded_are_not_shown(tmp_path: Path) -> None:
    a = run_on_mails(tmp_path / "v1", ["ham", "spam"], [0, 1, 0])
    for labels in ([0, 1, 1], [0, 1]):
        b = run_on_mails(tmp_path / f"v{labels}", ["ham", "spam"], [0] * len(labels), labels)
        with pytest.raises(UserError, match=r"v.*run are not for the examples in its record; train it again"):
            show_disagreements([a, b], CompareConsole(), 5)


def test_of_several_classes_all_have_to_be_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mails.json"
    mails = [("hello", ["ham"]), ("buy now", ["ad", "spam"]), ("see you", [])]
    path.write_text(json.dumps([{"text": text, "label": label} for text, label in mails]))
    words = ["--train_file", str(path), "--validation_file", str(path)]
    examples = load_examples(find_task("mails", parse_train_arguments(words).data.own), "validation")
    runs = []
    for name, answers in (("a", [[0, 1, 0], [1, 0, 1], [1, 1, 1]]), ("b", [[0, 1, 0], [0, 0, 1], [0, 0, 0]])):
        folder = make_run(tmp_path / name, *words, fingerprint=examples.fingerprint())
        save_predictions(folder, np.array(answers) - 0.5, np.array(examples.labels))
        runs.append(read_run(folder))
    lines = shown(capsys, *runs)
    assert lines[0] == "mails: both right 1, both wrong 0 of 3"
    assert [cell.strip() for cell in lines[4].split("  ") if cell] == ["1", "buy now", "ad|spam", "spam"]
    assert [cell.strip() for cell in lines[8].split("  ") if cell] == ["2", "see you", "–", "ad|ham|spam"]


def test_the_number_of_examples_is_limited(tmp_path: Path, glue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong = [0, 1] * 5, [1, 0] * 5
    lines = shown(capsys, answering(tmp_path / "a", glue, right), answering(tmp_path / "b", glue, wrong), most=3)
    assert "a right, b wrong: 10, the first 3" in lines
    assert [line.split()[0] for line in lines[4:7]] == ["0", "1", "2"]
    assert lines[-1] == "b right, a wrong: 0"


def test_of_scores_both_sides_are_where_one_is_nearer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    glue = write_stsb(tmp_path / "glue")
    examples = load_examples(TASKS["stsb"], "validation", glue).first(4)
    labels = np.array(examples.labels, dtype=np.float32)
    words = ("--task_name", "stsb", "--data_dir", glue, "--max_eval_samples", 4)
    runs = []
    for name, errors in (("a", [0.5, 0.1, -2.0, 0.25]), ("b", [-1.5, 0.2, 1.0, 0.25])):
        folder = make_run(tmp_path / name, *words, fingerprint=examples.fingerprint())
        save_predictions(folder, (labels + np.array(errors, dtype=np.float32))[:, None], labels)
        runs.append(read_run(folder))
    lines = shown(capsys, *runs, most=1)
    assert lines[0] == "stsb: mean absolute error 0.7125 (a) and 0.7375 (b), 4 examples"
    assert lines[2] == "a closer than b: 2, the 1 with the largest lead"
    assert lines[3].split() == ["example", "label", "predicted", "by", "a", "predicted", "by", "b", "text"]
    assert lines[4].split()[:4] == ["0", "3.00", "3.50", "1.50"] and " ‖ ".join(examples.texts[0]) in lines[4]
    assert lines[6] == "b closer than a: 1"
    assert lines[8].split()[:4] == ["2", "4.60", "2.60", "5.60"]


def test_what_cannot_be_shown_is_one_line(tmp_path: Path, glue: Path) -> None:
    a = answering(tmp_path / "a", glue, [0, 1, 1])
    b = answering(tmp_path / "b", glue, [0, 1, 1])
    failed = read_run(make_run(tmp_path / "failed", status="failed"))
    other = answering(tmp_path / "other", glue, [0, 1, 1], task="sst2")
    silent = answering(tmp_path / "silent", glue, [0, 1, 1])
    (silent.folder / PREDICTIONS).unlink()
    for runs, message in (
        ([a], "compares two runs, but 1 were given"),
        ([a, b, other], "compares two runs, but 3 were given"),
        ([a, failed], "failed has no result (failed: the loss is nan"),
        ([a, other], "were not scored on the same examples"),
        ([a, silent], "has no predictions; train it again"),
    ):
        with pytest.raises(UserError) as caught:
            show_disagreements(runs, CompareConsole(), 5)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_data_that_has_changed_since_is_not_shown(tmp_path: Path, glue: Path) -> None:
    runs = [answering(tmp_path / name, glue, [0, 1, 1]) for name in "ab"]
    path = glue / "MRPC" / "dev.tsv"
    path.write_text(path.read_text(encoding="utf-8-sig").replace("He said", "She said"), encoding="utf-8")
    with pytest.raises(UserError, match=r"has changed since .*a was scored on it"):
        show_disagreements(runs, CompareConsole(), 5)
    assert json.loads((runs[0].folder / "run.json").read_text())["status"] == "finished"


def test_texts_keep_to_their_line_and_colour_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mails.json"
    texts = ["one\nline", "\x1b[31mred\x1b[0m", "tab\there"]
    path.write_text(json.dumps([{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]))
    words = ["--train_file", str(path), "--validation_file", str(path)]
    lines = shown(capsys, *two_on_files(tmp_path, words, [0, 1, 0], [1, 0, 1]))
    assert all(any(text in line for line in lines) for text in ("one line", "[31mred [0m", "tab here"))
    assert "\x1b" not in "".join(lines)
