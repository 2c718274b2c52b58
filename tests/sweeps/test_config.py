"""Sweep files: W&B's format, the order of a grid, train.py's flags, and the packaged files."""

from __future__ import annotations

import dataclasses
import datetime
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftlib.arguments import check_train_arguments, parse_train_arguments, train_parser
from peftlib.data.tasks import TASKS
from peftlib.errors import UserError
from peftlib.strategies import STRATEGIES
from peftlib.sweeps.checks import ranked_by_last
from peftlib.sweeps.config import Sweep, load_sweep
from tests.conftest import ROOT
from tests.sweeps.wandb_search import wandb_search

SHIPPED = sorted((ROOT / "scripts" / "sweeps").glob("*.yaml"))
_RATED = ("full", "bitfit", "lora")
_GOOD = {
    "program": "scripts/train.py",
    "method": "grid",
    "metric": {"name": "eval/accuracy", "goal": "maximize"},
    "parameters": {"lora_r": {"values": [4, 8]}},
}


def load(folder: Path, **changes: Any) -> Sweep:
    content = {key: value for key, value in {**_GOOD, **changes}.items() if value is not None}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_sweep(folder / "sweep.yaml", train_parser().flags(), parse_train_arguments)


def towards_better(metric: str) -> dict[str, str]:
    """A sweep's metric with the goal that makes sense."""
    return {"name": metric, "goal": "minimize" if metric.endswith("loss") else "maximize"}


def shipped(path: Path) -> Sweep:
    return load_sweep(path, train_parser().flags(), parse_train_arguments)


