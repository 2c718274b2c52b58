"""The study: its order, its seeds, and trials whose process died."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from peftlib.arguments import parse_train_arguments, train_parser
from peftlib.errors import UserError
from peftlib.sweeps.config import load_sweep
from peftlib.sweeps.parameters import Parameter
from peftlib.sweeps.reproduction import sweep_words
from peftlib.sweeps.search import Claim, Search
from tests.conftest import ROOT

_RATE = {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1}


@pytest.fixture
def search(tmp_path):
    """Open the study in the test's folder, as another process would."""

    def make(**changes: Any) -> Search:
        content = {
            "program": "train.py", "method": "grid", "metric": {"name": "eval/accuracy", "goal": "maximize"},
            "parameters": {"lora_r": {"values": [4, 8]}, "use_dora": {"values": [True, False]}},
        }  # fmt: skip
        seed, retry = changes.pop("seed_of_search", 0), changes.pop("retry_failed", False)
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({**content, **changes}))
        sweep = load_sweep(file, train_parser().flags(), lambda words: None)
        return Search(sweep, tmp_path / "study", seed, retry_failed=retry)

    return make


def die(claim: Claim) -> None:
    """Release the lock, as the operating system does for a killed process."""
    claim.lock.close()


def take(search: Search) -> Claim:
    claim = search.claim()
    assert claim is not None
    return claim


def states(search: Search) -> list[str]:
    return [trial.state.name for trial in search.trials()]


def test_two_sweeps_share_a_grid_in_order_and_neither_repeats(search):
    one, two = search(), search()
    claims = [take(one), take(two), take(one), take(two)]
    assert [(c.number, c.values) for c in claims] == list(enumerate(one.sweep.grid()))
    assert one.claim() is None and one.unfinished()
    for claim in claims:
        one.complete(claim, 0.5)
    assert two.claim() is None and not two.unfinished()


def test_what_nobody_holds_is_taken_up_and_what_is_over_is_not(search):
    first = search()
    done, failed, held, cut = (take(first) for _ in range(4))
    first.complete(done, 0.5)
    first.fail(failed, "no memory", "the log")
    die(cut)
    second = search()
    again = take(second)
    assert (again.number, again.values, again.taken_up) == (cut.number, cut.values, True)
    assert second.claim() is None  # the third is still held
    die(held)
    assert take(second).number == held.number
    assert states(second) == ["COMPLETE", "FAIL", "RUNNING", "RUNNING"]
    assert second.trials()[1].user_attrs["error"] == "no memory"


