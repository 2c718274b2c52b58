"""The table's numbers, baselines and published results, against the content of the runs."""

from __future__ import annotations

import csv
import io
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlib.data.tasks import TASKS
from peftlib.evaluation.statistics import Interval, mean_interval
from peftlib.reporting.grouping import compare
from peftlib.reporting.reference import REFERENCES, references
from peftlib.reporting.runs import read_run
from peftlib.reporting.sheets import (
    Sheet,
    md_escaped,
    notes_of,
    reference_sheet,
    rows_csv,
    sheet_of,
    tex_escaped,
    to_latex,
    to_markdown,
)  # fmt: skip
from peftlib.reporting.table import _most_common, plus_minus, rows, without_result
from peftlib.strategies import STRATEGIES
from tests.reporting.made_up import make_run, make_run_of_several


@pytest.fixture
def runs(tmp_path):
    """Make runs on MRPC: two methods with three seeds each, and a failed run."""
    made = [
        make_run(tmp_path / f"{method}-{seed}", "--task_name", "mrpc", "--method", method, seed=seed)
        for method in ("bitfit", "full")
        for seed in (1, 2, 3)
    ]
    made.append(make_run(tmp_path / "broken", "--task_name", "mrpc", "--method", "lora", seed=4, status="failed"))
    return [read_run(folder) for folder in made]


def test_a_row_is_the_mean_of_its_runs(runs):
    (comparison,) = compare(runs)
    _, bitfit, full = rows(comparison)
    mine = [run for run in runs if run.method == "bitfit"]
    assert bitfit.metrics["f1"] == mean_interval([run.results["best_eval_f1"] for run in mine])
    assert bitfit.costs["train_seconds"].mean == statistics.mean(run.results["train_runtime"] for run in mine)
    assert bitfit.costs["peak_memory_bytes"].mean == mine[0].record["peak_memory_bytes"]
    assert (bitfit.seeds, bitfit.trainable, bitfit.saved_bytes) == ((1, 2, 3), 26_882, 26_882 * 4 + 2000)
    assert full.ratio == 1.0


def test_the_majority_class_is_what_the_labels_say(runs):
    majority, *_ = rows(compare(runs)[0])
    labels = runs[0].answers[1]
    share = max(labels.mean(), 1 - labels.mean())
    assert majority.metrics["accuracy"] == Interval(1, pytest.approx(share), None, None)
    # F1 of an answer that is always 1 is 2p / (p + 1); of one that never is, 0.
    always_one = labels.mean() >= 0.5
    assert majority.metrics["f1"].mean == pytest.approx(2 * share / (share + 1) if always_one else 0.0)
    assert majority.baseline and majority.seeds == ()


def test_of_scores_the_mean_stands_in_place_of_the_majority_class(tmp_path):
    run = read_run(make_run(tmp_path / "run", "--task_name", "stsb"))
    mean, bitfit = rows(compare([run])[0])
    assert (mean.label, mean.baseline, mean.seeds) == ("mean score", True, ())
    assert {name: interval.mean for name, interval in mean.metrics.items()} == {"pearson": 0.0, "spearmanr": 0.0}
    assert bitfit.metrics["pearson"].mean == run.score("pearson") > 0.5


