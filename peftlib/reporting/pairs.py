"""Which differences between methods may be claimed, in numbers and in words."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from peftlib.errors import UserError
from peftlib.evaluation.statistics import (
    RESAMPLED,
    Resampled,
    SeedTest,
    compare_seeds,
    holm,
    mcnemar,
    paired_bootstrap,
    resampled_scores,
)
from peftlib.reporting.grouping import Comparison, Variant
from peftlib.reporting.runs import Run

ALPHA = 0.05
#: What was done, for the report's readers.
METHOD = (
    "Each method at its best learning rate, pairs under the seeds that both have. Examples: paired bootstrap over "
    "validation examples and seeds (5,000 resamples). Seeds: paired t-test; effect is Cohen's d_z. A difference is "
    f"claimed when the larger of the two p-values stays below {ALPHA} after Holm's correction over all pairs. Numbers "
    "of seeds are for a power of 0.8 at an uncorrected 0.05. Rates and saved states were chosen on these same "
    "examples, which flatters every method alike."
)


@dataclass(frozen=True)
class Pair:
    """Two methods under the seeds that both have.

    Attributes:
        difference: the mean of `a` minus that of `b`, over these seeds.
        bootstrap: over examples and seeds; None without predictions.
        seed_test: over seeds; None with one.
        mcnemar: of the two runs, where there is one seed; else None.
        p: of all that could be tested, the largest: a difference has to hold for other examples *and* for other
            seeds (an intersection-union test: Berger, 1982, https://doi.org/10.1080/00401706.1982.10487790).
        corrected: `p` after Holm's correction over all pairs of the comparison; None before it, or without a p.
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

    @property
    def claimed(self) -> bool:
        """Whether the two methods may be said to differ; never on the word of one seed."""
        return len(self.seeds) > 1 and self.corrected is not None and self.corrected < ALPHA

    @property
    def words(self) -> str:
        """One or two sentences."""
        if not self.seeds:
            return f"{self.a} and {self.b} have no seed in common and are not tested."
        if len(self.seeds) == 1:
            return self._of_one_seed()
        if self.claimed:
            return self._claim()
        p = "" if self.corrected is None else f" (corrected p {p_text(self.corrected)})"
        return f"No difference can be claimed between {self.a} and {self.b}{p}. {self._more_seeds()}"

    def _claim(self) -> str:
        sign, better, worse = (1, self.a, self.b) if self.difference > 0 else (-1, self.b, self.a)
        parts = [] if self.corrected is None else [f"corrected p {p_text(self.corrected)}"]
        if self.bootstrap is not None:
            low, high = sorted((sign * self.bootstrap.low, sign * self.bootstrap.high))
            parts.insert(0, f"95 % interval {low:.4f} to {high:.4f}")
        size = abs(self.difference)
        return f"{better} has a higher {self.metric} than {worse}, by {size:.4f} ({', '.join(parts)})."

    def _of_one_seed(self) -> str:
        opening = f"{self.a} and {self.b} share seed {self.seeds[0]} only: no difference can be claimed."
        if self.mcnemar is None:
            return opening
        differ = "make different errors" if self.mcnemar < ALPHA else "cannot be told apart by their errors"
        return f"{opening} These two runs {differ} (McNemar's p {p_text(self.mcnemar)}, uncorrected)."

    def _more_seeds(self) -> str:
        if abs(self.difference) < 1e-12:
            return "Their mean scores are equal."
        if self.seed_test is None or self.seed_test.effect is None:
            return "It is the same under every seed, but the examples are too few to be sure."
        needed = self.seed_test.seeds_needed
        if needed is None:
            return "More than 10,000 seeds would be needed to find so small a difference."
        if needed <= len(self.seeds):
            return "The seeds agree, but the examples are too few, or the pairs too many, to be sure."
        return f"If it is as large as it looks, about {needed:,} seeds would find it; there are {len(self.seeds)}."


def compare_pairs(comparison: Comparison, metric: str) -> list[Pair]:
    """Test every pair of methods, each at its best rate, with Holm's correction over all of them.

    Raises:
        UserError: two runs' predictions are not of the same examples.
    """
    contenders = comparison.contenders()
    resampled = {variant.label: _resampled(variant, metric) for variant in contenders}
    pairs = [_test(a, b, metric, resampled) for a, b in itertools.combinations(contenders, 2)]
    tested = [pair for pair in pairs if pair.p is not None]
    corrected = dict(zip(map(id, tested), holm([pair.p for pair in tested if pair.p is not None]), strict=True))
    return [replace(pair, corrected=corrected.get(id(pair))) for pair in pairs]


def _test(a: Variant, b: Variant, metric: str, resampled: dict[str, np.ndarray | None]) -> Pair:
    runs_a, runs_b = ({run.seed: run for run in variant.runs} for variant in (a, b))
    seeds = tuple(sorted(runs_a.keys() & runs_b.keys()))
    if not seeds:
        return Pair(a.label, b.label, metric, seeds, a.mean(metric) - b.mean(metric), None, None, None, None)
    scores_a, scores_b = ([runs[seed].score(metric) for seed in seeds] for runs in (runs_a, runs_b))
    difference = float(np.mean(scores_a) - np.mean(scores_b))
    seed_test = compare_seeds(scores_a, scores_b) if len(seeds) > 1 else None
    samples_a, samples_b = resampled[a.label], resampled[b.label]
    bootstrap = None
    if samples_a is not None and samples_b is not None:
        columns_a, columns_b = ([[*runs].index(seed) for seed in seeds] for runs in (runs_a, runs_b))
        bootstrap = paired_bootstrap(samples_a[:, columns_a], samples_b[:, columns_b])
    only = _mcnemar(runs_a[seeds[0]], runs_b[seeds[0]]) if len(seeds) == 1 else None
    p_values = [test.p for test in (bootstrap, seed_test) if test is not None]
    return Pair(a.label, b.label, metric, seeds, difference, bootstrap, seed_test, only, max(p_values, default=None))


def _resampled(variant: Variant, metric: str) -> np.ndarray | None:
    """The variant's scores on resampled examples, shape (resamples, runs); None where they cannot be had."""
    known = [run.answers for run in variant.runs if run.answers is not None]
    if metric not in RESAMPLED or len(known) < len(variant.runs):
        return None
    labels = known[0][1]
    for run, (_, others) in zip(variant.runs, known, strict=True):
        if not np.array_equal(labels, others):
            raise UserError(f"{run.folder}: its predictions are of other examples than its record says; run it again")
    return resampled_scores(np.stack([predictions for predictions, _ in known]), labels, metric)


def _mcnemar(a: Run, b: Run) -> float | None:
    if a.answers is None or b.answers is None:
        return None
    return mcnemar(a.answers[0] == a.answers[1], b.answers[0] == b.answers[1])


def p_text(value: float) -> str:
    """A p-value as it is printed."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
