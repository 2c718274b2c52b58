"""Claims about made-up runs whose difference is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlib.evaluation.predictions import PREDICTIONS, save_predictions
from peftlib.evaluation.statistics import ALPHA, compare_seeds, holm, mcnemar, seeds_for_examples
from peftlib.reporting.grouping import compare
from peftlib.reporting.pairs import Pair, compare_pairs, p_text
from peftlib.reporting.runs import read_run
from tests.reporting.made_up import EXAMPLES, make_run, make_run_of_several


def pairs_of(folder, errors, seeds=(1, 2, 3), metric="accuracy", **options):
    """Compare methods with these error rates on MRPC."""
    made = [
        make_run(folder / f"{name}-{seed}", "--task_name", "mrpc", "--method", name, seed=seed, error=error, **options)
        for name, error in errors.items()
        for seed in seeds
    ]
    runs = [read_run(run) for run in made]
    (comparison,) = compare(runs)
    return comparison, compare_pairs(comparison, metric)


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_a_large_difference_is_claimed(tmp_path, metric):
    _, (pair,) = pairs_of(tmp_path, {"head": 0.4, "full": 0.1}, seeds=range(1, 6), metric=metric)
    assert pair.claimed and pair.corrected < 0.05
    assert pair.words.startswith(f"Full has a higher {metric} than Head, by 0.")
    assert pair.bootstrap.high < 0  # of Head minus Full, while the words speak of Full minus Head
    assert "interval -" not in pair.words


def test_no_difference_is_not_claimed_and_the_seeds_it_would_take_are_named(tmp_path):
    comparison, (pair,) = pairs_of(tmp_path, {"bitfit": 0.2, "lora": 0.2})
    assert not pair.claimed
    scores = [[run.score("accuracy") for run in variant.runs] for variant in comparison.variants]
    expected = compare_seeds(*scores)
    assert pair.seed_test == expected
    assert pair.words.startswith("No difference can be claimed between BitFit and LoRA r=16 (corrected p ")


def answering(place, method, seeds, wrong):
    """Make runs on SST-2 whose predictions are wrong where `wrong(seed)`, bool, shape (EXAMPLES,), is true."""
    for seed in seeds:
        folder = make_run(place / f"{method}-{seed}", "--task_name", "sst2", "--method", method, seed=seed)
        labels = read_run(folder).answers[1]
        answers = np.where(wrong(seed), 1 - labels, labels)
        save_predictions(folder, np.eye(2)[answers], labels)
        record = json.loads((folder / "run.json").read_text())
        record["results"]["best_eval_accuracy"] = float((answers == labels).mean())
        (folder / "run.json").write_text(json.dumps(record))
        yield read_run(folder)


def test_no_number_of_seeds_is_promised_where_the_examples_are_too_few(tmp_path):
    """Seven errors against four, with one exception under all seeds: the t-test alone would ask for a few seeds."""
    places = np.arange(EXAMPLES)
    runs = [
        *answering(tmp_path, "bitfit", (1, 2, 3), lambda seed: places < 7 - (seed == 3)),
        *answering(tmp_path, "lora", (1, 2, 3), lambda seed: (places >= 100) & (places < 104)),
    ]
    (pair,) = compare_pairs(compare(runs)[0], "accuracy")
    assert pair.seed_test.p < 0.05 and pair.seed_test.seeds_needed <= 5
    assert pair.bootstrap.p > 0.2 and not pair.examples_suffice and pair.seeds_needed is None
    assert pair.words.endswith("the validation examples are too few for a difference of this size.")


def test_the_seeds_that_are_promised_are_enough_for_both_tests(tmp_path):
    """15 examples apart, plus noise by seed: the test over examples asks for more seeds than the t-test does."""
    places, luck = np.arange(EXAMPLES), {1: 9, 2: -6, 3: 2}
    runs = [
        *answering(tmp_path, "bitfit", luck, lambda seed: places < 30 + luck[seed]),
        *answering(tmp_path, "lora", luck, lambda seed: (places >= 100) & (places < 115)),
    ]
    (pair,) = compare_pairs(compare(runs)[0], "accuracy")
    assert not pair.claimed and pair.examples_suffice
    assert pair.seeds_needed == seeds_for_examples(pair.difference, pair.bootstrap) > pair.seed_test.seeds_needed
    assert f"about {pair.seeds_needed} seeds would detect it; there are 3." in pair.words


def test_ties_are_no_claim_and_the_seeds_that_would_have_to_agree_are_named(tmp_path):
    places = np.arange(EXAMPLES)
    runs = [
        *answering(tmp_path, "bitfit", (1, 2), lambda seed: places < 50 + seed),
        *answering(tmp_path, "lora", (1, 2), lambda seed: places < 20 + seed),
    ]
    (pair,) = compare_pairs(compare(runs)[0], "accuracy")
    assert pair.bootstrap.p < 0.001 and pair.p == 0.5 and not pair.claimed
    assert pair.words.endswith("The difference is the same for all 2 seeds; at least 6 would have to agree.")


def test_a_pair_that_holms_correction_loses_is_said(tmp_path):
    _, (pair,) = pairs_of(tmp_path, {"head": 0.4, "full": 0.1}, seeds=range(1, 6))
    assert pair.claimed and pair.seeds_needed <= 5
    words = replace(pair, corrected=0.06).words
    assert words.startswith("No difference can be claimed")
    assert words.endswith("The difference is significant on its own, but not after correction for all pairs.")


def test_ties_are_no_difference(tmp_path):
    comparison, _ = pairs_of(tmp_path, {"bitfit": 0.0, "lora": 0.0})
    (pair,) = compare_pairs(comparison, "accuracy")
    assert (pair.difference, pair.p, pair.corrected) == (0.0, 1.0, 1.0)
    assert "Their mean scores are equal." in pair.words


def test_one_seed_claims_nothing_however_large_the_difference(tmp_path):
    comparison, (pair,) = pairs_of(tmp_path, {"head": 0.5, "full": 0.05}, seeds=[1])
    assert pair.seed_test is None and not pair.claimed
    right = [run.answers[0] == run.answers[1] for run in comparison.runs]
    assert pair.mcnemar == mcnemar(*right) < 0.001
    assert pair.words == (
        "Head and Full share only seed 1: no difference can be claimed. These two runs differ significantly in how "
        "many examples they get wrong (McNemar's p < 0.001, uncorrected)."
    )


def test_two_single_runs_of_different_seeds_have_answered_the_same_examples(tmp_path):
    made = [
        make_run(tmp_path / f"{name}-{seed}", "--method", name, seed=seed, error=error)
        for name, seed, error in (("head", 1, 0.5), ("full", 2, 0.05), ("full", 3, 0.05))
    ]
    head, full, other = map(read_run, made)
    (pair,) = compare_pairs(compare([head, full])[0], "accuracy")
    assert pair.seeds == () and not pair.claimed and pair.p is None
    assert pair.mcnemar == mcnemar(*(run.answers[0] == run.answers[1] for run in (head, full))) < 0.001
    assert pair.words == (
        "Head and Full have one run each: no difference can be claimed. These two runs differ significantly in how "
        "many examples they get wrong (McNemar's p < 0.001, uncorrected)."
    )
    (pair,) = compare_pairs(compare([head, full, other])[0], "accuracy")
    assert pair.mcnemar is None and pair.words == "Head and Full have no seed in common and are not tested."


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1", "subset_accuracy"])
def test_answers_of_any_number_of_classes_are_told_apart(tmp_path, metric):
    """Predictions are not simply right or wrong, so McNemar's test does not apply."""
    errors = {("head", seed): 0.3 for seed in range(1, 5)} | {("full", seed): 0.1 for seed in range(1, 5)}
    made = [
        make_run_of_several(tmp_path / f"{method}-{seed}", "--method", method, seed=seed, error=error)
        for (method, seed), error in errors.items()
    ]
    runs = [read_run(run) for run in made]
    (comparison,) = compare(runs)
    assert set(comparison.metrics) == {"micro_f1", "macro_f1", "subset_accuracy"}
    (pair,) = compare_pairs(comparison, metric)
    assert pair.claimed and pair.bootstrap.low < pair.difference < pair.bootstrap.high < 0
    (pair,) = compare_pairs(compare([runs[0], runs[4]])[0], metric)
    assert pair.seeds == (1,) and pair.mcnemar is None and pair.bootstrap.high < 0


