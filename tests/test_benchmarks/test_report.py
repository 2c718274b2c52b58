"""The tables say what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import report
from benchmarks.profile_step import shares, timeline, timelines
from benchmarks.quality import summary


def speed(rate: float, **changes: object) -> dict[str, object]:
    """One measurement of `rate` samples a second."""
    return {
        "examples": 100,
        "seconds": 100 / rate,
        "tokens": 5000,
        "computed": 6250,
        "operations": 1e10,
        "precision": "no",
        "threads": 2,
        "memory": {"peak": 900_000_000, "after_imports": 400_000_000},
        "first_update": 8.0,
        **changes,
    }


SPEEDS = {
    "MRPC BitFit": {
        "Trainer fp32": [speed(10), speed(20), speed(30)],
        "Trainer bf16": [speed(40, precision="bf16")] * 3,
        "ours": [speed(50, precision="bf16"), speed(80, precision="bf16"), speed(90, precision="bf16")],
    }
}


def cells(text: str, start: str) -> list[str]:
    """The cells of the row that starts so."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_ratios_are_taken_round_by_round():
    text = report.ratios(SPEEDS)
    assert "ours (bf16)" in text
    # 50/10, 80/20, 90/30; and 50/40, 80/40, 90/40
    assert cells(text, "MRPC BitFit")[1:] == ["20.0", "40.0", "80.0", "4.00 × (3.00–5.00)", "2.00 × (1.25–2.25)"]


def test_on_a_gpu_equal_precisions_are_compared():
    by_name = {name: [speed(10)] for name in ("Trainer fp16", "Trainer bf16", "ours fp16", "ours bf16")}
    head = report.ratios({"MRPC BitFit": by_name}).splitlines()[2]
    assert "ours fp16 / Trainer fp16" in head and "ours bf16 / Trainer bf16" in head
    assert head.count(" / ") == 2


def test_what_only_one_side_did_has_no_ratio():
    alone = {"ours": [speed(70, precision="bf16")]}
    row = cells(report.ratios({**SPEEDS, "MRPC BitFit, 64×1": alone}), "MRPC BitFit, 64×1")
    assert row[1:] == ["", "", "70.0", "", ""]


def test_the_share_of_the_ceiling_is_that_of_the_runs_precision():
    text = report.details(SPEEDS, [{"no": 1e10, "bf16": 4e10}])
    rows = [line for line in text.splitlines() if line.startswith("| MRPC BitFit |")]
    # 1e10 operations in 5 s, of 1e10 a second; in 1.25 s, of 4e10 a second.
    assert [row.split("|")[5].strip() for row in rows] == ["20%", "10%", "20%"]
    assert [row.split("|")[4].strip() for row in rows] == ["0.80"] * 3


def test_memory_is_told_with_and_without_the_imports():
    full = speed(1, memory={"peak": 1_400_000_000, "after_imports": 400_000_000})
    text = report.memory({"bitfit": speed(1), "full": full})
    assert cells(text, "whole process")[1:] == ["900", "1,400", "0.64"]
    assert cells(text, "above the imports")[1:] == ["500", "1,000", "0.50"]


def test_on_a_gpu_memory_is_that_of_the_tensors():
    gpu = {"peak": 9, "after_imports": 3, "cuda_peak": 2_000_000}
    text = report.memory({"bitfit": speed(1, memory=gpu), "full": speed(1, memory={**gpu, "cuda_peak": 4_000_000})})
    assert cells(text, "tensors on the GPU")[1:] == ["2", "4", "0.50"]
    assert "process" not in text


def test_all_tables_stand_in_one_page():
    found = {
        "speeds": SPEEDS,
        "ceilings": [{"no": 1e10, "bf16": 4e10}],
        "memory": {"bitfit": speed(1), "full": speed(1)},
        "start": {"first_update": [9.0, 8.0, 9.5], "help": [1.0]},
        "processes": {"one": [speed(10)], "two": [speed(9, threads=1)]},
        "long": {"MRPC BitFit, 10 epochs": speed(50)},
    }
    text = report.markdown(found)
    assert cells(text, "10.0")[1:] == ["9.0", "0.90 × (0.90–0.90)"]
    assert cells(text, "MRPC BitFit, 10 epochs")[1:] == ["2.0", "50"]
    assert "| 9.0 |" in text


def test_what_a_run_that_was_cut_off_has_measured_is_told():
    speeds = {"MRPC BitFit": {**SPEEDS["MRPC BitFit"], "ours": []}, "SST-2 BitFit": {"ours": []}}
    text = report.markdown({"speeds": speeds, "ceilings": [{"no": 1e9, "bf16": 2e9}]})
    assert cells(text, "MRPC BitFit")[1:] == ["20.0", "40.0"]
    assert "ours /" not in text and "SST-2" not in text
    assert len(text.split("## Speed")[1].split("The ceiling")[0].strip().splitlines()) == 8


def test_a_profile_is_ordered_by_the_larger_share():
    text = shares({"a": 3.0, "b": 1.0}, {"b": 2.5, "c": 0.5}, top=2)
    assert cells(text, "`a`")[1:] == ["3.00", "75.0%", "0.00", "0.0%"]
    assert cells(text, "`b`")[1:] == ["1.00", "25.0%", "2.50", "83.3%"]
    assert "`c`" not in text
    assert cells(text, "all operators")[1:] == ["4.00", "100.0%", "3.00", "100.0%"]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=20), st.integers(1, 4))
def test_a_timeline_is_divided_without_rest(spans, updates):
    spans = [(float(start), float(start + length)) for start, length in spans]
    found = timeline(spans, updates)
    covered = {second for start, end in spans for second in range(int(start), int(end))}
    begin, end = min(covered), max(covered) + 1
    idle = "".join(" " if second in covered else "." for second in range(begin, end)).split()
    assert found["busy"] * updates == pytest.approx(len(covered))
    assert found["short gaps"] * updates == pytest.approx(sum(len(gap) for gap in idle if len(gap) <= 3))
    assert found["longer gaps"] * updates == pytest.approx(sum(len(gap) for gap in idle if len(gap) > 3))
    assert found["all"] * updates == pytest.approx(end - begin)
    assert found["launches"] * updates == pytest.approx(len(spans))
    assert cells(timelines({"ours": found}), "ours")[-1] == f"{len(spans) / updates:,.0f}"


def test_quality_is_the_paired_difference_with_its_interval():
    from scipy import stats

    plain, ours = [0.80, 0.82, 0.81], [0.81, 0.82, 0.84]
    row = cells(summary({"MRPC": {"plain": plain, "ours": ours}}), "MRPC")
    low, high = stats.ttest_rel(ours, plain).confidence_interval(0.95)
    assert row[1] == "3"
    assert row[4] == f"{pytest.approx(0.04 / 3).expected:+.4f} ({low:+.4f} to {high:+.4f})"
