"""Statistics against scipy and known results."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from peftlib.evaluation.resampling import resampled_scores, streams
from peftlib.evaluation.statistics import (
    Resampled,
    compare_seeds,
    holm,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    seeds_for,
    seeds_for_examples,
)

scores = st.lists(st.floats(0, 1), min_size=2, max_size=12)


# ── Mean and interval ────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=50)
@given(scores)
def test_the_interval_is_students(values):
    found = mean_interval(values)
    assert (found.n, found.mean) == (len(values), pytest.approx(np.mean(values)))
    if np.std(values) > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_a_known_interval():
    # t(0.975, 2) = 4.3027; the standard error of 1, 2, 3 is 1 / sqrt(3).
    assert mean_interval([1.0, 2.0, 3.0]).half_width == pytest.approx(4.302653 / math.sqrt(3))


def test_one_seed_has_no_interval():
    found = mean_interval([0.8])
    assert (found.mean, found.low, found.high, found.half_width) == (0.8, None, None, None)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_no_mean_of_nothing_and_of_no_numbers(values):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


# ── Seeds ────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=10))
def test_the_paired_t_test_is_scipys(pairs):
    a, b = map(list, zip(*pairs, strict=True))
    difference = np.subtract(a, b)
    found = compare_seeds(a, b)
    if difference.std(ddof=1) > 1e-9:
        assert found.p == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)
        assert found.effect == pytest.approx(difference.mean() / difference.std(ddof=1))
        assert compare_seeds(b, a).p == pytest.approx(found.p)


def test_the_same_scores_do_not_differ():
    found = compare_seeds([0.7, 0.8, 0.9], [0.7, 0.8, 0.9])
    assert (found.p, found.effect, found.seeds_needed) == (1.0, None, None)


def test_rounding_is_no_spread():
    # 0.8 - 0.7 and 0.9 - 0.8 differ in the 17th digit.
    assert compare_seeds([0.8, 0.9], [0.7, 0.8]).effect is None


@pytest.mark.parametrize("seeds", [2, 3, 6, 8])
def test_the_same_difference_under_every_seed_is_as_likely_as_its_signs(seeds):
    a, b = np.linspace(0.8, 0.9, seeds), np.linspace(0.8, 0.9, seeds) - 0.01
    exact = stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf)
    found = compare_seeds(a, b)
    assert found.p == pytest.approx(exact.pvalue) == compare_seeds(b, a).p
    assert (found.effect, found.seeds_needed) == (None, 6)
    assert (found.p < 0.05) == (seeds >= 6)


def test_ties_between_coarse_scores_make_no_claims():
    """Two seeds on 100 examples, no effect: equal differences are common, and must not give p = 0."""
    generator = np.random.default_rng(5)
    scores = generator.binomial(100, 0.95, (2000, 2, 2)) / 100
    p_values = np.array([compare_seeds(a, b).p for a, b in scores])
    ties = [np.ptp(a - b) < 1e-9 and abs((a - b).mean()) > 1e-9 for a, b in scores]
    assert np.mean(ties) > 0.05 and p_values[ties].min() == 0.5
    assert (p_values < 0.05).mean() < 0.05


@pytest.mark.parametrize(("a", "b"), [([0.5], [0.4]), ([0.5, 0.6, 0.7], [0.5, 0.6])])
def test_seeds_that_cannot_be_paired(a, b):
    with pytest.raises(ValueError):
        compare_seeds(a, b)


# Textbook values for a paired, two-sided t-test at 0.05 (G*Power 3.1).
@pytest.mark.parametrize(
    ("effect", "power", "count"), [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.5, 0.9, 44)]
)
def test_known_numbers_of_seeds(effect, power, count):
    assert seeds_for(effect, power) == count == seeds_for(-effect, power)


@pytest.mark.parametrize(("effect", "count"), [(3.2, 4), (5.4, 3), (5.5, 3), (8.0, 3), (10.8, 3), (11.7, 2), (30.0, 2)])
def test_large_effects_where_scipys_noncentral_t_gives_out(effect, count):
    """Against the definition: t = (Z + d sqrt(n)) / sqrt(chi² / (n - 1)), integrated over the chi²."""

    def power(n):
        critical, shares = stats.t.isf(0.025, n - 1), (np.arange(20_000) + 0.5) / 20_000
        edge = critical * np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))
        return (stats.norm.sf(edge - effect * math.sqrt(n)) + stats.norm.cdf(-edge - effect * math.sqrt(n))).mean()

    assert seeds_for(effect) == count
    assert power(count) >= 0.8 and (count == 2 or power(count - 1) < 0.8)


def test_huge_and_tiny_effects():
    assert seeds_for(1e6) == seeds_for(1e9) == 2
    assert seeds_for(0.0) is None
    assert seeds_for(1e-4) is None


# ── Examples ─────────────────────────────────────────────────────────────────────────────────────────────────────


def answers(generator, seeds, examples, error):
    """Draw predictions for labels that are all 1, wrong with this probability."""
    return (generator.random((seeds, examples)) >= error).astype(np.int64)


def bootstrap(a, b):
    labels = np.ones(a.shape[1], dtype=np.int64)
    return paired_bootstrap(resampled_scores(a, labels, "accuracy"), resampled_scores(b, labels, "accuracy"))


def test_the_bootstrap_of_one_run_is_near_the_normal_approximation():
    generator = np.random.default_rng(1)
    a, b = answers(generator, 1, 2000, 0.10), answers(generator, 1, 2000, 0.14)
    difference = (a - b)[0]
    half = 1.96 * difference.std() / math.sqrt(2000)
    found = bootstrap(a, b)
    assert (found.low, found.high) == (
        pytest.approx(difference.mean() - half, abs=0.003),
        pytest.approx(difference.mean() + half, abs=0.003),
    )
    assert found.p == pytest.approx(2 * stats.norm.sf(difference.mean() / difference.std() * math.sqrt(2000)), abs=0.02)


def test_equal_answers_do_not_differ():
    a = answers(np.random.default_rng(2), 3, 100, 0.2)
    found = bootstrap(a, a)
    assert (found.low, found.high, found.p) == (0.0, 0.0, 1.0)


def test_a_difference_in_every_resample_has_the_smallest_p_there_is():
    found = bootstrap(np.ones((2, 50), dtype=np.int64), np.zeros((2, 50), dtype=np.int64))
    assert (found.low, found.high) == (1.0, 1.0)
    assert found.p == pytest.approx(2 / 5001)


def test_seeds_that_disagree_widen_the_interval():
    """Method a is better under one seed and worse under the other, which the examples alone would not show."""
    a = np.array([[1] * 400 + [0] * 100, [1] * 300 + [0] * 200])
    b = np.array([[1] * 350 + [0] * 150] * 2)
    found = bootstrap(a, b)
    assert found.low < -0.05 and found.high > 0.05 and found.p > 0.3


def test_a_bootstrap_tells_the_examples_part_of_the_variance_from_the_seeds():
    """Each example is right or wrong under all seeds alike; then each seed flips single predictions."""
    generator = np.random.default_rng(8)
    examples, seeds = 400, 12
    a, b = (np.repeat(answers(generator, 1, examples, 0.2), seeds, axis=0) for _ in range(2))
    a, b = (np.where(generator.random(x.shape) < 0.1, 1 - x, x) for x in (a, b))
    found = bootstrap(a, b)
    # Compare with a two-way analysis of variance of the seeds x examples table.
    difference = (a - b).astype(float)
    between = seeds * difference.mean(axis=0).var(ddof=1)
    residual = difference - difference.mean(axis=0) - difference.mean(axis=1, keepdims=True) + difference.mean()
    within = (residual**2).sum() / ((seeds - 1) * (examples - 1))
    assert found.of_examples == pytest.approx((between - within) / seeds / examples, rel=0.1)
    assert found.of_seeds > 0


def test_with_one_seed_all_variance_is_taken_for_the_examples():
    generator = np.random.default_rng(9)
    found = bootstrap(answers(generator, 1, 300, 0.2), answers(generator, 1, 300, 0.3))
    assert found.of_seeds == 0 and found.of_examples > 0


def test_examples_that_no_number_of_seeds_makes_up_for():
    few = Resampled(-0.01, 0.05, 0.2, of_examples=0.02**2, of_seeds=0.01**2)
    assert few.p_of_any_number_of_seeds(0.02) == pytest.approx(2 * stats.norm.sf(1.0))
    assert seeds_for_examples(0.02, few) is None
    # d - 0.8416 sqrt(s / n) >= t sqrt(e + s / n): without variance of examples, t(0.975, 9) = 2.262 and
    # ((t + 0.8416) s / d)² = 9.6 <= 10, while t(0.975, 8) = 2.306 and 9.9 > 9.
    many = Resampled(-0.01, 0.05, 0.2, of_examples=0.0, of_seeds=0.02**2)
    assert many.p_of_any_number_of_seeds(0.02) == 0.0
    assert seeds_for_examples(0.02, many) == 10 == seeds_for_examples(-0.02, many)
    assert seeds_for_examples(0.02, Resampled(0, 0, 0, of_examples=0.008**2, of_seeds=0.02**2)) > 10


def test_examples_and_seeds_are_not_drawn_by_the_same_numbers():
    """Drawn alike, the deviations of the two would go together."""
    of_examples, of_seeds = (np.random.default_rng(stream).normal(size=2000) for stream in streams(0))
    assert abs(np.corrcoef(of_examples, of_seeds)[0, 1]) < 0.1


def test_the_variance_between_seeds_is_theirs():
    found = bootstrap(np.array([[1, 0], [0, 0]]), np.zeros((2, 2), dtype=np.int64))
    assert found.of_examples == 0 and found.of_seeds == pytest.approx(1 / 8, rel=0.1)  # of .5 and 0


def coverage(seeds, examples, of_seeds, noise=0.0, comparisons=400):
    """Return the share of 95 % intervals that contain the true difference, 0.

    Args:
        examples, of_seeds, noise: standard deviations of the differences that are due to the examples, to each seed,
            and to the examples under each seed.
    """
    generator = np.random.default_rng(seeds)
    inside = 0
    for _ in range(comparisons):
        observed = generator.normal(0, examples) + generator.normal(0, math.hypot(of_seeds, noise), seeds)
        resampled = generator.normal(0, examples, (1000, 1)) + generator.normal(0, noise, (1000, seeds))
        found = paired_bootstrap(observed + resampled, np.zeros((1000, seeds)))
        inside += found.low <= 0 <= found.high
    return inside / comparisons


# Without the corrections for few seeds, intervals of seeds that differ much cover 77 % (3 seeds) and 84 % (5 seeds).
@pytest.mark.parametrize(
    ("examples", "of_seeds", "noise"), [(1, 1, 0), (1, 2, 0), (1, 5, 0), (0.1, 1, 0), (1, 1, 1), (1, 0, 1), (1, 0, 0)]
)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_the_true_difference_with_few_seeds(seeds, examples, of_seeds, noise):
    # The standard error of a share of 95 % among 400 is 1.1 %.
    assert coverage(seeds, examples, of_seeds, noise) >= 0.925


@pytest.mark.parametrize(("examples", "of_seeds", "noise"), [(1, 0, 0), (0.1, 1, 0), (1, 5, 0)])
def test_intervals_are_no_wider_than_they_must_be_where_one_source_prevails(examples, of_seeds, noise):
    assert coverage(5, examples, of_seeds, noise) <= 0.975


def test_an_interval_is_never_narrower_than_that_of_the_same_seeds():
    """Two seeds whose scores happen to agree say nothing of how seeds vary."""
    generator = np.random.default_rng(4)
    examples = generator.normal(0, 1, (5000, 1)) + generator.normal(0, 1, (5000, 2))
    found = paired_bootstrap(examples - examples.mean(axis=0), np.zeros((5000, 2)))
    assert found.of_seeds < 1e-20
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(1 + 1 / 2), rel=0.05)


def test_a_bootstrap_of_seeds_alone_is_the_t_test():
    """Every example is answered alike, so that resampling them changes nothing."""
    by_seed = np.array([0.01, 0.03, 0.02, 0.05, -0.01, 0.03, 0.02, 0.04, 0.0, 0.02, 0.03, 0.01])
    found = paired_bootstrap(np.tile(by_seed, (5000, 1)), np.zeros((5000, 12)))
    students = mean_interval(by_seed)
    assert (found.low, found.high) == (pytest.approx(students.low, abs=5e-4), pytest.approx(students.high, abs=5e-4))
    assert found.of_examples == 0 and found.of_seeds == pytest.approx(by_seed.var(ddof=1), rel=0.05)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_is_the_binomial_test_of_the_disagreements(only_a, only_b, both, neither):
    right_a = np.array([True] * only_a + [False] * only_b + [True] * both + [False] * neither, dtype=bool)
    right_b = np.array([False] * only_a + [True] * only_b + [True] * both + [False] * neither, dtype=bool)
    expected = min(1.0, 2 * stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5))
    assert mcnemar(right_a, right_b) == pytest.approx(expected)


# ── Several tests ────────────────────────────────────────────────────────────────────────────────────────────────


def test_holms_own_steps():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and never below the previous one.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.2]) == [0.2]


@settings(max_examples=10)  # statsmodels collects garbage at every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=15))
def test_a_corrected_p_is_between_its_own_and_bonferronis(p_values):
    for corrected, p in zip(holm(p_values), p_values, strict=True):
        assert p <= corrected + 1e-12 <= min(1.0, p * len(p_values)) + 1e-9


def test_made_up_methods_without_a_difference_are_rarely_told_apart():
    """100 comparisons with three seeds each and equal error rates: the t-test finds about 5 differences."""
    generator = np.random.default_rng(3)
    found = [
        compare_seeds(answers(generator, 3, 400, 0.2).mean(1), answers(generator, 3, 400, 0.2).mean(1)).p < 0.05
        for _ in range(100)
    ]
    assert sum(found) <= 10
