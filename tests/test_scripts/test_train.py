"""`scripts/train.py` as its users start it: what it leaves behind, and what it says to wrong input."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

from peftlib.acceleration import cpu_calls
from peftlib.evaluation.predictions import load_predictions
from peftlib.strategies import STRATEGIES
from tests.conftest import ROOT, write_glue
from tests.launching import launch, run_python, run_script

pytestmark = pytest.mark.launch

SCRIPT = ROOT / "scripts" / "train.py"
TRAIN, DEV = 37, 11  # neither is a multiple of any batch size below
STEPS = 10  # two epochs of ceil(37 / 8) updates
RESULTS = {
    "eval_accuracy", "eval_f1", "eval_loss", "best_eval_accuracy", "best_eval_f1", "best_eval_loss", "train_loss",
    "train_runtime", "train_samples_per_second", "eval_samples_per_second", "trainable_params", "total_params",
    "trainable_ratio", "global_step", "epoch",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    done: subprocess.CompletedProcess[str]
    folder: Path

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(), parse_constant=pytest.fail)

    @property
    def metrics(self) -> list[dict[str, float]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line, parse_constant=pytest.fail) for line in lines]

    def of(self, name: str) -> list[float]:
        return [line[name] for line in self.metrics if name in line]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    """A folder with `model` (tiny, with dropout, which BitFit turns off) and `glue`, and an empty `work` to run in."""
    folder = tmp_path_factory.mktemp("train")
    shutil.copytree(tiny_folder(), folder / "model")
    write_glue(folder / "glue", TRAIN, DEV)
    (folder / "work").mkdir()
    return folder


def mrpc(place: Path, *words: object) -> list[object]:
    return ["--model_name_or_path", place / "model", "--task_name", "mrpc", "--data_dir", place / "glue", *words]


# Batches of 8 in both: the same updates.
SAME = ("--num_train_epochs", 2, "--logging_steps", 1, "--mixed_precision", "no", "--seed", 5, "--num_cpu_threads", 1)


@pytest.fixture(scope="module")
def one(place: Path) -> Run:
    words = mrpc(place, *SAME, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps=2")
    return Run(launch("cpu", SCRIPT, *words, "--output_dir", place / "one", cwd=place / "work"), place / "one")


@pytest.fixture(scope="module")
def two(place: Path) -> Run:
    """In two processes, tracked, and with another accumulation in the environment."""
    words = mrpc(place, *SAME, "--per_device_train_batch_size=2", "--gradient-accumulation-steps", 2)
    words += ["--report_to", "wandb"]
    stray = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7"}
    done = launch("multi_cpu", SCRIPT, *words, "--output_dir", place / "two", cwd=place / "work", **stray)
    return Run(done, place / "two")


@pytest.fixture(scope="module")
def tracked(place: Path) -> Run:
    """The packaged model and data, another method, two trackers, nobody to ask for a key."""
    words = ["--method", "lora", "--use_dora", "--report_to", "wandb,tensorboard", "--max_train_steps", 3]
    words += ["--eval_steps", 2, "--max_train_samples", 20, "--max_eval_samples", 9, "--max_length", 16]
    words += ["--per_device_train_batch_size", 4, "--output_dir", "out", "--num_cpu_threads", 1]
    secret = {"SOME_API_KEY": "s3cr3t-v4lue"}
    return Run(launch("cpu", SCRIPT, *words, cwd=place / "work", **secret), place / "work" / "out")


@pytest.fixture(params=["one", "two"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.getfixturevalue(request.param)


# ── What a run leaves behind ─────────────────────────────────────────────────────────────────────────────────────


def test_a_run_ends_well_and_leaves_these_files(run: Run) -> None:
    assert run.done.returncode == 0, run.done.stderr
    assert "Traceback" not in run.done.stderr
    assert {path.name for path in run.folder.iterdir()} - {"wandb"} == {
        ".lock",
        "adapter_config.json", "adapter_model.safetensors", "all_results.json", "metrics.jsonl",
        "predictions.safetensors", "README.md", "run.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_the_results_have_the_usual_keys_and_are_numbers(run: Run) -> None:
    results = run.json("all_results.json")
    assert results.keys() >= RESULTS
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in results.values())
    assert (results["global_step"], results["epoch"]) == (STEPS, 2.0)
    assert results["eval_samples"] == DEV, "every example of the split is scored once"
    assert results["trainable_ratio"] == results["trainable_params"] / results["total_params"]
    assert results["best_eval_accuracy"] == results["eval_accuracy"] == max(run.of("eval/accuracy"))
    assert results["last_eval_accuracy"] == run.of("eval/accuracy")[-1]
    assert results["train_loss"] == pytest.approx(sum(run.of("train/loss")) / STEPS)


def test_the_predictions_are_those_of_the_saved_state(run: Run) -> None:
    answers = load_predictions(run.folder)
    assert answers is not None
    logits, labels = answers
    assert (logits.shape, logits.dtype) == ((DEV, 2), np.float32)
    results = run.json("all_results.json")
    assert (logits.argmax(axis=1) == labels).mean() == pytest.approx(results["best_eval_accuracy"])


def test_the_record_tells_how_the_run_went(run: Run) -> None:
    record = run.json("run.json")
    assert record["status"] == "finished"
    assert record["seconds"] > 0
    assert record["steps"] == STEPS
    assert record["effective_batch_size"] == 8
    assert record["arguments"]["seed"] == 5
    assert record["precision"]["name"] == "no"
    assert record["results"] == run.json("all_results.json")
    assert {name: part["examples"] for name, part in record["data"].items()} == {"train": TRAIN, "validation": DEV}
    assert record["versions"]["torch"] == torch.__version__
    assert record["peak_memory_bytes"] > 0


def test_the_curves(run: Run) -> None:
    assert [line["step"] for line in run.metrics] == list(range(1, STEPS + 1))
    assert all(
        line.keys()
        >= {
            "train/loss", "train/learning_rate", "train/grad_norm", "train/epoch", "train/samples_per_second",
            "train/global_step", "perf/peak_memory_bytes",
        }
        for line in run.metrics
    )  # fmt: skip
    evaluated = [line for line in run.metrics if "eval/accuracy" in line]
    assert [line["train/epoch"] for line in evaluated] == [1.0, 2.0]
    assert all(line.keys() >= {"eval/accuracy", "eval/f1", "eval/loss", "eval/best_accuracy"} for line in evaluated)


def test_only_the_main_process_speaks(two: Run) -> None:
    assert two.done.stdout.count(f"step {STEPS}/{STEPS}") == 1
    assert two.done.stdout.count("best step") == 1
    assert two.json("run.json")["processes"] == 2


def test_of_two_processes_one_talks_to_wandb(two: Run) -> None:
    assert len(list((two.folder / "wandb").glob("offline-run-*"))) == 1


def test_two_processes_learn_the_same_as_one(one: Run, two: Run) -> None:
    assert one.json("run.json")["processes"] == 1
    for name in ("train/loss", "train/grad_norm", "eval/loss"):
        assert two.of(name) == pytest.approx(one.of(name), abs=2e-4), name
    assert two.of("train/learning_rate") == one.of("train/learning_rate")
    assert len(set(one.of("train/loss"))) == STEPS


def test_the_saved_adapter_scores_in_stock_peft_what_the_run_reports(run: Run, place: Path) -> None:
    with (place / "glue" / "MRPC" / "dev.tsv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    pairs = tokenizer(
        [row["#1 String"] for row in rows], [row["#2 String"] for row in rows], padding=True, return_tensors="pt"
    )
    model = AutoPeftModelForSequenceClassification.from_pretrained(run.folder, num_labels=2).eval()
    with torch.inference_mode():
        logits = model(**pairs).logits
    labels = torch.tensor([int(row["Quality"]) for row in rows])
    results = run.json("all_results.json")
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert (logits.argmax(-1) == labels).float().mean().item() == pytest.approx(results["best_eval_accuracy"])
    assert loss == pytest.approx(results["best_eval_loss"], abs=1e-5)


def test_class_weights_where_a_text_has_several_classes_are_refused_before_the_model_is_loaded(place: Path) -> None:
    (place / "several.csv").write_text("text,label\nfree money,spam|news\nat nine,ham\n")
    words = ["--train_file", "several.csv", "--validation_file", "several.csv", "--label_delimiter", "|"]
    words += ["--model_name_or_path", place / "no-model", "--class_weights", "balanced", "--output_dir", "several"]
    done = run_script(SCRIPT, *words, cwd=place)
    expected = "error: --class_weights balanced: weighs examples by their class, and a text of several may have several"
    assert (done.returncode, done.stderr) == (2, f"{expected}; leave it out\n")
    assert not (place / "several").exists()


def test_a_run_that_stops_early_says_so_everywhere(place: Path) -> None:
    words = mrpc(place, "--learning_rate", 1e-12, "--eval_steps", 1, "--early_stopping_patience", 2)
    done = run_script(SCRIPT, *words, "--num_train_epochs", 50, "--output_dir", place / "early", cwd=place / "work")
    assert done.returncode == 0, done.stderr
    assert "note: stopped early: no better accuracy in 2 evaluations\n" in done.stdout
    run = Run(done, place / "early")
    assert run.json("run.json")["steps"] == run.json("all_results.json")["global_step"] == 3
    assert ", 3 updates of " in (run.folder / "README.md").read_text(encoding="utf-8")


def test_files_of_one_s_own_end_to_end(place: Path) -> None:
    """Three classes, in two kinds of files; the adapter in stock PEFT."""
    rows = [{"mail": f"{('hello', 'buy', 'minister')[i % 3]} {i}", "label": "abc"[i % 3]} for i in range(30)]
    own = place / "mails"
    own.mkdir()
    with (own / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (own / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    words = ["--model_name_or_path", place / "model", "--train_file", "mails/train.csv", "--method", "lora"]
    words += ["--validation_file", "mails/dev.jsonl", "--mixed_precision", "no", "--num_train_epochs", 1]
    words += ["--metric_for_best_model", "macro_f1", "--class_weights", '{"c": 2}', "--label_smoothing_factor", 0.1]
    done = run_script(SCRIPT, *words, "--output_dir", "own", cwd=place)
    assert done.returncode == 0, done.stderr
    run = Run(done, place / "own")
    assert "task: mails, 30 training and 7 validation examples (mails/train.csv)" in done.stdout
    record, results = run.json("run.json"), run.json("all_results.json")
    assert (record["labels"], record["arguments"]["task_name"]) == (["a", "b", "c"], "mails")
    assert record["data"]["train"]["class_weights"] == {"a": 1.0, "b": 1.0, "c": 2.0}
    assert "  training loss: class weights a 1, b 1, c 2; label smoothing 0.1\n" in done.stdout
    assert results["eval_samples"] == 7
    assert run.of("eval/best_macro_f1") == [results["best_eval_macro_f1"]] and not run.of("eval/best_accuracy")
    answers = load_predictions(run.folder)
    assert answers is not None
    model = AutoPeftModelForSequenceClassification.from_pretrained(run.folder, num_labels=3).eval()
    texts = AutoTokenizer.from_pretrained(run.folder)(
        [row["mail"] for row in rows[:7]], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**texts).logits
    assert torch.allclose(logits, torch.from_numpy(answers[0]), atol=1e-5)
    assert answers[1].tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.skipif(not cpu_calls.are_there(), reason="this machine has no g++ for the CPU kernels")
@pytest.mark.parametrize("precision", ["auto", "no"])
def test_a_run_ends_with_the_same_bits_on_any_number_of_threads(
    precision: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the packaged model, whose sizes are real, in the precision that this CPU is made for, and in fp32."""
    monkeypatch.delenv("MKL_CBWR", raising=False)  # the run sets it where it must
    words = ["--method", "lora", "--max_train_steps", 4, "--eval_steps", 2, "--max_eval_samples", 30]
    words += ["--mixed_precision", precision, "--logging_steps", 1, "--per_device_train_batch_size", 32]
    left = []
    for threads in (1, 3):
        folder = place / f"threads-{precision}-{threads}"
        done = run_script(SCRIPT, *words, "--num_cpu_threads", threads, "--output_dir", folder, cwd=place / "work")
        assert done.returncode == 0, done.stderr
        scores = [(line.get("train/loss"), line.get("eval/loss")) for line in Run(done, folder).metrics]
        left.append(((folder / "adapter_model.safetensors").read_bytes(), scores))
    assert left[0] == left[1]


