"""`scripts/predict.py` and `scripts/export.py` on a run that `scripts/train.py` has left."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peftlib.evaluation.predictions import load_predictions
from tests.conftest import ROOT, write_glue, write_stsb
from tests.launching import ends_of, run_in_two, run_script, start_two

pytestmark = pytest.mark.launch

PREDICT, EXPORT = ROOT / "scripts" / "predict.py", ROOT / "scripts" / "export.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    """A finished run of LoRA on MRPC, whose folder beside it holds a test split without labels."""
    place = tmp_path_factory.mktemp("predict") / "work"
    glue = write_glue(place / "glue", 24, 11)
    rows = (glue / "MRPC" / "dev.tsv").read_text(encoding="utf-8-sig").splitlines()
    hidden = [line.partition("\t")[2] for line in rows]
    (glue / "MRPC" / "test.tsv").write_text("\n".join(hidden) + "\n", encoding="utf-8")
    words = ["--model_name_or_path", tiny_folder(), "--task_name", "mrpc", "--data_dir", glue, "--method", "lora"]
    words += ["--num_train_epochs", 1, "--mixed_precision", "no", "--output_dir", "run", "--num_cpu_threads", 1]
    done = run_script(ROOT / "scripts" / "train.py", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "run"


def test_adalora_s_best_state_is_what_two_processes_saved(run: Path, tiny_folder: Callable[..., Path]) -> None:
    """With a rate of 0.3 the best state is from an early update, in which few triplets have been left out."""
    words = ["--model_name_or_path", tiny_folder(), "--task_name", "mrpc", "--data_dir", "glue", "--method", "adalora"]
    words += ["--max_train_steps", 12, "--per_device_train_batch_size", 4, "--eval_steps", 1, "--learning_rate", 0.3]
    words += ["--mixed_precision", "no", "--output_dir", "adalora", "--num_cpu_threads", 1]
    run_in_two(ROOT / "scripts" / "train.py", *words, cwd=run.parent)
    folder = run.parent / "adalora"
    done = run_script(PREDICT, "adalora", "--split", "validation", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    before, after = load_predictions(folder), load_predictions(folder / "predictions" / "validation")
    assert before is not None and after is not None
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    assert json.loads((folder / "all_results.json").read_text())["best_eval_step"] < 12


def answers(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_processes_answer_what_the_run_was_scored_on_as_it_did(run: Path) -> None:
    words = ["run", "--split", "validation", "--per_device_eval_batch_size", 3]
    (code, output, errors), (other_code, of_other, _) = ends_of(start_two(PREDICT, *words, cwd=run.parent))
    assert code == other_code == 0, errors
    folder = run / "predictions" / "validation"
    before, after = load_predictions(run), load_predictions(folder)
    assert before is not None and after is not None
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    assert after[1].tolist() == before[1].tolist()
    trained = json.loads((run / "all_results.json").read_text())
    scored = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    for name in ("accuracy", "f1", "loss"):
        assert scored[f"eval_{name}"] == pytest.approx(trained[f"best_eval_{name}"], abs=1e-6)
    assert (scored["eval_samples"], scored["run"], scored["split"]) == (11, str(run), "validation")
    assert output.count("accuracy:") == 1 and of_other == "", "only the main process speaks"
    written = {path.name for path in folder.iterdir()}
    assert written == {
        "results.json", "predictions.csv", "predictions.safetensors", "classes.csv", "confusion.csv"
    }  # fmt: skip
    with (folder / "classes.csv").open(newline="", encoding="utf-8") as file:
        classes = {row["class"]: row for row in csv.DictReader(file)}
    assert classes["equivalent"]["examples"] == str(before[1].sum())
    assert float(classes["equivalent"]["f1"]) == pytest.approx(scored["eval_f1"])
    table = next(line.split() for line in output.splitlines() if line.startswith("equivalent"))
    assert table == ["equivalent", str(before[1].sum()), classes["equivalent"]["predicted"], *table[3:]]
    assert [row["label"] for row in answers(folder)] == [("not_equivalent", "equivalent")[i] for i in before[1]]
    lines = (run.parent / "glue" / "MRPC" / "dev.tsv").read_text(encoding="utf-8-sig").splitlines()[1:]
    texts = [line.split("\t")[3:] for line in lines]
    assert [[row["first text"], row["second text"]] for row in answers(folder)] == texts


def test_hidden_labels_become_the_file_that_glue_s_server_takes(run: Path) -> None:
    done = run_script(PREDICT, "run", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    folder = run / "predictions" / "test"
    found, expected = load_predictions(folder), load_predictions(run)
    assert found is not None and expected is not None
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)  # it is the dev split without its labels
    classes = found[0].argmax(axis=1).tolist()
    lines = (folder / "MRPC.tsv").read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{place}\t{answer}" for place, answer in enumerate(classes))]
    rows = answers(folder)
    assert [row["prediction"] for row in rows] == [("not_equivalent", "equivalent")[answer] for answer in classes]
    each = ["probability of not_equivalent", "probability of equivalent"]
    assert list(rows[0]) == ["index", "prediction", "probability", *each, "first text", "second text"]
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    assert not [name for name in json.loads((folder / "results.json").read_text()) if "accuracy" in name]


def test_a_file_of_one_s_own_in_place_of_a_split(run: Path) -> None:
    rows = [{"a": f"He said {i} .", "b": f"She ran {i} .", "verdict": ("equivalent", 0)[i % 2]} for i in range(5)]
    (run.parent / "mine.json").write_text(json.dumps(rows))
    words = ["run", "--test_file", "mine.json", "--text_column_names", "a,b", "--label_column_name", "verdict"]
    done = run_script(PREDICT, *words, "--output_dir", "elsewhere", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "examples: 5 (mine.json)" in done.stdout
    expected = [("equivalent", "not_equivalent")[i % 2] for i in range(5)]
    assert [row["label"] for row in answers(run.parent / "elsewhere")] == expected


def test_a_text_is_answered_and_nothing_written(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = run_script(PREDICT, "run", "--text", "He said 1 .", "--text_pair", " She ran 1 .", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (run.parent / "one.json").write_text(json.dumps([{"sentence1": "He said 1 .", "sentence2": "She ran 1 ."}]))
    run_script(PREDICT, "run", "--test_file", "one.json", cwd=run.parent)
    (row,) = answers(run / "predictions" / "one")
    assert f"class: {row['prediction']}\n" in done.stdout
    assert f"probability of {row['prediction']}: {float(row['probability']):.4f}\n" in done.stdout


def test_any_number_of_classes_from_training_to_answers(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    place = tmp_path / "work"
    place.mkdir()
    rows = [{"text": f"He said {i} .", "label": [name for name, by in (("even", 2), ("third", 3)) if i % by == 0]}
            for i in range(24)]  # fmt: skip
    (place / "train.json").write_text(json.dumps(rows))
    (place / "new.csv").write_text("text\n" + "".join(f"She ran {i} .\n" for i in range(5)))
    words = ["--model_name_or_path", tiny_folder(), "--train_file", "train.json", "--validation_file", "train.json"]
    words += ["--method", "bitfit", "--num_train_epochs", 2, "--mixed_precision", "no", "--num_cpu_threads", 1]
    done = run_script(ROOT / "scripts" / "train.py", *words, "--output_dir", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "classes, any number of them: 2: even, third" in done.stdout and "best micro f1" in done.stdout
    logits, labels = load_predictions(place / "run") or pytest.fail()
    assert labels.tolist() == [[int(i % 2 == 0), int(i % 3 == 0)] for i in range(24)]
    results = json.loads((place / "run" / "all_results.json").read_text())
    hits, marked = ((logits > 0) & (labels > 0)).sum(), (logits > 0).sum() + labels.sum()
    assert results["best_eval_micro_f1"] == pytest.approx(2 * hits / marked)

    done = run_script(PREDICT, "run", "--test_file", "new.csv", cwd=place)
    assert done.returncode == 0, done.stderr
    found = answers(place / "run" / "predictions" / "new")
    assert list(found[0]) == ["index", "prediction", "probability of even", "probability of third", "text"]
    stock = AutoPeftModelForSequenceClassification.from_pretrained(
        place / "run", id2label={0: "even", 1: "third"}, problem_type="multi_label_classification"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "run")
    with torch.inference_mode():
        expected = stock(**tokenizer([f"She ran {i} ." for i in range(5)], return_tensors="pt")).logits.sigmoid()
    for row, (even, third) in zip(found, expected.tolist(), strict=True):
        assert float(row["probability of even"]) == pytest.approx(even, abs=1e-5)
        assert row["prediction"] == "|".join(name for name, share in (("even", even), ("third", third)) if share > 0.5)


def test_sts_b_from_training_to_the_file_that_glue_s_server_takes(
    tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    """A test split without scores, answers between 0 and 5 and beyond, and a model that stock PEFT loads."""
    place = tmp_path / "work"
    glue = write_stsb(place / "glue")
    words = ["--model_name_or_path", tiny_folder(), "--task_name", "stsb", "--data_dir", glue, "--method", "bitfit"]
    words += ["--num_train_epochs", 2, "--mixed_precision", "no", "--output_dir", "run", "--num_cpu_threads", 1]
    done = run_script(ROOT / "scripts" / "train.py", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "scores: 0 to 5" in done.stdout and "best pearson" in done.stdout
    results = json.loads((place / "run" / "all_results.json").read_text(), parse_constant=pytest.fail)
    logits, labels = load_predictions(place / "run") or pytest.fail()
    assert (logits.shape, labels.dtype) == ((18, 1), np.float32)
    assert results["best_eval_pearson"] == pytest.approx(np.corrcoef(logits[:, 0], labels)[0, 1], abs=1e-5)
    assert results["best_eval_loss"] == pytest.approx(((logits[:, 0] - labels) ** 2).mean(), rel=1e-5)
    assert results["train_loss"] > 1  # of scores around 2.5, from a model that begins around 0

    done = run_script(PREDICT, "run", cwd=place)
    assert done.returncode == 0, done.stderr
    folder = place / "run" / "predictions" / "test"
    answers_, hidden = load_predictions(folder) or pytest.fail()
    assert hidden.shape == (7,) and np.isnan(hidden).all()
    lines = (folder / "STS-B.tsv").read_text().splitlines()
    assert lines == [
        "index\tprediction",
        *(f"{i}\t{min(max(x, 0), 5):.3f}" for i, (x,) in enumerate(answers_.tolist())),
    ]
    assert [row["prediction"] for row in answers(folder)] == [str(np.float32(x)) for (x,) in answers_.tolist()]

    model = AutoPeftModelForSequenceClassification.from_pretrained(place / "run", num_labels=1).eval()
    with (glue / "STS-B" / "dev.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [[row[name] for row in rows] for name in ("sentence1", "sentence2")]
    with torch.inference_mode():
        again = model(**AutoTokenizer.from_pretrained(place / "run")(*texts, padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(again.numpy(), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "0 runs given: name one run's folder, as in predict.py outputs/my-run"),
        (["nowhere"], "nowhere: contains no run (no run.json in it); name a finished run's folder"),
        (
            ["run", "--split", "train"],
            "--split train: unknown (known: validation, test, validation_mismatched, test_mismatched, ax)",
        ),
        (["run", "--text", "He said"], "--text: mrpc has sentence pairs; add --text_pair"),
        (["run", "--text_pair", "He said"], "--text_pair requires --text"),
        (["run", "--text", "a", "--text=b"], "--text: takes one text; write several into a file for --test_file"),
        (["run", "--text", "a", "--split", "validation"], "--split validation: cannot be combined with --text"),
        (["run", "--label_column_name", "x"], "--label_column_name requires --test_file"),
        (["run", "--test_file", "x.csv", "--data_dir", "glue"], "--data_dir glue: cannot be combined with --test_file"),
        (
            ["run", "--split", "validation", "--output_dir", "run"],
            "run: holds files of another kind; name",
        ),
        (["run", "--test_file", "x.csv"], "--test_file x.csv: cannot be read (No such file or directory)"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(run: Path, words: list[str], message: str) -> None:
    done = run_script(PREDICT, *words, cwd=run.parent)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {message}")


def test_an_exported_run_answers_in_transformers_alone(run: Path) -> None:
    done = run_script(EXPORT, "run", "--output_dir", "plain", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run as a plain checkpoint in fp32: plain\n"
    plain = run.parent / "plain"
    model, report = AutoModelForSequenceClassification.from_pretrained(plain, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.id2label == {0: "not_equivalent", 1: "equivalent"}
    with (run.parent / "glue" / "MRPC" / "dev.tsv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [[row[name] for row in rows] for name in ("#1 String", "#2 String")]
    with torch.inference_mode():
        logits = model(**AutoTokenizer.from_pretrained(plain)(*texts, padding=True, return_tensors="pt")).logits
    expected = load_predictions(run)
    assert expected is not None
    np.testing.assert_allclose(logits.numpy(), expected[0], atol=1e-5)
    # What is there is not replaced.
    again = run_script(EXPORT, "run", "--output_dir", "plain", cwd=run.parent)
    assert (again.returncode, again.stderr) == (
        2,
        "error: --output_dir plain: holds files already; name another folder\n",
    )


def test_an_export_in_half_precision(run: Path) -> None:
    done = run_script(EXPORT, "run", "--dtype", "bf16", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    kinds = {tensor.dtype for tensor in load_file(run / "model" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    assert "# mrpc · LoRA r=" in (run / "model" / "README.md").read_text()
