"""What a handful of seeds on a small validation split allow to be said.

Two things make a score vary: the seed (Dodge et al., 2020, https://arxiv.org/abs/2002.06305) and the choice of
validation examples. Seeds are compared by a paired t-test, examples (and seeds) by a paired bootstrap (Dror et al.,
2018, https://aclanthology.org/P18-1128, on which test fits which score), two single runs by McNemar's test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from peftlib.evaluation.resampling import streams

ALPHA = 0.05
#: Below this a standard deviation of scores in 0..1 is rounding, not spread.
_NO_SPREAD = 1e-12
#: With fewer seeds than this, even if all agree, the sign-flip test stays above ALPHA.
_FEWEST_SIGNS = math.ceil(1 - math.log2(ALPHA))


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes:
        low, high: the ends of the confidence interval; None with one seed, which has no spread to go by.
    """

    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """What stands behind the ±."""
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class SeedTest:
    """A paired t-test over seeds, and how large the difference is.

    Attributes:
        p: two-sided.
        effect: Cohen's d_z, the mean difference in standard deviations of the differences; None without spread.
        seeds_needed: how many seeds find a difference of this effect with a power of 0.8, or without spread the fewest
            of which the sign-flip test can say anything; None where no number does.
    """

    p: float
    effect: float | None
    seeds_needed: int | None


@dataclass(frozen=True)
class Resampled:
    """What a bootstrap says of a difference.

    Attributes:
        low, high: the ends of its confidence interval.
        p: two-sided.
        of_examples: the part of the difference's variance that stays under any number of seeds: that of the examples.
        of_seeds: the part that one seed adds; with n of them the variance is of_examples + of_seeds / n. 0 with one
            seed, which cannot be told from the examples.
    """

    low: float
    high: float
    p: float
    of_examples: float
    of_seeds: float

    def p_of_any_number_of_seeds(self, difference: float) -> float:
        """The p that this difference would come to if there were no end of seeds and it stayed as it is."""
        if self.of_examples <= 0:
            return 0.0 if difference else 1.0
        return float(2 * stats.norm.sf(abs(difference) / math.sqrt(self.of_examples)))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean and Student-t confidence interval over seeds.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    array = _finite(values)
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Interval(1, mean, None, None)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * array.std(ddof=1) / math.sqrt(n))
    return Interval(n, mean, mean - half, mean + half)


def compare_seeds(a: Sequence[float], b: Sequence[float], power: float = 0.8) -> SeedTest:
    """Paired t-test of `a - b`, scores of the same seeds in the same order.

    Effect size: Cohen's d_z (Lakens, 2013, https://doi.org/10.3389/fpsyg.2013.00863, equation 6).

    Scores are multiples of 1/examples, so that few seeds often differ by exactly the same. The t statistic would then
    be infinite, which only says that the spread is finer than the scores. Such ties go to the exact sign-flip test
    (Fisher, 1935, section 21): if neither method were better, each seed's difference might as well have had the other
    sign, and all n of them agree with probability 2^(1-n).

    Raises:
        ValueError: the two differ in length, have fewer than two seeds, or hold a number that is not finite.
    """
    difference = _finite(a) - _finite(b)
    if len(difference) < 2:
        raise ValueError("a paired t-test needs at least two seeds")
    mean, spread = float(difference.mean()), float(difference.std(ddof=1))
    if spread < _NO_SPREAD:
        if abs(mean) < _NO_SPREAD:
            return SeedTest(p=1.0, effect=None, seeds_needed=None)
        return SeedTest(p=2.0 ** (1 - len(difference)), effect=None, seeds_needed=_FEWEST_SIGNS)
    effect = mean / spread
    return SeedTest(float(stats.ttest_rel(a, b).pvalue), effect, seeds_for(effect, power))


def seeds_for(effect: float, power: float = 0.8, most: int = 10_000) -> int | None:
    """The fewest seeds with which a paired t-test finds this effect with this power; None when over `most`.

    Power from the noncentral distribution (Cohen, 1988, chapter 2): that of F = t², which is the two-sided test. The
    noncentral t of scipy, and of statsmodels with it, is NaN for many effects between 1 and 50.
    """

    def enough(n: int) -> bool:
        critical = stats.t.isf(ALPHA / 2, n - 1) ** 2
        return float(stats.ncf.sf(critical, 1, n - 1, n * effect**2)) >= power

    return _fewest(enough, most) if effect else None


def seeds_for_examples(difference: float, found: Resampled, power: float = 0.8, most: int = 10_000) -> int | None:
    """The fewest seeds with which the bootstrap finds this difference with this power; None when over `most`.

    The examples stay the same ones, so only the seeds' part of the variance shrinks; with an effect that the examples
    cannot carry no number of seeds is enough.
    """
    line, margin = stats.norm.isf(ALPHA / 2), stats.norm.ppf(power)

    def enough(n: int) -> bool:
        seeds = found.of_seeds / n
        return bool(abs(difference) - margin * math.sqrt(seeds) >= line * math.sqrt(found.of_examples + seeds))

    return _fewest(enough, most)


def _fewest(enough: Callable[[int], bool], most: int) -> int | None:
    """The smallest number of seeds, two or more, that is enough, where every larger one is too."""
    low, high = 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= most else None


def paired_bootstrap(a: np.ndarray, b: np.ndarray, seed: int = 0, confidence: float = 0.95) -> Resampled:
    """The difference of two methods' mean scores, when both the examples and the seeds are drawn anew.

    Source: Efron and Tibshirani, 1993, chapters 13 (percentile interval) and 15 (achieved significance level); rows
    and columns of the seeds × examples table are drawn independently (Owen, 2007,
    https://doi.org/10.1214/07-AOAS122). With one seed only the examples are drawn anew.

    Args:
        a, b: from `resampled_scores`, shape (resamples, seeds), the same seeds in the same order.
    """
    resamples, seeds = a.shape
    drawn = np.random.default_rng(streams(seed)[1]).integers(0, seeds, (resamples, seeds))
    by_seed = a - b
    differences = np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    # One is added for the sample itself, so that no p is 0 (Davison and Hinkley, 1997, section 4.2).
    smaller = min((differences <= _NO_SPREAD).sum(), (differences >= -_NO_SPREAD).sum()) + 1
    p = min(1.0, 2 * float(smaller) / (resamples + 1))
    return Resampled(float(low), float(high), p, *_parts_of_variance(by_seed, float(differences.var())))


def _parts_of_variance(by_seed: np.ndarray, whole: float) -> tuple[float, float]:
    """What the examples, and what one seed, add to the variance of the mean difference.

    Seeds that are scored on the same resampled examples share the examples' part and nothing else: it is their mean
    covariance.

    Args:
        by_seed: differences, shape (resamples, seeds).
        whole: the variance of the bootstrap over both.
    """
    seeds = by_seed.shape[1]
    if seeds == 1:
        return whole, 0.0
    own = by_seed.var(axis=0).sum()
    shared = max(0.0, float(by_seed.sum(axis=1).var() - own) / (seeds * (seeds - 1)))
    # Drawn from n seeds, their variance comes out smaller by (n - 1) / n.
    return shared, max(0.0, whole - shared) * seeds**2 / (seeds - 1)


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """McNemar's exact test for two single runs: p that their errors differ by chance.

    Only the examples count that one gets right and the other wrong (Dietterich, 1998,
    https://doi.org/10.1162/089976698300017197, section 3.1).

    Args:
        right_a, right_b: whether each answer is right, bool, shape (examples,).
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm, 1979, https://www.jstor.org/stable/4615733), in the same order."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{values}: must be finite numbers, at least one")
    return array
