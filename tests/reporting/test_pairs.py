"""What may be claimed of made-up runs whose difference is known."""

from __future__ import annotations

import numpy as np
import pytest

from peftlib.errors import UserError
from peftlib.evaluation.predictions import save_predictions
from peftlib.evaluation.statistics import compare_seeds, holm, mcnemar
from peftlib.reporting.grouping import compare
from peftlib.reporting.pairs import compare_pairs
from peftlib.reporting.runs import read_run
from tests.reporting.made_up import EXAMPLES, make_run


def pairs_of(folder, errors, seeds=(1, 2, 3), metric="accuracy", **options):
    """The tests between methods with these error rates, on MRPC."""
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
    assert f"about {expected.seeds_needed:,} seeds" in pair.words


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
        "Head and Full share seed 1 only: no difference can be claimed. These two runs make different errors "
        "(McNemar's p < 0.001, uncorrected)."
    )


def test_the_seeds_decide_too_not_only_the_examples(tmp_path):
    """Better under one seed, worse under the other, each beyond what the examples explain."""
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


def test_without_predictions_the_seeds_alone_are_tested(tmp_path):
    _, (pair,) = pairs_of(tmp_path, {"head": 0.4, "full": 0.1}, seeds=range(1, 6), predictions=False)
    assert pair.bootstrap is None and pair.p == pair.seed_test.p
    assert pair.claimed and "interval" not in pair.words


def test_predictions_of_other_examples_are_refused(tmp_path):
    comparison, _ = pairs_of(tmp_path, {"bitfit": 0.2, "lora": 0.2})
    folder = comparison.variants[0].runs[1].folder
    save_predictions(folder, np.zeros((EXAMPLES, 2)), np.zeros(EXAMPLES))
    (again,) = compare([read_run(run.folder) for run in comparison.runs])
    with pytest.raises(UserError, match="its predictions are of other examples"):
        compare_pairs(again, "accuracy")