def scored(folder, errors):
    """Return the first comparison of runs on STS-B; `errors` maps (method, seed) to an error."""
    made = [
        make_run(folder / f"{method}-{seed}", "--task_name", "stsb", "--method", method, seed=seed, error=error)
        for (method, seed), error in errors.items()
    ]
    return compare([read_run(run) for run in made])[0]


@pytest.mark.parametrize("metric", ["pearson", "spearmanr"])
def test_scores_are_told_apart_by_examples_and_seeds(tmp_path, metric):
    errors = {("head", seed): 0.4 for seed in range(1, 5)} | {("full", seed): 0.1 for seed in range(1, 5)}
    comparison = scored(tmp_path, errors)
    (pair,) = compare_pairs(comparison, metric)
    assert pair.claimed and pair.mcnemar is None and pair.bootstrap.high < 0
    assert pair.words.startswith(f"Full has a higher {metric} than Head, by 0.")
    # The bootstrap is of what the runs have scored.
    assert pair.bootstrap.low < pair.difference < pair.bootstrap.high


@pytest.mark.parametrize(("error", "differ"), [(0.4, "differ"), (0.1, "do not differ")])
def test_two_single_runs_of_scores_are_told_apart_by_the_bootstrap_over_examples(tmp_path, error, differ):
    """No prediction is exactly right, so McNemar's test would have nothing to count."""
    (pair,) = compare_pairs(scored(tmp_path / "same", {("head", 1): error, ("full", 1): 0.1}), "pearson")
    assert pair.seeds == (1,) and not pair.claimed and pair.mcnemar is None
    opening, p = "Head and Full share only seed 1: no difference can be claimed.", pair.bootstrap.p
    test = f"bootstrap over the examples, p {p_text(p)}, uncorrected"
    assert pair.words == f"{opening} These two runs {differ} significantly in pearson ({test})."
    (pair,) = compare_pairs(scored(tmp_path / "other", {("head", 1): error, ("full", 2): 0.1}), "pearson")
    assert (pair.seeds, pair.p, pair.claimed) == ((), None, False)
    assert pair.words.startswith("Head and Full have one run each: no difference can be claimed. These two runs")
    assert f"These two runs {differ} significantly in pearson" in pair.words
    comparison = scored(tmp_path / "three", {("head", 1): error, ("full", 2): 0.1, ("full", 3): 0.1})
    (pair,) = compare_pairs(comparison, "pearson")
    assert pair.bootstrap is None and pair.words == "Head and Full have no seed in common and are not tested."