def test_a_run_that_computes_layers_twice_ends_with_the_same_bits(one: Run, place: Path) -> None:
    words = mrpc(place, *SAME, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps=2")
    words += ["--gradient_checkpointing", "--output_dir", place / "twice"]
    done = run_script(SCRIPT, *words, cwd=place / "work")
    assert (done.returncode, done.stderr) == (0, "")
    adapters = [(folder / "adapter_model.safetensors").read_bytes() for folder in (one.folder, place / "twice")]
    assert adapters[0] == adapters[1]


# ── Trackers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_key_wandb_records_offline_and_says_how_to_sync(tracked: Run) -> None:
    assert tracked.done.returncode == 0, tracked.done.stderr
    assert "wandb sync out/wandb/offline-run-*" in tracked.done.stdout
    recorded = list((tracked.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(recorded) == 1
    assert recorded[0].stat().st_size > 0


def test_tensorboard_gets_the_curves(tracked: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[int]] = {}
    for file in tracked.folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        found |= {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["train/loss"] == found["eval/accuracy"] == [2, 3]


def test_the_packaged_model_and_data_need_no_flags(tracked: Run) -> None:
    record = tracked.json("run.json")
    assert record["status"] == "finished"
    assert record["model"]["name"] == "all-MiniLM-L6-v2"
    assert record["data"]["train"]["examples"] == 20
    results = tracked.json("all_results.json")
    assert (results["global_step"], results["eval_samples"], results["epoch"]) == (3, 9, 0.6)
    assert json.loads((tracked.folder / "adapter_config.json").read_text())["use_dora"] is True


def test_no_file_holds_the_environments_secrets(tracked: Run) -> None:
    files = [path for path in tracked.folder.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if b"s3cr3t-v4lue" in path.read_bytes()]


# ── Wrong input ──────────────────────────────────────────────────────────────────────────────────────────────────


def _spoil(glue: Path, name: str, old: str, new: str) -> Path:
    """A copy of the data with something in SST-2 replaced."""
    copy = glue.with_name(name)
    shutil.copytree(glue, copy)
    for path in (copy / "SST-2").iterdir():
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    return copy


def _wrong_inputs(place: Path) -> dict[str, tuple[list[object], str]]:
    """Name -> the command's words, and what its error has to say."""
    glue = place / "glue"
    no_file = glue.with_name("no-file")
    shutil.copytree(glue, no_file)
    (no_file / "SST-2" / "dev.tsv").unlink()
    empty = glue.with_name("empty")
    shutil.copytree(glue, empty)
    (empty / "SST-2" / "dev.tsv").write_text("sentence\tlabel\n")
    used = place / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    no_column = _spoil(glue, "no-column", "label", "lable")
    wrong_label = _spoil(glue, "wrong-label", "\t1\n", "\t2\n")
    model = ["--model_name_or_path", place / "model"]
    sst2 = [*model, "--task_name", "sst2", "--data_dir"]
    prompt = ["--method=peft", "--peft_type=prompt_tuning", '--peft_kwargs={"num_virtual_tokens": 1000}']
    return {
        "unknown method": (["--method", "bitfti"], "--method bitfti: unknown; did you mean bitfit?"),
        "unknown task": (["--task_name", "mrcp"], "--task_name mrcp: unknown; did you mean mrpc?"),
        "unknown flag": (["--lora_rank", "8"], "--lora_rank: no such flag; use --lora_r"),
        "batch size 0": (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0: must be at least 1"),
        "negative rate": (["--learning_rate=-0.001"], "--learning_rate -0.001: must be greater than 0"),
        "unknown tracker": (["--report_to", "wandbb"], "--report_to wandbb: unknown; did you mean wandb?"),
        "another task's metric": (["--metric_for_best_model", "f1"], "f1: rotten_tomatoes is scored by accuracy"),
        "no such model folder": (["--model_name_or_path", "./none"], "--model_name_or_path ./none: no such folder"),
        "no such model": (["--model_name_or_path", "all-MiniLM-L6"], "did you mean all-MiniLM-L6-v2"),
        "fp16 on a CPU": (["--mixed_precision", "fp16"], "--mixed_precision fp16 needs a GPU"),
        "push offline": (["--push_to_hub"], "--push_to_hub: HF_HUB_OFFLINE is set, and this needs the Hub; unset it"),
        "used output folder": (["--output_dir", used], f"--output_dir {used}: holds files, and none of a run"),
        "no data file": ([*sst2, no_file], f"{no_file}/SST-2/dev.tsv is missing"),
        "missing column": ([*sst2, no_column], "no column 'label'; did you mean lable?"),
        "label out of range": ([*sst2, wrong_label], "sst2 has the labels 0, 1"),
        "empty split": ([*sst2, empty], "the validation split of sst2 has no rows"),
        "too long a prompt": ([*sst2, glue, *prompt], "num_virtual_tokens is 1000, and "),
    }  # fmt: skip


WRONG = [
    "unknown method", "unknown task", "unknown flag", "batch size 0", "negative rate", "unknown tracker",
    "another task's metric", "no such model folder", "no such model", "fp16 on a CPU", "push offline",
    "used output folder", "no data file", "missing column", "label out of range", "empty split",
    "too long a prompt",
]  # fmt: skip


@pytest.fixture(scope="module")
def refusals(place: Path) -> Callable[[str], tuple[subprocess.CompletedProcess[str], str, Path]]:
    """Starts the one that is asked for, once; gives it, what it has to say, and where it ran."""
    inputs = _wrong_inputs(place)
    assert list(inputs) == WRONG

    def refused(name: str) -> tuple[subprocess.CompletedProcess[str], str, Path]:
        words, message = inputs[name]
        folder = place / "refused" / name.replace(" ", "-")
        if name not in done:
            folder.mkdir(parents=True)
            done[name] = run_script(SCRIPT, *words, cwd=folder)
        return done[name], message, folder

    done: dict[str, subprocess.CompletedProcess[str]] = {}
    return refused


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_status_2_and_nothing_is_written(
    refusals: Callable[[str], tuple[subprocess.CompletedProcess[str], str, Path]], name: str
) -> None:
    done, message, folder = refusals(name)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert list(folder.iterdir()) == []


def test_a_used_folder_stays_as_it_was(
    refusals: Callable[[str], tuple[subprocess.CompletedProcess[str], str, Path]], place: Path
) -> None:
    refusals("used output folder")
    assert [path.name for path in (place / "used").iterdir()] == ["notes.txt"]


def test_the_launcher_adds_no_traceback_to_an_error(place: Path) -> None:
    work = place / "launched"
    work.mkdir()
    done = launch("cpu", SCRIPT, "--method", "bitfti", cwd=work)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert last == f"error: --method bitfti: unknown; did you mean bitfit? (known: {', '.join(STRATEGIES)})"
    assert list(work.iterdir()) == []


def test_help_lists_the_flags(place: Path) -> None:
    done = run_python(SCRIPT, "--help", cwd=place)
    assert done.returncode == 0
    assert done.stderr == ""
    for flag in ("--method", "--train_head", "--lora_r", "--bias_terms", "--report_to", "--config"):
        assert flag in done.stdout