def of_wandb(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all runs of a grid by W&B's own search, as the values that its agent gets."""
    runs = wandb_search("grid_search").grid_search_next_runs([], content, n=1000)
    return [{name: entry["value"] for name, entry in run.config.items()} for run in runs if run is not None]


@pytest.mark.parametrize(
    "parameters",
    [
        {"seed": {"values": [2, 1]}, "lora_r": {"values": [8, 4, 16]}, "method": {"value": "lora"}},
        {"seed": {"min": 1, "max": 3}, "warmup_ratio": {"distribution": "q_uniform", "min": 0.0, "max": 0.3, "q": 0.1}},
        {"z": {"parameters": {"seed": {"values": [1, 2]}, "lora_r": {"values": [1, 2]}}}, "use_dora": {"value": False}},
        {"p": {"values": [{"method": "bitfit"}, {"method": "lora", "lora_r": 2}]}, "max_length": {"min": 8, "max": 9}},
        {"lora_r": {"values": [4, 4, 8]}, "seed": {"value": 3}},
    ],
)  # fmt: skip
def test_a_grid_has_wandb_s_runs_in_wandb_s_order(tmp_path, parameters):
    sweep = load(tmp_path, parameters=parameters)
    expected = of_wandb(sweep.content)
    assert [sweep.flags(point) for point in sweep.grid()] == [sweep.flags(point) for point in expected]
    assert sweep.size == len(expected)


def test_the_last_parameter_by_name_varies_fastest(tmp_path):
    sweep = load(tmp_path, parameters={"seed": {"values": [2, 1]}, "lora_r": {"values": [8, 4]}})
    assert list(sweep.grid()) == [
        {"lora_r": 8, "seed": 2}, {"lora_r": 8, "seed": 1}, {"lora_r": 4, "seed": 2}, {"lora_r": 4, "seed": 1},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "metric", ["eval/f1", "eval/loss", "eval/best_accuracy", "train/loss", "perf/peak_memory_bytes"]
)
def test_a_metric_that_every_task_of_the_sweep_logs_passes(tmp_path, metric):
    assert load(tmp_path, metric=towards_better(metric), parameters={"task_name": {"value": "mrpc"}}).metric == metric


@pytest.mark.parametrize("metric", ["eval/macro_f1", "eval/accuracy", "eval/loss", "eval/best_accuracy"])
def test_a_metric_that_one_s_own_files_have_passes(tmp_path, metric):
    files = {name: {"value": f"{name}.csv"} for name in ("train_file", "validation_file")}
    assert load(tmp_path, metric=towards_better(metric), parameters=files).metric == metric


def test_the_best_of_the_metric_that_chooses_the_model_passes(tmp_path):
    parameters = {"task_name": {"value": "mrpc"}, "metric_for_best_model": {"value": "f1"}}
    assert load(tmp_path, metric=towards_better("eval/best_f1"), parameters=parameters).metric == "eval/best_f1"
    by_loss = {"metric_for_best_model": {"value": "loss"}}
    assert not load(tmp_path, metric=towards_better("eval/best_loss"), parameters=by_loss).maximize


def test_a_task_and_what_chooses_its_best_state_count_together_where_they_stand_together(tmp_path):
    runs = [{"task_name": "mrpc", "metric_for_best_model": "f1"}, {"task_name": "sst2"}]
    parameters = {"g": {"values": runs}, "seed": {"values": [1, 2]}}
    assert load(tmp_path, metric={"name": "eval/loss"}, parameters=parameters).metric == "eval/loss"
    apart = {"task_name": {"values": ["mrpc", "sst2"]}, "metric_for_best_model": {"value": "f1"}}
    with pytest.raises(UserError, match="task sst2 does not have it"):
        load(tmp_path, metric={"name": "eval/loss"}, parameters=apart)


def test_flags_are_told_apart_by_their_words_not_by_their_dashes(tmp_path):
    sweep = load(tmp_path, parameters={"num-cpu-threads": {"value": 7}, "g": {"value": {"lora-r": 8}}})
    assert sweep.flags(next(sweep.grid())) == {"num_cpu_threads": 7, "lora_r": 8}


def test_run_cap_cuts_a_grid(tmp_path):
    assert load(tmp_path, run_cap=1).size == 1


def test_a_mapping_for_a_flag_of_json_is_json(tmp_path):
    """Also on the command line of a run, where W&B's agent would write a Python literal."""
    strategy = [{"method": "peft", "peft_kwargs": {"r": 4}}, {"method": "head"}]
    sweep = load(tmp_path, parameters={"a": {"values": strategy}, "peft_type": {"value": "loha"}})
    assert [sweep.flags(point).get("peft_kwargs") for point in sweep.grid()] == ['{"r": 4}', None]
    weights = load(tmp_path, parameters={"class_weights": {"values": ["none", {"spam": 9}]}})
    assert [weights.flags(point)["class_weights"] for point in weights.grid()] == ["none", '{"spam": 9}']
    hyphenated = load(tmp_path, parameters={"method": {"value": "peft"}, "peft-kwargs": {"values": [{"r": 4}]}})
    assert [hyphenated.flags(point)["peft_kwargs"] for point in hyphenated.grid()] == ['{"r": 4}']


def test_nested_names_lose_their_group_and_mappings_are_several_flags(tmp_path):
    parameters = {
        "a": {"parameters": {"b": {"parameters": {"seed": {"value": 7}}}}},
        "s": {"value": {"method": "lora"}},
    }
    sweep = load(tmp_path, parameters=parameters)
    assert [sweep.flags(point) for point in sweep.grid()] == [{"seed": 7, "method": "lora"}]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_valid_to_wandb_itself(path):
    config = wandb_search("config")
    assert config.schema_violations_from_proposed_config(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_gives_flags_that_train_py_takes_from_wandb_s_agent(path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = shipped(path)
    assert sweep.program == "scripts/train.py"
    assert sweep.command == ("${env}", "accelerate", "launch", "${program}", "${args}")
    if sweep.method == "grid":
        points = of_wandb(sweep.content)
    else:
        random = wandb_search("random_search")
        run = random.random_search_next_runs({**sweep.content, "method": "random"}, n=1)[0]
        points = [{name: entry["value"] for name, entry in run.config.items()}]
    for point in points:
        words = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})["args"]
        flat, flags = parse_train_arguments(words).flat(), sweep.flags(point)
        assert {name: flat.get(name) for name in flags} == flags


def test_the_table_in_the_docs_names_every_shipped_file_and_no_other():
    rows = re.findall(
        r"^\| `(\w+\.yaml)` \|", (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(rows) == [path.name for path in SHIPPED]


def test_the_report_s_grid_is_its_eight_runs():
    sweep = shipped(ROOT / "scripts" / "sweeps" / "report_grid.yaml")
    runs = [sweep.flags(point) for point in sweep.grid()]
    ways = [(run["task_name"], run["method"], run.get("lora_r")) for run in runs]
    methods = [("bitfit", None), ("lora", 8), ("lora", 16), ("lora", 32)]
    assert sorted(ways, key=str) == sorted(((task, *way) for task in ("mrpc", "sst2") for way in methods), key=str)


def test_the_methods_are_all_that_there_are():
    sweep = shipped(ROOT / "scripts" / "sweeps" / "methods.yaml")
    runs = [sweep.flags(point) for point in sweep.grid()]
    assert {run["method"] for run in runs} == set(STRATEGIES)


def test_the_rates_are_the_same_for_full_fine_tuning_and_for_peft():
    sweep = shipped(ROOT / "scripts" / "sweeps" / "rates.yaml")
    runs = [sweep.flags(point) for point in sweep.grid()]
    tried = {method: {run["learning_rate"] for run in runs if run["method"] == method} for method in _RATED}
    assert tried["full"] == tried["bitfit"] == tried["lora"] and len(tried["full"]) >= 3
    assert {STRATEGIES[method].default_learning_rate for method in _RATED} <= set().union(*tried.values())
    assert len(runs) == len({(run["method"], run["learning_rate"], run["seed"]) for run in runs})
    assert len({run["seed"] for run in runs}) >= 3  # a single seed supports no claim


@pytest.mark.parametrize(
    ("settings", "first", "last", "factor"),
    [
        ({"min_iter": 2}, 2, None, 3),
        ({"min_iter": 2, "eta": 1.5}, 2, None, 2),
        ({"min_iter": 2.0, "eta": 2.7}, 2, None, 3),
        ({"max_iter": 27, "s": 2}, 3, 27, 3),
        ({"max_iter": 27, "s": 2.0, "eta": 1.5}, 12, 27, 2),
        ({"max_iter": 27, "s": 1000, "eta": 1e300}, 1, 27, round(1e300)),
    ],
)
def test_hyperband_takes_what_wandb_takes(tmp_path, settings, first, last, factor):
    early = {"type": "hyperband", **settings}
    sweep = load(tmp_path, early_terminate=early)
    assert wandb_search("config").schema_violations_from_proposed_config(sweep.content) == []
    assert sweep.hyperband is not None
    assert (sweep.hyperband.first, sweep.hyperband.last, sweep.hyperband.factor) == (first, last, factor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gird"}, "method: gird is unknown; did you mean grid? (known: grid, random, bayes)"),
        ({"method": "custom"}, "method: custom is unknown"),
        ({"metod": "grid"}, "metod: unknown key; did you mean method?"),
        ({"program": None}, "program: missing"),
        ({"metric": None}, "metric: missing"),
        ({"metric": {"goal": "maximize"}}, "metric.name: missing"),
        ({"metric": {"name": "x", "goal": "max"}}, "metric.goal: max is unknown; did you mean maximize?"),
        ({"metric": {"nam": "x"}}, "metric.nam: no such key; did you mean name?"),
        # Without a goal, W&B minimises.
        ({"metric": {"name": "eval/accuracy"}}, "metric.goal: eval/accuracy is better when larger; write goal: maxim"),
        ({"metric": {"name": "eval/best_accuracy", "goal": "minimize"}}, "metric.goal: eval/best_accuracy is better w"),
        *(({"metric": {"name": f"{place}/loss", "goal": "maximize"}}, f"metric.goal: {place}/loss is better when smal")
          for place in ("eval", "train")),
        ({"metric": {"name": "eval/acuracy"}}, "metric.name: task rotten_tomatoes (the default: no task_name) does not "
         "log eval/acuracy; did you mean eval/accuracy? (known: eval/accuracy, eval/best_accuracy, eval/loss)"),
        ({"metric": {"name": "accuracy"}}, "metric.name: task rotten_tomatoes (the default: no task_name) does not log "
         "accuracy; did you mean eval/accuracy?"),
        ({"metric": {"name": "eval/f1"}}, "metric.name: task rotten_tomatoes (the default: no task_name) does not log"),
        # The second run names no task.
        ({"metric": {"name": "eval/f1"}, "parameters": {"g": {"values": [{"task-name": "mrpc"}, {"seed": 1}]}}},
         "metric.name: task rotten_tomatoes (the default: no task_name) does not log eval/f1"),
        ({"metric": {"name": "eval/f1"}, "parameters": {"task_name": {"values": ["mrpc", "sst2"]}}},
         "metric.name: task sst2 does not log eval/f1"),
        ({"metric": {"name": "eval/best_f1"}, "parameters": {"g": {"value": {"task_name": "mrpc"}}}},
         "metric.name: task mrpc does not log eval/best_f1; did you mean eval/f1?"),
        ({"metric": {"name": "eval/best_accuracy"},
          "parameters": {"task_name": {"value": "mrpc"}, "metric_for_best_model": {"value": "f1"}}},
         "metric.name: task mrpc does not log eval/best_accuracy"),
        ({"metric": {"name": "eval/best_f1"},  # the second run logs best_accuracy
          "parameters": {"task_name": {"value": "mrpc"},
                         "g": {"values": [{"metric_for_best_model": "f1"}, {"seed": 1}]}}},
         "metric.name: task mrpc does not log eval/best_f1"),
        ({"parameters": {"metric_for_best_model": {"value": "f1"}}},
         "parameters.metric_for_best_model: --metric_for_best_model f1: task rotten_tomatoes (the default: no task_na"),
        ({"parameters": {"metric-for-best-model": {"value": "f1"}}, "metric": {"name": "train/loss"}},
         "parameters.metric-for-best-model: --metric_for_best_model f1: task rotten_tomatoes"),
        ({"parameters": {"g": {"values": [{"task_name": "mrpc", "metric_for_best_model": "acuracy"}, {"seed": 1}]}}},
         "parameters.g: --metric_for_best_model acuracy: task mrpc does not have it; did you mean accuracy?"),
        ({"parameters": {"train_file": {"value": "a.csv"}, "validation_file": {"value": "b.csv"},
                         "metric_for_best_model": {"values": ["macro_f1", "f1"]}}},
         "parameters.metric_for_best_model: --metric_for_best_model f1: a task of your own data does not have it"),
        ({"parameters": {"target_modules": {"values": [["query"], ["value"]]}}},
         "parameters.target_modules: --target_modules: ['query'] is not a valid value of a flag; write it"),
        ({"parameters": {"dropout": {"values": [None, 0.1]}}},
         "parameters.dropout: --dropout: None is not a valid value of a flag; leave it out"),
        ({"metric": {"name": "eval/accuracy"}, "parameters": {"task_name": {"value": "stsb"}}},
         "metric.name: task stsb does not log eval/accuracy"),
        ({"metric": {"name": "eval/f1"}, "parameters": {"train_file": {"value": "a.csv"}}},
         "metric.name: a task of your own data does not log eval/f1"),
        ({"metric": {"name": "eval/accuracy"}, "parameters": {"train_file": {"value": "a.csv"},
                                                              "validation_file": {"value": "b.csv"},
                                                              "do_regression": {"value": True}}},
         "metric.name: a task of your own data does not log eval/accuracy"),
        ({"run_cap": 0}, "run_cap: 0 must be a whole number from 1 on"),
        ({"command": ["python", "${program}"]}, "command: has no ${args}"),
        ({"controller": {"type": "local"}}, "controller: is supported only by W&B's server"),
        ({"early_terminate": {"type": "median"}}, "early_terminate.type: median is unknown (known: hyperband)"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate.min_iter: missing; give it, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "early_terminate.s: missing"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "early_terminate.eta: 1 must be a numbe"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": "3"}}, "early_terminate.eta: '3' must be a"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1.5}}, "early_terminate.min_iter: 1.5 must be a whole"),
        ({"parameters": {}}, "parameters: must be a mapping"),
        ({"parameters": {"seed": {"value": datetime.date(2026, 1, 2)}}},
         "parameters.seed.value: YAML reads 2026-01-02 as a date; put it in quotes"),
        ({"parameters": {"seed": {"values": [1, datetime.datetime(2026, 1, 2)]}}}, "parameters.seed.values: YAML read"),
        ({"parameters": {"g": {"value": {"seed": {1, 2}}}}}, "parameters.g.value.seed: YAML reads {1, 2} as a set; "),
        ({"parameters": {"g": {"value": {"seed": 1, 2: 3}}}}, "parameters.g.value: 2 is not a name; put it in quotes"),
        ({"project": b"x"}, "project: YAML reads b'x' as a bytes; put it in quotes"),
        ({"parameters": {"lora_r": 8}}, "parameters.lora_r: must be a mapping such as {value: 8}"),
        ({"parameters": {"lora_rr": {"value": 8}}}, "parameters.lora_rr: --lora_rr: no such flag; did you"),
        ({"parameters": {"lr": {"values": [0.1]}}}, "parameters.lr: --lr: no such flag; use --learning_rate"),
        ({"parameters": {"help": {"value": 1}}}, "parameters.help: --help cannot be set in a sweep"),
        ({"parameters": {"g": {"value": {"lora_x": 8}}}}, "parameters.g: --lora_x: no such flag; did you mean"),
        ({"parameters": {"lora_r": {"values": [8, 2.5]}}}, "parameters.lora_r: --lora_r: invalid int value: '2.5'"),
        ({"parameters": {"method": {"values": ["lora", "bitfitt"]}}}, "parameters.method: --method bitfitt: unkn"),
        ({"parameters": {"output_dir": {"value": "x"}}}, "parameters.output_dir: --output_dir is set by the sweep"),
        ({"parameters": {"a": {"value": {"push_to_hub": True}}}}, "parameters.a: --push_to_hub would push every run"),
        ({"parameters": {"dry_run": {"value": True}}}, "parameters.dry_run: --dry_run trains nothing, "),
        ({"parameters": {"seed": {"value": 1}, "a": {"value": {"seed": 2}}}}, "parameters.seed: --seed is also set "),
        ({"parameters": {"seed": {"distribution": "normal"}}}, "parameters.seed: normal is not allowed with"),
        ({"method": "random", "parameters": {"lora_dropout": {"min": 0.0, "max": 2.0}}}, "parameters.lora_dropout: "),
    ],
)  # fmt: skip
def test_a_wrong_file_is_answered_with_the_key(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, **changes)
    assert str(error.value).startswith(f"{tmp_path / 'sweep.yaml'}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a: [1", "- 1", "", "\x00"])
def test_no_yaml_or_no_mapping_is_one_line(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_sweep(tmp_path / "s.yaml", [], print)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "folder"), [("rates", "rates"), ("a b/c", "a-b-c"), ("???", "sweep")])
def test_a_sweep_has_a_folder_of_its_own_whatever_its_name(tmp_path, name, folder):
    assert load(tmp_path, name=name).default_folder == Path("outputs") / "sweeps" / folder


def test_the_metric_is_checked_whatever_flags_the_sweep_may_set(tmp_path):
    content = {"program": "train.py", "method": "grid", "metric": {"name": "eval/acuracy"},
               "parameters": {"seed": {"value": 1}}}  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="does not log eval/acuracy; did you mean eval/accuracy"):
        load_sweep(tmp_path / "s.yaml", ["--seed"], lambda words: None)