def test_the_seeds_decide_too_not_only_the_examples(tmp_path):
    """Better under one seed and worse under the other, both by more than the examples explain."""
    errors = {("bitfit", 1): 0.1, ("bitfit", 2): 0.4, ("lora", 1): 0.4, ("lora", 2): 0.12}
    runs = [
        read_run(make_run(tmp_path / f"{method}-{seed}", "--method", method, seed=seed, error=error))
        for (method, seed), error in errors.items()
    ]
    (pair,) = compare_pairs(compare(runs)[0], "accuracy")
    assert pair.p > 0.5 and not pair.claimed


def test_the_larger_p_counts_and_holm_corrects_over_all_pairs(tmp_path):
    _, pairs = pairs_of(tmp_path, {"head": 0.4, "bitfit": 0.2, "lora": 0.19, "full": 0.1})
    assert len(pairs) == 6
    assert [pair.p for pair in pairs] == [max(pair.bootstrap.p, pair.seed_test.p) for pair in pairs]
    assert [pair.corrected for pair in pairs] == holm([pair.p for pair in pairs])


def test_pairs_that_cannot_be_claimed_are_not_corrected_for(tmp_path):
    errors = {("head", seed): 0.4 for seed in range(1, 6)} | {("full", seed): 0.1 for seed in range(1, 6)}
    made = [
        read_run(make_run(tmp_path / f"{method}-{seed}", "--method", method, seed=seed, error=error))
        for (method, seed), error in {**errors, ("bitfit", 1): 0.2, ("lora", 1): 0.19}.items()
    ]
    (alone,) = compare_pairs(compare(made[:10])[0], "accuracy")
    pairs = compare_pairs(compare(made)[0], "accuracy")
    assert len(pairs) == 6
    (claimed,) = [pair for pair in pairs if pair.corrected is not None]
    assert claimed == alone and claimed.claimed and claimed.corrected == claimed.p
    assert all(pair.seeds == (1,) and not pair.claimed and pair.p is not None for pair in pairs if pair is not claimed)


