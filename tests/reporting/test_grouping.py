"""Only runs of the same method that differ in the seed are averaged."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from peftlib.evaluation.predictions import save_predictions
from peftlib.flags import WHERE_ABSENT
from peftlib.reporting.grouping import compare
from peftlib.reporting.runs import Run, read_run
from peftlib.run_files import read_record
from tests.reporting.made_up import make_run


@pytest.fixture
def make(tmp_path):
    """Make a run in a new folder and read it."""
    count = iter(range(1000))
    return lambda *words, **options: read_run(make_run(tmp_path / f"{next(count):03d}", *words, **options))


def labels(comparison):
    return [(variant.label, [run.seed for run in variant.runs]) for variant in comparison.variants]


def test_seeds_are_averaged_methods_and_rates_are_not(make):
    runs = [make("--method", method, seed=seed) for seed in (2, 1) for method in ("lora", "bitfit", "head")]
    runs += [make("--method", "bitfit", "--learning_rate", "0.001", seed=1)]
    (comparison,) = compare(runs)
    assert comparison.apart is None
    assert labels(comparison) == [
        ("Head", [1, 2]), ("BitFit, lr 0.001", [1]), ("BitFit, lr 0.003", [1, 2]), ("LoRA r=16", [1, 2]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (("--method", "peft", "--peft_type=loha", '--peft_kwargs={"r": 4}'), 'PEFT loha, peft_kwargs={"r": 4}'),
        (("--method", "ia3"), "IA3"),
        (("--method", "ln_tuning"), "LN tuning"),
        (["--method", "lora", "--lora_r", "8"], "LoRA r=8"),
        (["--method", "lora", "--use_dora", "--lora_alpha", "16"], "LoRA r=16, lora_alpha=16.0, use_dora=True"),
        (["--method", "bitfit", "--train_head", "false"], "BitFit, train_head=False"),
        (["--method", "full"], "Full"),
    ],
)
def test_a_methods_own_flags_are_in_its_name(make, words, label):
    assert compare([make(*words)])[0].variants[0].label == label


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"words": ["--num_train_epochs", "5"]}, "different num_train_epochs (5, not 2)"),
        ({"words": ["--max_length", "64"]}, "different max_length (64, not 128)"),
        (
            {"words": ["--model_name_or_path", "other/model"]},
            "different base model (other/model, not all-MiniLM-L6-v2)",
        ),
        ({"changes": {"precision": {"name": "bf16"}}}, "different precision (bf16, not no)"),
        ({"changes": {"effective_batch_size": 64}}, "different effective_batch_size (64, not 16)"),
        (
            {"changes": {"parameters": {"trainable": 26_882, "total": 300, "trainable_ratio": 89.6}}},
            "different size of the base model (300, not 22713986)",
        ),
        (
            {"fingerprint": "a" * 64},
            "different validation split (200 examples aaaaaaaaaaaa, not 200 ffffffffffff)",
        ),
    ],
)
def test_what_does_not_belong_together_stands_apart_with_the_reason(make, changed, reason):
    odd = make(*changed.pop("words", []), seed=1, **changed)
    main, apart = compare([odd, make(seed=1), make(seed=2)])
    assert (main.apart, apart.apart) == (None, reason)
    assert [len(main.runs), len(apart.runs)] == [2, 1]


@pytest.mark.parametrize(
    "words",
    [
        ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"],
        ["--num_cpu_threads", "2"],
        ["--output_dir", "elsewhere", "--report_to", "none", "--logging_steps", "3"],
    ],
)
def test_what_only_says_where_or_how_fast_does_not_part_them(make, words):
    (comparison,) = compare([make(seed=1), make(*words, seed=2)])
    assert labels(comparison) == [("BitFit", [1, 2])]


def test_a_base_model_is_known_by_its_weights_wherever_it_lay(make):
    def on(name, weights, configuration, seed):
        model = {"name": name, "fingerprint": weights * 64, "configuration": configuration * 64}
        return make("--model_name_or_path", name, seed=seed, changes={"model": model})

    runs = [on("swap", "a", "c", 1), on("/models/swap", "a", "c", 2), on("swap", "b", "c", 3), on("swap", "a", "d", 4)]
    main, *others = compare(runs)
    assert [len(main.runs), *(len(apart.runs) for apart in others)] == [2, 1, 1]
    assert {apart.apart for apart in others} == {
        "different base model (swap @ bbbbbbbb-cccc, not swap @ aaaaaaaa-cccc)",
        "different base model (swap @ aaaaaaaa-dddd, not swap @ aaaaaaaa-cccc)",
    }
    assert main.model in ("swap", "/models/swap")


def test_own_data_called_as_a_task_are_scored_by_their_own_metrics(make):
    run = make("--task_name", "sst2")
    arguments = {**run.arguments, "task_name": "cola", "train_file": "cola/train.csv"}
    results = {**run.results, "best_eval_macro_f1": 0.5}
    old = Run(run.folder, {**run.record, "arguments": arguments, "results": results}, None)
    assert compare([old])[0].metrics == ("accuracy", "macro_f1")


def test_tasks_are_compared_each_by_itself(make):
    found = compare([make("--task_name", "sst2"), make("--task_name", "mrpc")])
    assert [(comparison.task, comparison.metrics) for comparison in found] == [
        ("mrpc", ("accuracy", "f1")),
        ("sst2", ("accuracy",)),
    ]
    assert [comparison.apart for comparison in found] == [None, None]


def test_runs_that_were_chosen_by_another_metric_are_compared_by_it_and_apart(make):
    words = ("--task_name", "mrpc")
    chosen = [make(*words, "--metric_for_best_model", "f1", seed=seed) for seed in (1, 2)]
    found = compare([*chosen, make(*words, seed=3)])
    assert [comparison.metrics for comparison in found] == [("f1", "accuracy"), ("accuracy", "f1")]
    assert found[1].apart == "different metric_for_best_model (the default, not f1)"


@pytest.mark.parametrize(
    "changes", [{"lora_alpha": 32}, {"warmup_ratio": 0.15000000000000002}, {"weight_decay": 0}, {"lora_dropout": 0.1}]
)
def test_numbers_that_are_written_in_another_way_part_no_runs(make, changes):
    runs = [make("--method", "lora", seed=seed) for seed in (1, 2)]
    record = json.loads((runs[1].folder / "run.json").read_text())
    other = make("--method", "lora", seed=3, changes={"arguments": record["arguments"] | {"seed": 3} | changes})
    (comparison,) = compare([*runs, other])
    assert labels(comparison) == [("LoRA r=16", [1, 2, 3])]


def test_a_flag_that_an_older_version_did_not_have_parts_no_runs(make):
    new = make(seed=1)
    record = json.loads((new.folder / "run.json").read_text())
    assert record["arguments"].pop("metric_for_best_model") is None
    (comparison,) = compare([new, make(seed=2, changes={"arguments": record["arguments"] | {"seed": 2}})])
    assert labels(comparison) == [("BitFit", [1, 2])]


def test_the_same_seed_twice_counts_once_and_is_said(make):
    old = make(seed=1, changes={"started": "2025-01-01T00:00:00+00:00"})
    new = make(seed=1)
    (comparison,) = compare([old, new, make(seed=2)])
    assert comparison.runs[0].folder == new.folder and len(comparison.runs) == 2
    assert f"{old.name} is left out: {new.name} is newer and has the same seed (1)." in comparison.notes[0]


def test_failed_runs_are_in_no_mean(make):
    (comparison,) = compare([make(seed=1), make(seed=2, status="failed"), make(seed=3, status="running")])
    assert labels(comparison) == [("BitFit", [1])]
    assert "2 runs of this task have no result, and no part in any mean; see the end." in comparison.notes
    assert compare([make(status="failed")]) == []
    (other,) = compare([make("--task_name", "sst2", status="failed"), make(seed=1)])
    assert not any("no result" in note for note in other.notes)


def test_other_machines_and_missing_predictions_are_noted(make):
    (comparison,) = compare([make(seed=1, predictions=False), make(seed=2, changes={"machine": {"device": "another"}})])
    assert any("different machines (another, made-up processor)" in note for note in comparison.notes)
    assert any("no predictions" in note for note in comparison.notes)


def test_validation_texts_that_were_trained_on_are_noted(make):
    data = read_record(make(seed=1).folder)["data"]
    data["validation"]["leaked"] = 30
    (comparison,) = compare([make(seed=2, changes={"data": data})])
    assert comparison.notes == (
        "The texts of 30 of 200 validation examples are training texts too, which makes scores look better than they "
        "are.",
    )


def test_a_contender_is_the_best_rate_of_its_method(make):
    runs = [
        make("--method", "lora", "--learning_rate", rate, error=error) for rate, error in ((1e-3, 0.3), (1e-2, 0.1))
    ]
    runs += [make("--method", "head", error=0.4)]
    (comparison,) = compare(runs)
    assert [variant.label for variant in comparison.contenders()] == ["Head", "LoRA r=16, lr 0.01"]
    assert [variant.label for variant in comparison.contenders(most=1)] == ["LoRA r=16, lr 0.01"]
    assert [one.label for one in comparison.best] == ["LoRA r=16, lr 0.01"]


def test_one_lucky_run_at_another_rate_decides_nothing(make):
    runs = [make("--method", "lora", "--learning_rate", 1e-3, seed=seed, error=0.2) for seed in (1, 2, 3)]
    runs += [make("--method", "lora", "--learning_rate", 1e-2, seed=1, error=0.02)]
    runs += [make("--method", "bitfit", seed=seed, error=0.3) for seed in (1, 2, 3)]
    (comparison,) = compare(runs)
    assert [variant.label for variant in comparison.contenders()] == ["BitFit", "LoRA r=16, lr 0.001"]
    assert [one.label for one in comparison.best] == ["LoRA r=16, lr 0.001"]


def test_seeds_that_other_methods_have_count_before_ones_own(make):
    runs = [make("--method", "lora", "--learning_rate", 1e-3, seed=seed, error=0.2) for seed in (1, 2)]
    runs += [make("--method", "lora", "--learning_rate", 1e-2, seed=seed, error=0.1) for seed in (7, 8, 9)]
    runs += [make("--method", "bitfit", seed=seed) for seed in (1, 2)]
    (comparison,) = compare(runs)
    assert "LoRA r=16, lr 0.001" in [variant.label for variant in comparison.contenders()]
    alone = compare([run for run in runs if run.method == "lora"])[0]
    assert [variant.label for variant in alone.contenders()] == ["LoRA r=16, lr 0.01"]


def test_one_lucky_run_of_another_method_is_not_the_highest(make):
    runs = [make("--method", "lora", seed=seed, error=0.2) for seed in (1, 2)]
    (comparison,) = compare([*runs, make("--method", "head", seed=1, error=0.02)])
    assert [one.label for one in comparison.best] == ["LoRA r=16"]
    assert [one.label for one in compare([runs[0], make("--method", "head", seed=2, error=0.02)])[0].best] == ["Head"]


def test_methods_that_are_passed_over_are_named(make):
    ranks = range(1, 11)
    runs = [make("--method", "lora", "--lora_r", rank, error=0.5 if rank in (3, 7) else 0.1) for rank in ranks]
    (comparison,) = compare(runs)
    assert len(comparison.contenders()) == 8
    assert comparison.notes == (
        "Only the best 8 of 10 methods are tested, plotted and compared with published scores; "
        "the others are in the table only: LoRA r=3; LoRA r=7.",
    )
    assert compare(runs[:8])[0].notes == ()


def test_a_searched_warm_up_is_a_variant_of_the_rate(make):
    """Drawn as in `sweeps/rate_search.yaml`: one method, one comparison."""
    runs = [
        make("--learning_rate", rate, "--warmup_ratio", warmup, error=error)
        for rate, warmup, error in ((1e-3, 0.0, 0.3), (2e-3, 0.060000000000000005, 0.1), (4e-3, 0.12, 0.2))
    ]
    (comparison,) = compare(runs)
    names = [
        "BitFit, lr 0.001, warmup_ratio 0",
        "BitFit, lr 0.002, warmup_ratio 0.06",
        "BitFit, lr 0.004, warmup_ratio 0.12",
    ]
    assert [variant.label for variant in comparison.variants] == names
    assert [variant.label for variant in comparison.contenders()] == [names[1]]
    assert "warmup" not in comparison.settings


def test_another_warm_up_is_not_averaged(make):
    (comparison,) = compare([make(seed=1), make("--num_warmup_steps", 30, seed=2)])
    assert labels(comparison) == [("BitFit, num_warmup_steps 30", [2]), ("BitFit, warmup_ratio 0.15", [1])]
    assert compare([make(seed=1), make(seed=2)])[0].settings.endswith("warmup_ratio 0.15")


def test_answers_to_other_examples_stand_apart(make):
    runs = [make(seed=seed) for seed in (1, 2)]
    odd, silent = make("--method", "lora", seed=1), make("--method", "head", seed=1, predictions=False)
    save_predictions(odd.folder, np.zeros((150, 2)), np.zeros(150))
    main, apart = compare([*runs, odd, silent])
    assert [run.name for run in main.runs] == [silent.name, *(run.name for run in runs)] and apart.runs == [odd]
    assert re.fullmatch(
        r"different validation labels \(\w{12} \(150 examples\), not \w{12} \(200 examples\)\)", apart.apart
    )
    assert "labels" not in main.settings


def test_another_split_is_said_once(make):
    usual = make(seed=1)
    split = {**usual.record["data"]["validation"], "examples": 150}
    odd = make(seed=1, changes={"data": {**usual.record["data"], "validation": split}})
    save_predictions(odd.folder, np.zeros((150, 2)), np.zeros(150))
    _, apart = compare([odd, usual, make(seed=2)])
    assert apart.apart == "different validation split (150 examples, not 200)"


def test_no_predictions_part_nobody(make):
    main, longer = compare([make(seed=1), make(seed=2), make("--num_train_epochs", "5", predictions=False)])
    assert (main.apart, longer.apart) == (None, "different num_train_epochs (5, not 2)")


def test_a_method_at_another_dropout_is_another_variant(make):
    """One comparison, as for a method's other flags; runs from before the flag had the model's own dropout."""
    earlier = {name: value for name, value in make(seed=2).arguments.items() if name != "dropout"}
    runs = [make(seed=1), make("--dropout", "0.1", seed=1), make(seed=2, changes={"arguments": earlier})]
    (comparison,) = compare(runs)
    assert labels(comparison) == [("BitFit", [1]), ("BitFit, dropout=0.1", [1]), ("BitFit, dropout=None", [2])]


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["--class_weights", "balanced"], "BitFit, class_weights=balanced"),
        (["--class_weights", '{"positive": 9}'], 'BitFit, class_weights={"positive": 9.0}'),
        (["--label_smoothing_factor", "0.1"], "BitFit, label_smoothing_factor=0.1"),
    ],
)
def test_another_training_loss_is_another_variant(make, words, label):
    """One comparison; runs from before these flags count as runs at the defaults."""
    earlier = {name: value for name, value in make(seed=2).arguments.items() if name not in WHERE_ABSENT}
    runs = [make(seed=1), make(*words, seed=1), make(seed=2, changes={"arguments": earlier})]
    (comparison,) = compare(runs)
    assert labels(comparison) == [("BitFit", [1, 2]), (label, [1])]


def test_the_default_metric_spelled_out_is_no_other_setting(make):
    (comparison,) = compare([make(seed=1), make("--metric_for_best_model", "accuracy", seed=2)])
    assert labels(comparison) == [("BitFit", [1, 2])]
    assert "metric_for_best_model" not in comparison.settings
    by_loss = compare([make(seed=1), make("--metric_for_best_model", "loss", seed=2)])
    assert by_loss[1].apart == "different metric_for_best_model (loss, not the default)"


def test_runs_of_other_classes_are_not_averaged(make):
    """The data's fingerprints are of texts and class indices: those of the first rows may be the same."""
    runs = [make(seed=1), make(seed=2), make(seed=3, changes={"labels": ["no", "perhaps", "yes"]})]
    assert [one.apart for one in compare(runs)] == [None, "different classes (3, not 2)"]
    runs[2] = make(seed=3, changes={"labels": ["nein", "ja"]})
    assert [one.apart for one in compare(runs)] == [None, "different classes (other names)"]


