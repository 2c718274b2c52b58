"""The report: a self-contained HTML file, tables and plots."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from peftlib.errors import RunError, UserError
from peftlib.reporting import report as report_module
from peftlib.reporting.report import _free_slug, facts_of, work_out, write_report
from peftlib.reporting.runs import find_runs, read_run
from peftlib.reporting.sheets import md_escaped, runs_csv
from tests.reporting.made_up import make_run

NASTY = "<script>alert(1)</script>&amp;\"'"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page: tags with their attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report of two tasks, with a hostile model name, a separate group and two runs without results."""
    place = tmp_path_factory.mktemp("report")
    for seed in (1, 2, 3):
        for method, error in (("head", 0.4), ("bitfit", 0.1), ("lora", 0.1)):
            make_run(
                place / "runs" / f"{method}-{seed}", "--task_name", "mrpc", "--method", method, seed=seed, error=error
            )
    make_run(place / "runs" / "longer", "--task_name", "mrpc", "--num_train_epochs", 9)
    make_run(place / "runs" / "evil", "--task_name", "sst2", "--model_name_or_path", NASTY)
    make_run(place / "runs" / "broken", status="failed", changes={"error": f"lost | {NASTY}"})
    make_run(place / "runs" / "killed", status="running")
    write_report(work_out(find_runs([str(place / "runs")])), place / "report", f"python scripts/compare.py '{NASTY}'")
    return place / "report"


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "index.html").read_text(encoding="utf-8"))