def test_a_trial_queued_by_a_process_that_died_is_the_next_one(search):
    first = search()
    first.study.enqueue_trial({"lora_r": 4, "use_dora": "true"})
    assert take(search()).values == {"lora_r": 4, "use_dora": True}
    assert len(first.trials()) == 1


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_draws_depend_on_seed_and_number_not_on_interruptions(search, tmp_path, method):
    changes = {"method": method, "run_cap": 4, "parameters": {"learning_rate": _RATE, "lora_r": {"min": 1, "max": 64}}}
    drawn = []
    for _ in range(4):
        opened = search(**changes)
        claim = take(opened)
        drawn.append(claim.values)
        if claim.number == 2:  # killed before it reported; the next process draws the same values
            die(claim)
            opened = search(**changes)
            claim = take(opened)
            assert claim.values == drawn[2] and claim.taken_up
        opened.complete(claim, claim.values["learning_rate"])
    assert search(**changes).claim() is None  # run_cap
    assert len({values["learning_rate"] for values in drawn}) == 4

    (tmp_path / "study").rename(tmp_path / "before")
    straight = search(**changes)
    for values in drawn:
        claim = take(straight)
        assert claim.values == values
        straight.complete(claim, values["learning_rate"])


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_sweep_that_is_killed_between_two_draws_draws_on_as_if_it_were_not(search, tmp_path, monkeypatch, method):
    uniform = {"distribution": "uniform", "min": 0.0, "max": 1.0}
    changes = {"method": method, "run_cap": 3, "parameters": {"warmup_ratio": uniform, "dropout": uniform}}
    straight = search(**changes)
    held = [take(straight), take(straight)]  # keep their locks
    expected = [claim.values for claim in held]
    assert len({value for values in expected for value in values.values()}) == 4
    (tmp_path / "study").rename(tmp_path / "before")
    opened = search(**changes)
    held.append(take(opened))
    assert held[-1].values == expected[0]
    suggest, names = Parameter.suggest, []

    def killed(parameter, trial):
        names.append(parameter.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return suggest(parameter, trial)

    monkeypatch.setattr(Parameter, "suggest", killed)
    with pytest.raises(KeyboardInterrupt):
        opened.claim()
    monkeypatch.setattr(Parameter, "suggest", suggest)
    again = take(search(**changes))
    assert (again.number, again.values) == (1, expected[1])


def test_bayes_looks_where_it_was_good(search):
    """After the random start the draws concentrate around the best rate; those of `random` do not."""
    spread = {}
    for method in ("bayes", "random"):
        opened = search(method=method, name=method, run_cap=30, parameters={"learning_rate": _RATE})
        opened = Search(opened.sweep, opened.folder.parent / method)
        distances = []
        while (claim := opened.claim()) is not None:
            distance = abs(math.log10(claim.values["learning_rate"]) + 3)
            distances.append(distance)
            opened.complete(claim, -distance)
        spread[method] = sum(distances[-12:]) / 12
        (opened.folder.parent / "study").rename(opened.folder.parent / f"unused-{method}")
    assert spread["bayes"] < 0.6 * spread["random"]


def test_bayes_heeds_what_another_shell_is_trying(search):
    """A point in work counts as a bad one, a failed one not at all: the next draw is another."""
    drawn = []
    for name, fails in (("failed", True), ("running", False)):
        opened = search(method="bayes", run_cap=30, parameters={"learning_rate": _RATE})
        opened = Search(opened.sweep, opened.folder.parent / name)
        for _ in range(12):
            claim = take(opened)
            opened.complete(claim, -abs(math.log10(claim.values["learning_rate"]) + 3))
        held = take(opened)
        if fails:
            opened.fail(held, "no memory")
        drawn.append(take(Search(opened.sweep, opened.folder)).values)
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("name", ["study.db", "sweep.json"])
@pytest.mark.parametrize("content", ["nothing of this kind" * 200, "[1]"])
def test_a_damaged_file_of_a_sweep_is_one_line(search, tmp_path, name, content):
    search()
    (tmp_path / "study" / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}.* cannot be read \(.+\); name a new") as caught:
        search()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "early",
    [
        {"type": "hyperband", "min_iter": 1, "eta": 2},
        {"type": "hyperband", "max_iter": 8, "s": 3, "eta": 2},
        {"type": "hyperband", "min_iter": 1, "eta": 1.5},
    ],
)
def test_hyperband_stops_a_bad_run_and_not_the_best(search, early):
    opened = search(early_terminate=early, method="random", run_cap=12, parameters={"learning_rate": _RATE})
    stopped = []
    for number in range(12):
        claim = take(opened)
        quality = 1 - number / 24  # every run is worse than those before it
        values: list[float] = []
        for _ in range(8):
            values.append(quality)
            if opened.report(claim, values):
                opened.stopped_early(claim)
                stopped.append(number)
                break
        else:
            opened.complete(claim, quality)
    assert stopped and 0 not in stopped
    assert opened.ranked()[0].number == 0
    assert opened.trials()[stopped[0]].user_attrs["stopped_at"] >= 1


def test_a_target_that_is_reached_ends_the_sweep(search):
    opened = search(metric={"name": "eval/loss", "target": 0.1})
    opened.complete(take(opened), 0.09)
    assert opened.claim() is None and not opened.unfinished()


def test_a_run_that_is_always_cut_off_ends_up_failed(search):
    opened = search()
    for _ in range(3):
        assert opened.release(take(opened), blameless=False)
    claim = take(opened)
    assert opened.release(claim, blameless=True)  # an interruption by the sweep itself does not count
    claim = take(opened)
    assert claim.number == 0 and not opened.release(claim, blameless=False)
    assert take(search()).number == 1  # trial 0 is still held, until its failure is recorded


def test_the_best_come_first_then_the_stopped_then_the_failed(search):
    opened = search()
    bad, good, failed = take(opened), take(opened), take(opened)
    opened.complete(bad, 0.1)
    opened.complete(good, 0.9)
    opened.fail(failed, "reason")
    assert [trial.number for trial in opened.ranked()] == [1, 0, 2]
    assert [trial.state for trial in opened.ranked()][-1] == TrialState.FAIL


def run_all(search: Search) -> list[dict[str, Any]]:
    """Finish all available trials; return their values in order."""
    values = []
    while (claim := search.claim()) is not None:
        search.complete(claim, 0.5)
        values.append(claim.values)
    return values


