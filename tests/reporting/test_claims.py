"""Error rates of the whole procedure (bootstrap, t-test, Holm): false claims and missed differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peftlib.reporting.grouping import Comparison
from peftlib.reporting.pairs import Pair, compare_pairs
from peftlib.reporting.runs import Run
from peftlib.reporting.variants import Variant


def pairs_between(
    generator: np.random.Generator, methods: int, seeds: int, examples: int, gap: float = 0.0
) -> list[Pair]:
    """Test made-up methods, each with a logit of being right per example.

    An example's difficulty is shared by all methods, plus a part of each method's own; a seed shifts a method and adds
    noise to its predictions. The methods' expectations differ only by `gap`, which the first one lacks.
    """
    labels = np.ones(examples, dtype=np.int64)
    easy = generator.normal(1.5, 1.5, examples)
    variants = []
    for method in range(methods):
        own = easy + generator.normal(0, 0.7, examples) + (gap if method else 0.0)
        runs = []
        for seed in range(seeds):
            right = own + generator.normal(0, 0.5) + generator.normal(0, 0.5, examples) > 0
            record = {"arguments": {"seed": seed}, "results": {"best_eval_accuracy": float(right.mean())}}
            run = Run(Path(f"{method}-{seed}"), record, None)
            run.__dict__["answers"] = right.astype(np.int64), labels  # as if read from its file
            runs.append(run)
        variants.append(Variant(f"{method}", {}, 1e-3, ("warmup_ratio", 0.0), f"{method}", tuple(runs)))
    return compare_pairs(Comparison({"task": "sst2", "base model": "x"}, None, tuple(variants), ()), "accuracy")


def test_of_reports_without_a_difference_one_in_twenty_claims_one() -> None:
    """50 reports of three pairs: at 5 %, more than 7 claims have probability 1/300; the bootstrap alone makes 10."""
    generator = np.random.default_rng(17)
    claims = [any(pair.claimed for pair in pairs_between(generator, 3, 3, 60)) for _ in range(50)]
    assert sum(claims) <= 7


def test_a_difference_that_is_there_is_found() -> None:
    generator = np.random.default_rng(18)
    pairs = [pair for _ in range(15) for pair in pairs_between(generator, 2, seeds=5, examples=200, gap=2.0)]
    assert all(pair.difference < 0 for pair in pairs)
    assert sum(pair.claimed for pair in pairs) >= 13