def test_flags_of_a_grid_s_run_that_do_not_fit_together_are_refused_before_it_starts(tmp_path):
    def loaded(**changes: Any) -> Sweep:
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({**_GOOD, **changes}))
        known = train_parser().flags()
        return load_sweep(tmp_path / "s.yaml", known, parse_train_arguments, (), check_train_arguments)

    types = {"values": ["prompt_tuning", "prefix_tuning"]}
    parameters = {"gradient_checkpointing": {"value": True}, "method": {"value": "peft"}, "peft_type": types}
    with pytest.raises(
        UserError, match="run 1: --gradient_checkpointing: loses the keys and values of PEFT prefix_tun"
    ):
        loaded(parameters=parameters)
    # Of other searches no run is known, and a command may hold flags that belong to them.
    assert loaded(parameters=parameters, method="random").size is None
    command = ["${interpreter}", "${program}", "--gradient_checkpointing=false", "${args}"]
    assert loaded(parameters=parameters, command=command).size == 2


def test_a_metric_that_merely_ends_like_a_loss_is_better_when_larger(tmp_path, monkeypatch):
    task = TASKS["mrpc"]
    monkeypatch.setitem(TASKS, "mrpc", dataclasses.replace(task, metrics=(*task.metrics, "neg_log_loss")))
    parameters = {"task_name": {"value": "mrpc"}}
    metric = {"name": "eval/neg_log_loss", "goal": "maximize"}
    assert load(tmp_path, metric=metric, parameters=parameters).maximize
    with pytest.raises(UserError, match="is better when larger"):
        load(tmp_path, metric={**metric, "goal": "minimize"}, parameters=parameters)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        load_sweep(tmp_path / "nowhere.yaml", [], print)