def grid_of(**values: list[Any]) -> dict[str, Any]:
    return {name: {"values": entries} for name, entries in values.items()}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (grid_of(lora_r=[4], seed=[1, 2, 3]), grid_of(lora_r=[4], seed=[1, 2, 3, 4, 5])),
        (grid_of(lora_r=[4, 8], seed=[1, 2]), grid_of(lora_r=[2, 8, 4], seed=[3, 1, 2])),
        ({"lora_r": {"value": 4}, "seed": {"min": 1, "max": 2}}, grid_of(lora_r=[4, 8], seed=[1, 2, 3])),
        (grid_of(g=[{"method": "lora", "seed": 4}]), grid_of(g=[{"method": "full"}, {"seed": 4, "method": "lora"}])),
    ],
)  # fmt: skip
def test_a_grid_that_grows_adds_its_new_points_in_order_and_repeats_none(search, before, now):
    first = run_all(search(parameters=before))
    grown = search(parameters=now)
    finished = [trial.datetime_complete for trial in grown.trials()]
    points = list(grown.sweep.grid())
    added = [point for point in points if point not in first]
    assert first and added and len(first) + len(added) == len(points)
    assert run_all(search(parameters=now)) == added
    trials = search(parameters=now).trials()
    assert [trial.user_attrs["values"] for trial in trials] == first + added
    assert [trial.datetime_complete for trial in trials[: len(first)]] == finished
    with pytest.raises(UserError, match="may be added to a grid, but not removed or changed"):
        search(parameters=before)


def test_what_was_cut_off_or_queued_before_a_grid_grew_is_run_with_its_own_values(search):
    few, more = grid_of(lora_r=[4, 8], seed=[1, 2]), grid_of(lora_r=[2, 4, 8], seed=[0, 1, 2])
    first = search(parameters=few)
    cut, done = take(first), take(first)
    first.complete(done, 0.5)
    die(cut)
    first.study.enqueue_trial({"lora_r": 8, "seed": 1})  # by a sweep that was killed before it claimed it
    again = search(parameters=more)
    claim = take(again)
    assert (claim.number, claim.values, claim.taken_up) == (0, {"lora_r": 4, "seed": 1}, True)
    again.complete(claim, 0.5)
    rest = run_all(again)
    assert rest[0] == {"lora_r": 8, "seed": 1}
    every = [claim.values, done.values, *rest]
    assert sorted(every, key=str) == sorted(again.sweep.grid(), key=str)


def test_two_workers_of_which_one_has_grown_repeat_nothing(search):
    few = search(parameters=grid_of(seed=[1, 2, 3]))
    claims = [take(few)]
    more = search(parameters=grid_of(seed=[0, 1, 2, 3]))
    claims += [take(more), take(few), take(more)]
    assert sorted(claim.values["seed"] for claim in claims) == [0, 1, 2, 3]
    assert few.claim() is None and more.claim() is None


def test_a_number_written_with_a_point_is_the_one_without(search):
    claims = [take(search(parameters=grid_of(num_train_epochs=[2, 3])))]
    again = search(parameters=grid_of(num_train_epochs=[2.0, 3.0, 2.5, 3]))
    claims += [take(again), take(again)]
    assert [claim.values["num_train_epochs"] for claim in claims] == [2, 3, 2.5]
    assert again.claim() is None


def test_run_cap_cuts_a_grid_that_grew_too(search):
    assert len(run_all(search(parameters=grid_of(seed=[1, 2])))) == 2
    assert run_all(search(parameters=grid_of(seed=[0, 1, 2, 3]), run_cap=3)) == [{"seed": 0}]


def test_more_seeds_for_the_comparison_go_on_from_those_that_are_there(tmp_path):
    def opened(seeds: str) -> Search:
        words, _ = sweep_words("all-MiniLM-L6-v2", ("rotten_tomatoes",), None, seeds, None)
        file = ROOT / "scripts" / "sweeps" / "reproduce.yaml"
        return Search(load_sweep(file, train_parser().flags(), parse_train_arguments, words), tmp_path / "study")

    assert [values["seed"] for values in run_all(opened("1,2,3"))] == [1] * 6 + [2] * 6 + [3] * 6
    assert [values["seed"] for values in run_all(opened("1,2,3,4,5"))] == [4] * 6 + [5] * 6


