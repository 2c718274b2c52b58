"""Pairwise tests of methods: which differences may be claimed, in numbers and in words."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from peftlib.evaluation.resampling import RESAMPLED, resampled_scores
from peftlib.evaluation.statistics import (
    ALPHA,
    Resampled,
    SeedTest,
    compare_seeds,
    holm,
    mcnemar,
    paired_bootstrap,
    seeds_for_examples,
)
from peftlib.reporting.grouping import Comparison
from peftlib.reporting.runs import Run
from peftlib.reporting.variants import Variant

#: A run's folder -> its scores on resampled examples, shape (resamples,).
_Samples = dict[Path, np.ndarray]
#: Describes the tests to the report's readers.
METHOD = (
    "Each method is tested at one learning rate: the one with the most seeds in common with other methods, then with "
    "the most seeds, then with the highest mean. A pair is tested on the seeds for which both have predictions. "
    "Examples: paired bootstrap over validation examples and seeds (5,000 resamples), corrected for few seeds: the "
    "deviations of n seeds are rescaled by sqrt(n / (n - 1)), and the distribution is stretched until its interval "
    "allows for both variances, the examples' with the normal quantile and the seeds' with Student's t. Seeds: paired "
    "t-test; the effect size is Cohen's d_z. If the difference is the same for every seed, the exact sign-flip test is "
    "used instead, which needs at least six seeds to reach significance. A difference is claimed if the larger of the "
    f"two p-values is below {ALPHA} after Holm's correction over all pairs of the comparison that share several seeds: "
    "the others are never claimed. Each metric and each task is corrected on its own, so with several of them more "
    "claims are false positives. Intervals are of each pair by itself, uncorrected. Numbers of seeds are for a power "
    f"of 0.8 of both tests at an uncorrected {ALPHA}, on the same examples. Learning rates and saved states were "
    "selected on these examples too, which favours methods that were tried at more rates."
)


@dataclass(frozen=True)
class Pair:
    """The tests of two methods, on the seeds that both have.

    Attributes:
        seeds: those for which the runs of both have predictions. The t-test alone would claim a difference that these
            examples happen to show.
        difference: mean of `a` minus mean of `b`, over these seeds.
        bootstrap: test over examples and seeds, for two single runs over examples only; None if they are not tested.
        seed_test: test over seeds; None with fewer than two.
        mcnemar: p of McNemar's test of two single runs: the methods share one seed only, or share none and have one
            run each. None otherwise, and where answers are not simply right or wrong: there the bootstrap stands in.
        p: the largest p-value of the bootstrap and the test over seeds: a difference has to hold for other examples
            *and* for other seeds (an intersection-union test: Berger, 1982,
            https://doi.org/10.1080/00401706.1982.10487790).
        corrected: `p` after Holm's correction over all pairs of the comparison that share several seeds; None before
            it, and for other pairs.
        others: whether either method has other runs too, which its mean covers and the tests do not.
        lacking: whether one of the two has runs without predictions.
    """

    a: str
    b: str
    metric: str
    seeds: tuple[int, ...]
    difference: float
    bootstrap: Resampled | None
    seed_test: SeedTest | None
    mcnemar: float | None
    p: float | None
    corrected: float | None = None
    others: bool = False
    lacking: bool = False

    @property
    def claimed(self) -> bool:
        """Whether the two methods may be said to differ; never with a single seed."""
        return self.corrected is not None and self.corrected < ALPHA

    @property
    def words(self) -> str:
        """The result in one or two sentences."""
        if len(self.seeds) < 2:
            return self._words_for_single_runs()
        if self.claimed:
            return self._claim()
        p = "" if self.corrected is None else f" (corrected p {p_text(self.corrected)})"
        return f"No difference can be claimed between {self.a} and {self.b}{self._where}{p}. {self._more_seeds()}"

    @property
    def _where(self) -> str:
        return f" on the {len(self.seeds)} seeds that both have" if self.others else ""

    def _claim(self) -> str:
        sign, better, worse = (1, self.a, self.b) if self.difference > 0 else (-1, self.b, self.a)
        assert self.corrected is not None and self.bootstrap is not None
        low, high = sorted((sign * self.bootstrap.low, sign * self.bootstrap.high))
        tests = f"95 % interval {low:.4f} to {high:.4f}, corrected p {p_text(self.corrected)}"
        size = abs(self.difference)
        return f"{better} has a higher {self.metric} than {worse}, by {size:.4f}{self._where} ({tests})."

    def _words_for_single_runs(self) -> str:
        if self.seeds:
            opening = f"{self.a} and {self.b} share only seed {self.seeds[0]}: no difference can be claimed."
        elif self.mcnemar is not None or self.bootstrap is not None:
            opening = f"{self.a} and {self.b} have one run each: no difference can be claimed."
        elif self.lacking:
            return f"{self.a} and {self.b} have no seed for which both saved predictions, and are not tested."
        else:
            return f"{self.a} and {self.b} have no seed in common and are not tested."
        if self.mcnemar is None:
            assert self.bootstrap is not None
            differ = "differ" if self.bootstrap.p < ALPHA else "do not differ"
            test = f"bootstrap over the examples, p {p_text(self.bootstrap.p)}, uncorrected"
            return f"{opening} These two runs {differ} significantly in {self.metric} ({test})."
        differ = "differ" if self.mcnemar < ALPHA else "do not differ"
        test = f"McNemar's p {p_text(self.mcnemar)}, uncorrected"
        return f"{opening} These two runs {differ} significantly in how many examples they get wrong ({test})."

    @property
    def examples_suffice(self) -> bool:
        """Whether the bootstrap could find this difference on these examples, given enough seeds."""
        return self.bootstrap is not None and self.bootstrap.p_of_any_number_of_seeds(self.difference) < ALPHA

    @property
    def seeds_needed(self) -> int | None:
        """Number of seeds with which all tests would find a difference of this size; None if above 10,000."""
        if self.bootstrap is None or self.seed_test is None:
            return None
        if self.seed_test.seeds_needed is None or not self.examples_suffice:
            return None
        for_examples = seeds_for_examples(self.difference, self.bootstrap)
        return None if for_examples is None else max(self.seed_test.seeds_needed, for_examples)

    def _more_seeds(self) -> str:
        if abs(self.difference) < 1e-12:
            return "Their mean scores are equal."
        if self.p is not None and self.p < ALPHA:
            return "The difference is significant on its own, but not after correction for all pairs."
        if not self.examples_suffice:
            return "More seeds would not settle it: the validation examples are too few for a difference of this size."
        needed = self.seeds_needed
        if needed is None:
            return "More than 10,000 seeds would be needed to detect a difference this small."
        if needed <= len(self.seeds):
            return (
                f"About {needed:,} seeds detect a difference of this size in four tries of five; these "
                f"{len(self.seeds)} did not, and more may settle it."
            )
        if self.seed_test is not None and self.seed_test.effect is None:
            return (
                f"The difference is the same for all {len(self.seeds)} seeds; at least {needed:,} would have to agree."
            )
        return (
            f"If the difference is really this large, about {needed:,} seeds would detect it; there are "
            f"{len(self.seeds)}."
        )


def compare_pairs(comparison: Comparison, metric: str) -> list[Pair]:
    """Test every pair of contenders, with Holm's correction over all pairs that could be claimed.

    Pairs with a single common seed are never claimed, so counting them would only cost the others their power.
    """
    contenders = comparison.contenders()
    resampled = _resampled(contenders, metric)
    pairs = [_test(a, b, metric, resampled) for a, b in itertools.combinations(contenders, 2)]
    corrected = iter(holm([pair.p for pair in pairs if pair.seed_test is not None and pair.p is not None]))
    return [pair if pair.seed_test is None else replace(pair, corrected=next(corrected)) for pair in pairs]


def _test(a: Variant, b: Variant, metric: str, resampled: _Samples) -> Pair:
    known_a, known_b = ({run.seed: run for run in variant.runs if run.folder in resampled} for variant in (a, b))
    runs, known = len(a.runs) + len(b.runs), len(known_a) + len(known_b)
    seeds = tuple(sorted(known_a.keys() & known_b.keys()))
    others, lacking = len(seeds) < max(len(a.runs), len(b.runs)), known < runs
    if not seeds and not runs == known == 2:
        difference = a.mean(metric) - b.mean(metric)
        return Pair(a.label, b.label, metric, seeds, difference, None, None, None, None, others=others, lacking=lacking)
    # Single runs need answers to the same examples, not the same seeds.
    runs_a, runs_b = ([one[seed] for seed in seeds] or [*one.values()] for one in (known_a, known_b))
    scores_a, scores_b = ([run.score(metric) for run in one] for one in (runs_a, runs_b))
    difference = float(np.mean(scores_a) - np.mean(scores_b))
    only = _mcnemar(runs_a[0], runs_b[0]) if len(runs_a) == 1 else None
    bootstrap = _bootstrap(runs_a, runs_b, resampled) if seeds or only is None else None
    seed_test = compare_seeds(scores_a, scores_b) if len(seeds) > 1 else None
    p_values = [test.p for test in (bootstrap, seed_test) if test is not None] if seeds else []
    p = max(p_values, default=None)
    return Pair(
        a.label, b.label, metric, seeds, difference, bootstrap, seed_test, only, p, others=others, lacking=lacking
    )


def _bootstrap(a: list[Run], b: list[Run], resampled: _Samples) -> Resampled:
    samples_a, samples_b = (np.stack([resampled[run.folder] for run in runs], axis=1) for runs in (a, b))
    return paired_bootstrap(samples_a, samples_b)


def _resampled(variants: list[Variant], metric: str) -> _Samples:
    """Score all runs that have predictions on the same resampled examples."""
    runs = [(run, run.answers) for variant in variants for run in variant.runs if run.answers is not None]
    if metric not in RESAMPLED or not runs:
        return {}
    # All at once: drawing the examples takes longer than scoring them.
    scores = resampled_scores(np.stack([answers for _, (answers, _) in runs]), runs[0][1][1], metric)
    return dict(zip([run.folder for run, _ in runs], scores.T, strict=True))


def _mcnemar(a: Run, b: Run) -> float | None:
    assert a.answers is not None and b.answers is not None
    labels = a.answers[1]
    if labels.dtype.kind == "f" or labels.ndim == 2:  # regression or multi-label: not simply right or wrong
        return None
    return mcnemar(a.answers[0] == a.answers[1], b.answers[0] == b.answers[1])


def p_text(value: float) -> str:
    """Format a p-value, with so many digits that it does not round to the threshold of a claim."""
    if value < 0.001:
        return "< 0.001"
    digits = 3
    while round(value, digits) == ALPHA != value:
        digits += 1
    return f"{value:.{digits}f}"