@pytest.mark.parametrize(
    ("metric", "parameters", "said"),
    [
        ("eval/best_accuracy", {}, None),
        ("train/loss", {}, None),
        ("eval/accuracy", {}, "eval/best_accuracy ranks by that"),
        ("eval/f1", {"task_name": "mrpc"}, "eval/best_f1 ranks by that, with metric_for_best_model: f1"),
        ("eval/f1", {"task_name": "mrpc", "metric_for_best_model": "f1"}, "eval/best_f1 ranks by that"),
        ("eval/loss", {}, "eval/best_loss ranks by that, with metric_for_best_model: loss"),
        ("eval/loss", {"metric_for_best_model": "loss"}, "eval/best_loss ranks by that"),
        ("eval/macro_f1", {"train_file": "a.csv"}, "with metric_for_best_model: macro_f1"),
    ],
)  # fmt: skip
def test_a_ranking_by_the_last_evaluation_is_pointed_out(tmp_path, metric, parameters, said):
    values = {name: {"value": value} for name, value in parameters.items()}
    sweep = load(tmp_path, metric=towards_better(metric), parameters={"seed": {"values": [1, 2]}, **values})
    line = ranked_by_last(sweep)
    assert line is None if said is None else line is not None and line.endswith(said)


def test_a_dotted_change_finds_a_nested_parameter(tmp_path):
    known = train_parser().flags()
    nested = {"opt": {"parameters": {"learning_rate": {"values": [0.1, 0.2]}}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**_GOOD, "method": "grid", "parameters": nested}))
    sweep = load_sweep(tmp_path / "s.yaml", known, parse_train_arguments, ["opt.learning_rate=0.3", "seed=7"])
    assert [sweep.flags(point) for point in sweep.grid()] == [{"learning_rate": 0.3, "seed": 7}]
    with pytest.raises(UserError, match=r"^--set seed=\[\]: "):
        load_sweep(tmp_path / "s.yaml", known, parse_train_arguments, ["seed=[]"])