def test_only_common_seeds_are_paired(tmp_path):
    runs = [
        read_run(make_run(tmp_path / f"{method}-{seed}", "--method", method, seed=seed))
        for method, seeds in (("bitfit", (1, 2, 3)), ("lora", (2, 3, 4)), ("head", (9,)))
        for seed in seeds
    ]
    by_names = {(pair.a, pair.b): pair for pair in compare_pairs(compare(runs)[0], "accuracy")}
    paired = by_names["BitFit", "LoRA r=16"]
    assert paired.seeds == (2, 3)
    scores = {(run.method, run.seed): run.score("accuracy") for run in runs}
    expected = np.mean([scores["bitfit", seed] - scores["lora", seed] for seed in (2, 3)])
    assert paired.difference == pytest.approx(expected)
    none = by_names["Head", "BitFit"]
    assert (none.p, none.corrected, none.claimed) == (None, None, False)
    assert "no seed in common" in none.words
    where = "on the 2 seeds that both have"
    assert f"No difference can be claimed between {paired.a} and {paired.b} {where} (" in paired.words
    claimed = replace(paired, corrected=0.01).words
    assert f", by {abs(paired.difference):.4f} {where} (95 % interval" in claimed
    assert "that both have" not in replace(paired, others=False).words


def test_without_predictions_nothing_is_tested(tmp_path):
    """The t-test alone would claim what these examples show by chance, however few they are."""
    _, (pair,) = pairs_of(tmp_path, {"head": 0.4, "full": 0.1}, seeds=range(1, 6), predictions=False)
    assert (pair.bootstrap, pair.seed_test, pair.p, pair.claimed) == (None, None, None, False)
    assert pair.words == "Head and Full have no seed for which both saved predictions, and are not tested."


def test_a_run_without_predictions_costs_its_own_seed_alone(tmp_path):
    comparison, (whole,) = pairs_of(tmp_path, {"head": 0.4, "full": 0.1}, seeds=range(1, 6))
    runs = comparison.runs
    lacking = next(run for run in runs if (run.method, run.seed) == ("full", 3))
    (lacking.folder / PREDICTIONS).unlink()
    (pair,) = compare_pairs(compare([read_run(run.folder) for run in runs])[0], "accuracy")
    assert whole.seeds == (1, 2, 3, 4, 5) and pair.seeds == (1, 2, 4, 5)
    assert pair.claimed and "on the 4 seeds that both have" in pair.words
    (few,) = compare_pairs(compare([read_run(run.folder) for run in runs if run.seed in (1, 2)])[0], "accuracy")
    for run in runs:
        if run.method == "head" and run.seed > 2:
            (run.folder / PREDICTIONS).unlink()
    (pair,) = compare_pairs(compare([read_run(run.folder) for run in runs])[0], "accuracy")
    assert (pair.seeds, pair.difference, pair.p) == ((1, 2), few.difference, few.p)


@given(st.floats(0, 1) | st.floats(0.0495, 0.0505))
def test_a_p_value_in_print_is_on_its_side_of_the_threshold(value):
    text = p_text(value)
    assert text == "< 0.001" if value < 0.001 else (float(text) < ALPHA) == (value < ALPHA)
    assert len(text) == 5 or abs(value - ALPHA) < 0.0006 or value < 0.001


def test_p_values_have_three_digits_but_beside_the_threshold():
    expected = {
        0.0004: "< 0.001",
        0.0314: "0.031",
        0.04961: "0.0496",
        0.05: "0.050",
        0.0500321: "0.05003",
        1.0: "1.000",
    }
    assert {value: p_text(value) for value in expected} == expected


def test_what_holms_correction_loses_is_not_said_to_lack_examples(tmp_path, monkeypatch):
    _, (pair,) = pairs_of(tmp_path, {"head": 0.4, "full": 0.1}, seeds=range(1, 6))
    monkeypatch.setattr(Pair, "examples_suffice", False)
    few = replace(pair, corrected=0.06)
    assert few.words.endswith("The difference is significant on its own, but not after correction for all pairs.")