@pytest.mark.parametrize(
    "parameters",
    [
        grid_of(lora_r=[4], use_dora=[True, False]),
        grid_of(lora_r=[4, 16], use_dora=[True, False]),
        grid_of(lora_r=[4, 8]),
        grid_of(lora_r=[4, 8], use_dora=[True, False], seed=[1, 2]),
        grid_of(lora_r=[4, 8], use_dora=["true", "false"]),
    ],
)
def test_a_folder_keeps_to_its_sweep_but_for_run_cap_and_a_grid_that_grows(search, parameters):
    claims = [take(search(run_cap=1)), take(search(run_cap=2))]
    with pytest.raises(UserError, match=r"contains a sweep with different parameters \(values may be added to a grid"):
        search(parameters=parameters)
    with pytest.raises(UserError, match="contains a sweep with a different seed; name another folder"):
        search(seed_of_search=1)
    again = search()  # a refusal leaves the folder unchanged
    assert [claim.values for claim in claims] + run_all(again) == list(again.sweep.grid())


@pytest.mark.parametrize("name", ["run.json", "train.tsv"])
def test_a_folder_with_anything_else_in_it_is_left_alone(search, tmp_path, name):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / name).touch()
    with pytest.raises(UserError, match=f"contains {name}, but no sweep; name a new folder"):
        search()
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_new_folder_may_be_there_already(search, tmp_path):
    (tmp_path / "study" / "runs").mkdir(parents=True)  # by another process that is starting the same sweep
    (tmp_path / "study" / ".gitkeep").touch()
    search()
    search()


def test_a_search_does_not_grow(search):
    few, more = {"lora_r": {"values": [4]}}, {"lora_r": {"values": [4, 8]}}
    search(method="random", run_cap=1, parameters=few)
    with pytest.raises(UserError, match="contains a sweep with a different parameters; name another folder"):
        search(method="random", run_cap=1, parameters=more)
    with pytest.raises(UserError, match="contains a sweep with a different method"):
        search(method="grid", parameters=few)


def test_a_folder_that_cannot_be_written_is_named(search, tmp_path):
    (tmp_path / "study").write_text("a file")
    with pytest.raises(UserError, match=r"--sweep_dir .*study: cannot be written"):
        search()


def test_the_id_stays(search):
    assert search().id == search().id and Path(search().run_folder(3)).name == "0003"


@pytest.mark.parametrize("name", ["a%20b", "what?x=1", "50%", "a#b", "a b", "ü"])
def test_a_study_is_in_its_own_folder_whatever_that_is_called(tmp_path, name):
    """In a URL, such characters would stand for others: two sweeps would share one file elsewhere."""
    file = tmp_path / "sweep.yaml"
    content = {
        "program": "train.py", "method": "grid", "metric": {"name": "eval/accuracy", "goal": "maximize"},
        "parameters": {"lora_r": {"values": [4]}},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    opened = [
        Search(load_sweep(file, train_parser().flags(), lambda words: None), tmp_path / folder / "study")
        for folder in (name, f"{name}2")
    ]
    take(opened[0])
    assert [states(one) for one in opened] == [["RUNNING"], []]
    assert (tmp_path / name / "study" / "study.db").stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.yaml", name, f"{name}2"}


def test_failed_points_are_run_again_where_that_is_asked(search):
    first = search()
    for _ in range(4):
        claim = take(first)
        if claim.number in (1, 2):
            first.fail(claim, "no such file")
        else:
            first.complete(claim, 0.5)
    assert first.claim() is None and search().claim() is None
    again = search(retry_failed=True)
    failed = [again.trials()[number].user_attrs["values"] for number in (1, 2)]
    claims = [take(again), take(again)]
    assert [(claim.number, claim.values) for claim in claims] == [(4, failed[0]), (5, failed[1])]
    assert again.claim() is None
    again.complete(claims[0], 0.75)
    again.fail(claims[1], "still no such file")
    assert again.claim() is None, "once a call"
    assert [trial.number for trial in again.ranked()] == [4, 0, 3, 5], "what was tried again counts once"


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_searches_draw_as_many_new_points_as_have_failed(search, method):
    changes = {"method": method, "run_cap": 2, "parameters": {"learning_rate": _RATE}}
    first = search(**changes)
    first.fail(take(first), "out of memory")
    first.complete(take(first), 0.5)
    assert first.claim() is None
    again = search(**changes, retry_failed=True)
    assert take(again).number == 2 and again.claim() is None