def test_a_disk_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run")
    made = work_out(find_runs([str(tmp_path / "run")]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_module, "put_in_place", full)
    with pytest.raises(RunError, match=r"report: cannot be written \(No space left on device\); make room there"):
        write_report(made, tmp_path / "report", "compare.py")


def test_what_a_report_holds(report: Path) -> None:
    tables = {path.name for path in (report / "tables").iterdir()}
    classes = {"mrpc-classes.csv", "mrpc-2-classes.csv", "sst2-classes.csv"}
    assert tables - classes == {
        "runs.csv", "mrpc.csv", "mrpc.tex", "mrpc-references.tex", "mrpc-pairs.csv", "mrpc-2.csv", "mrpc-2.tex",
        "sst2.csv", "sst2.tex", "sst2-references.tex",
    }  # fmt: skip
    assert classes <= tables
    assert {path.name for path in report.iterdir()} == {"index.html", "report.md", "tables", "plots", ".report.json"}
    names = [path.stem for path in (report / "plots").iterdir()]
    assert names and all(names.count(name) == 2 for name in names)
    assert (report / "tables" / "runs.csv").read_text().count("\n") == 14


def test_the_page_is_well_formed(page: Page) -> None:
    assert page.open == []
    assert page.named("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")


def test_the_page_needs_nothing_else(page: Page, report: Path) -> None:
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = [tag["src"] for tag in page.named("img")]
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(tag["href"].startswith("#") for tag in page.named("a"))
    html = (report / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(", html)
    for source in sources:
        # An SVG may name its own parts and XML namespaces, and load nothing.
        svg = base64.b64decode(source.partition(",")[2]).decode()
        assert set(re.findall(r'(?:href|src)="(.)', svg)) <= {"#"}
        assert "<script" not in svg and "<image" not in svg.replace("data:image", "")


def test_every_plot_has_words_for_those_who_do_not_see_it(page: Page) -> None:
    assert all(len(tag["alt"]) > 40 for tag in page.named("img"))


def test_links_lead_to_sections(page: Page) -> None:
    places = {tag["id"] for tag in page.named("section")}
    assert {tag["href"].removeprefix("#") for tag in page.named("a")} == places == {"mrpc", "mrpc-2", "sst2", "failed"}


def test_names_and_errors_are_text_on_the_page_not_markup(page: Page) -> None:
    assert f"sst2 · {NASTY}" in page.text
    assert f"failed: lost | {NASTY}" in page.text
    assert "alert(1)" in page.text and not page.named("script")


def test_the_page_says_what_there_is_to_say(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "Comparison of 13 runs" in text
    assert "BitFit has a higher accuracy than Head, by 0." in text
    assert "No difference can be claimed between BitFit and LoRA r=16" in text
    assert "Separate from the main comparison of this task: different num_train_epochs (9, not 3)." in text
    assert "unfinished: still running, or killed" in text
    assert "majority class" in text
    assert re.search(r"F1 by class classexamplesHeadBitFitLoRA r=16 not_equivalent\d+0\.\d{4} ± ", text)
    assert "There is no run with --method head" in text  # of sst2
    assert text.count("the more were tried, the likelier is the highest too high") == text.count(
        "Training time excludes"
    )
    assert "are used nowhere else on this page" in text
    assert re.search(r"The same for f1 \d of 3 differ significantly", text)
    assert "All tests with full precision: tables/mrpc-pairs.csv beside this page." in text
    assert "Accuracy against the learning rate: every method was trained at only one rate." in text


def test_the_markdown_page_has_its_plots_and_no_html(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert images and all((report / image).is_file() for image in images)
    # Code spans are shown as they stand; the command's backticks could end its span early.
    outside = re.sub(r"`[^`\n]*`", "", text)
    assert "`" not in outside and not re.search(r"(?<!\\)<", outside)
    assert f"## sst2 · {md_escaped(NASTY)}" in outside and text.count("alert(1)") >= 3
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for line in tables:
        assert re.search(r"(?<!\\)\|$", line)
    assert "| broken | rotten\\_tomatoes, BitFit, seed 42 | failed: lost \\| \\<script\\>" in text


def test_the_foot_says_whether_the_code_was_changed(tmp_path: Path) -> None:
    states = {"1": {"commit": "a" * 40, "changed": True}, "2": {"commit": "b" * 40, "changed": False}, "3": None}
    runs = [
        read_run(make_run(tmp_path / name, seed=int(name), changes={"git": state})) for name, state in states.items()
    ]
    assert facts_of(work_out(runs))["commit"] == "aaaaaaaaaaaa and uncommitted changes, bbbbbbbbbbbb, unknown"


def test_no_two_sections_and_no_table_share_a_file_name() -> None:
    taken: set[str] = set()
    for task in ("reviews", "reviews", "reviews-2", "runs", "failed", "a/b", "a-b", "reviews-pairs", "b-classes", "b"):
        taken.add(_free_slug(task, taken))
    assert taken == {
        "reviews", "reviews-2", "reviews-2-2", "runs-2", "failed-2", "a-b", "a-b-2", "reviews-pairs-2", "b-classes",
        "b-2",
    }  # fmt: skip


def test_a_failed_run_whose_record_has_no_results(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    make_run(tmp_path / "bad", status="failed", changes={"results": None})
    runs = [read_run(tmp_path / name) for name in ("good", "bad")]
    assert "bad" in runs_csv(runs)


def test_without_any_result_there_is_no_report(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / "run", status="failed"))]
    with pytest.raises(UserError, match=r"none of the 1 runs has a result .*the loss is nan"):
        work_out(runs)


def words_of(folder: Path, *runs: Path) -> list[str]:
    """What a report on these runs says, on its page and in Markdown, each in one line."""
    write_report(work_out([read_run(run) for run in runs]), folder, "compare.py")
    page = Page((folder / "index.html").read_text(encoding="utf-8")).text
    return [" ".join(text.split()) for text in (page, (folder / "report.md").read_text(encoding="utf-8"))]


def test_a_score_that_the_constant_answer_reaches_is_said_to_be_none(tmp_path: Path) -> None:
    poor, good = make_run(tmp_path / "poor", error=0.6), make_run(tmp_path / "good", "--method", "lora")
    said = "That is no more than the constant answer has (majority class)."
    assert all(said in text and "Higher, but" not in text for text in words_of(tmp_path / "one", poor))
    assert not (tmp_path / "one" / "tables" / "rotten_tomatoes-pairs.csv").exists(), "one method makes no pair"
    assert not any(said in text for text in words_of(tmp_path / "two", poor, good))


def test_of_equal_scores_each_is_named(tmp_path: Path) -> None:
    same = {f"best_eval_{name}": value for name, value in {"accuracy": 0.75, "loss": 0.5, "step": 60}.items()}
    runs = []
    for method in ("bitfit", "head", "lora"):
        runs.append(make_run(tmp_path / method, "--method", method))
        record = json.loads((runs[-1] / "run.json").read_text())
        record["results"] |= same if method != "lora" else {"best_eval_accuracy": 0.7}
        (runs[-1] / "run.json").write_text(json.dumps(record))
    page, text = words_of(tmp_path / "report", *runs)
    assert "Highest accuracy: Head, 0.7500 (1 seed); BitFit, 0.7500 (1 seed). Of 3 pairs" in page
    assert "Highest accuracy: **Head**, 0.7500 (1 seed); **BitFit**, 0.7500 (1 seed). Of 3 pairs" in text


def with_accuracy(run: Path, accuracy: float) -> Path:
    record = json.loads((run / "run.json").read_text())
    record["results"]["best_eval_accuracy"] = accuracy
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_means_that_are_equal_but_for_the_rounding_of_sums_are_a_tie(tmp_path: Path) -> None:
    """A mean of three times .8 is .8000000000000002, and those of .8, .7, .6 and of .7, .7, .7 differ too."""
    runs = []
    for method, scores in (("bitfit", (0.8, 0.7, 0.6)), ("lora", (0.7, 0.7, 0.7))):
        for seed, accuracy in enumerate(scores):
            run = make_run(tmp_path / f"{method}-{seed}", "--method", method, seed=seed)
            runs.append(with_accuracy(run, accuracy))
    assert sum((0.8, 0.7, 0.6)) != sum((0.7, 0.7, 0.7))
    for text in words_of(tmp_path / "report", *runs):
        assert re.search(r"Highest accuracy: \W*BitFit\W*, 0\.7000 .*; \W*LoRA r=16\W*, 0\.7000 .*?\. Of 1 pair", text)
    section = work_out([read_run(run) for run in runs[3:]]).sections[0]
    (constant,) = (row for row in section.rows if not row.seeds)
    share = constant.metrics["accuracy"].mean
    for run in runs[3:]:
        with_accuracy(run, share)
    assert work_out([read_run(run) for run in runs[3:]]).sections[0].unbeaten == "majority class"


def test_a_higher_mean_of_fewer_seeds_is_named_beside_the_highest(tmp_path: Path) -> None:
    runs = [with_accuracy(make_run(tmp_path / f"bitfit-{seed}", seed=seed), 0.6) for seed in (1, 2)]
    lucky = with_accuracy(make_run(tmp_path / "lucky", "--method", "lora"), 0.95)
    for text in words_of(tmp_path / "report", *runs, lucky):
        assert re.search(
            r"Highest accuracy: \W*BitFit\W*, 0\.6000 .*?\(2 seeds\)\. Higher, but of fewer seeds, or of seeds that no "
            r"other method has: LoRA r=16, 0\.9500 \(1 seed\)\.", text,
        ), text[:1500]  # fmt: skip
    assert not any("Higher, but" in text for text in words_of(tmp_path / "other", *runs))