def test_of_several_classes_the_frequent_ones_stand_in_place_of_the_majority_class(tmp_path):
    run = read_run(make_run_of_several(tmp_path / "run"))
    frequent, _ = rows(compare([run])[0])
    assert (frequent.label, frequent.baseline, frequent.seeds) == ("most frequent classes", True, ())
    labels = run.answers[1]
    hits = labels[:, 0].sum()  # the one that more than half have
    assert frequent.metrics["micro_f1"].mean == pytest.approx(2 * hits / (len(labels) + labels.sum()))
    assert frequent.metrics["subset_accuracy"].mean == (labels == [1, 0, 0]).all(axis=1).mean()
    title, answer = _most_common(np.array([[0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]))
    assert (title, answer.tolist()) == ("most frequent classes", [0, 1, 0])  # none has half: the first of all


def test_without_predictions_there_is_no_majority_row(tmp_path):
    run = read_run(make_run(tmp_path / "run", predictions=False))
    assert [row.label for row in rows(compare([run])[0])] == ["BitFit"]


def test_failed_runs_are_listed_with_their_reason(runs):
    assert without_result(runs) == [("broken", "mrpc, LoRA r=16, seed 4", "failed: the loss is nan at step 3")]


def test_others_numbers_stand_in_a_table_of_their_own(runs):
    table = rows(compare(runs)[0])
    assert not any("report" in title or "published" in title for title in sheet_of(table).header)
    sheet = reference_sheet(table)
    assert sheet.header == ["method", "our accuracy", "our f1", "seed report", "published"]
    bitfit, full = sheet.lines
    assert bitfit[3:] == ["accuracy .8088, F1 .8682 [1]", "–"]
    assert full[3] == "–" and "bert-base-cased: accuracy .8407, F1 .8885 [2]" in full[4]
    assert notes_of(sheet)[0].startswith("[1] the report that this project began with")


def test_a_rank_matches_its_own_number_only():
    values = {rank: [entry.value for entry in references("mrpc", "lora", rank) if entry.own] for rank in (8, 16, 64)}
    assert values == {8: ["accuracy .8578, F1 .9003"], 16: ["accuracy .8554, F1 .8977"], 64: []}
    assert references("rotten_tomatoes", "bitfit", None) == []


def test_every_reference_is_of_a_known_task_and_method():
    assert {entry.task for entry in REFERENCES} <= set(TASKS)
    assert {entry.method for entry in REFERENCES} <= set(STRATEGIES)
    assert all(entry.source and entry.model for entry in REFERENCES)


def test_the_csv_has_full_precision(runs):
    table = rows(compare(runs)[0])
    majority, bitfit, full = csv.DictReader(io.StringIO(rows_csv(table)))
    assert float(bitfit["accuracy_mean"]) == table[1].metrics["accuracy"].mean
    assert float(bitfit["accuracy_low"]) == table[1].metrics["accuracy"].low
    assert (bitfit["seeds"], bitfit["trainable_params"]) == ("1 2 3", "26882")
    assert (majority["train_seconds_mean"], majority["accuracy_low"]) == ("", "")
    assert full["published_source"].startswith("transformers")


def test_one_seed_has_no_plus_minus():
    assert plus_minus(mean_interval([0.81234])) == "0.8123"
    assert plus_minus(mean_interval([-1e-9])) == "0.0000", "as R² of the mean score is computed"
    assert plus_minus(Interval(3, 0.8, 0.79, 0.81)) == "0.8000 ± 0.0100"


NASTY = r"50% & <b>$x_1$</b> | {a} # ~ ^ \ `code` *bold* [link](x)"


def test_markdown_cells_stay_in_their_cell():
    text = to_markdown(Sheet(["a", "b"], [[NASTY, "line\nbreak"]], 2))
    header, rule, line = text.splitlines()
    assert (header, rule) == ("| a | b |", "|---|---:|")
    # Unescaped: the three bars of the table, and nothing else that Markdown or HTML reads as markup.
    bare = line.replace("\\\\", "").replace("\\|", "").replace("\\<", "").replace("\\>", "")
    assert bare.count("|") == 3 and "<" not in bare and ">" not in bare
    assert md_escaped("a_b*c") == r"a\_b\*c"
    assert md_escaped("&amp; $x$") == r"\&amp; \$x\$"


def test_latex_has_its_specials_escaped():
    text = to_latex(Sheet(["method", "0.8 ± 0.1"], [[NASTY, "−1 – 2"]], 2, ("a_b",)))
    assert r"50\% \& <b>\$x\_1\$</b> | \{a\} \# \textasciitilde{} \textasciicircum{} \textbackslash{}" in text
    assert r"method & 0.8 $\pm$ 0.1 \\" in text and r"$-$1 -- 2 \\" in text
    assert r"\begin{tabular}{lr}" in text and "% [1] a_b" in text


@given(st.text())
def test_no_text_leaves_a_bare_special_in_latex(text):
    bare = tex_escaped(text)
    for escaped in ("\\&", "\\%", "\\$", "\\#", "\\_", "\\{", "\\}", "\\textbackslash{}", "\\textasciitilde{}",
                    "\\textasciicircum{}", "$\\pm$", "$-$"):  # fmt: skip
        bare = bare.replace(escaped, "")
    assert not set(bare) & set("\\&%$#_{}~^")