@pytest.mark.parametrize("newer", [1, 2])
def test_a_metric_that_only_some_runs_have_is_left_out_with_a_note(make, tmp_path, newer):
    """Such as one that was added between them."""
    mails = tmp_path / "mails.csv"
    mails.write_text("text,label\nhello,a\nbuy,b\n")
    words = ("--train_file", mails, "--validation_file", mails)
    more = {"results": make(*words, seed=newer).results | {"best_eval_balanced_accuracy": 0.5}}
    runs = [make(*words, seed=newer, changes=more), make(*words, seed=3 - newer)]
    (comparison,) = compare(runs)
    assert comparison.metrics == ("accuracy",)
    assert "Left out, since only some of the runs have it: balanced_accuracy." in comparison.notes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"processes": 2}, "(1, 2)"),
        ({"earlier_cuts": [{"until": 5, "processes": 4}]}, "(1, 4)"),
        ({"earlier_cuts": [{"until": 5, "processes": 1}]}, None),
    ],
)
def test_times_on_other_numbers_of_processes_are_not_compared_without_a_word(make, changes, said):
    runs = [make(seed=1, changes={"processes": 1}), make(seed=2, changes={"processes": 1, **changes})]
    (comparison,) = compare(runs)
    notes = [note for note in comparison.notes if "numbers of processes" in note]
    assert len(notes) == (said is not None) and all(said in note for note in notes)


def test_threads_are_not_named_where_memory_cannot_be_compared_either(make):
    """The number of threads follows from that of processes, and matters less."""
    runs = [
        make(seed=number, changes={"processes": number, "machine": {"device": "cpu", "threads": 3 - number}})
        for number in (1, 2)
    ]
    assert [note for note in compare(runs)[0].notes if "comparable" in note] == [
        "The runs used different numbers of processes (1, 2): times and memory are not comparable."
    ]
