"""What `make reproduce` can run on, determined before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlib.arguments import parse_train_arguments, train_parser
from peftlib.errors import UserError
from peftlib.sweeps.config import load_sweep
from peftlib.sweeps.reproduction import sweep_words, tasks_at_hand
from tests.conftest import ROOT, write_glue

FILE = ROOT / "scripts" / "sweeps" / "reproduce.yaml"


def reproduce_sweep(words):
    return load_sweep(FILE, train_parser().flags(), parse_train_arguments, words)


def test_a_glue_folder_gives_both_tasks(tmp_path):
    assert tasks_at_hand(str(write_glue(tmp_path / "glue"))) == (("mrpc", "sst2"), None)


def test_without_the_hub_it_is_the_packaged_task_and_that_is_said():
    tasks, notice = tasks_at_hand(None)  # tests run offline
    assert tasks == ("rotten_tomatoes",)
    assert "not available" in notice and "make reproduce GLUE=DIR" in notice and "\n" not in notice


def test_a_named_folder_that_lacks_a_task_is_an_error(tmp_path):
    glue = write_glue(tmp_path / "glue")
    (glue / "SST-2" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"SST-2/dev\.tsv is missing"):
        tasks_at_hand(str(glue))


def test_a_model_that_cannot_be_had_is_said_at_once():
    with pytest.raises(UserError, match=r"--model_name_or_path \./none: no such folder"):
        sweep_words("./none", ("mrpc",), None, "1", None)


def test_the_grid_is_methods_by_tasks_by_seeds(tmp_path):
    words, folder = sweep_words("all-MiniLM-L6-v2", ("mrpc", "sst2"), "glue", "1,2,3", 5000)
    assert folder == Path("outputs/sweeps/reproduce-all-MiniLM-L6-v2-mrpc-sst2")
    sweep = reproduce_sweep(words)
    points = [sweep.flags(point) for point in sweep.grid()]
    assert len(points) == 6 * 2 * 3
    ways = {(point["method"], point.get("lora_r"), point["task_name"], point["seed"]) for point in points}
    assert len(ways) == len(points)
    assert {way[:2] for way in ways} == {
        ("head", None), ("bitfit", None), ("lora", 8), ("lora", 16), ("lora", 32), ("full", None),
    }  # fmt: skip
    assert {(point["data_dir"], point["max_train_samples"]) for point in points} == {("glue", 5000)}
    # If stopped after a third, it has completed one seed.
    assert {point["seed"] for point in points[:12]} == {1}


def test_values_are_taken_as_they_are_written():
    """YAML would read 010 as eight, and a # after a blank as the start of a comment."""
    words, _ = sweep_words("all-MiniLM-L6-v2", ("mrpc",), "/data/glue #2", "042,010", None)
    sweep = reproduce_sweep(words)
    assert {sweep.flags(point)["data_dir"] for point in sweep.grid()} == {"/data/glue #2"}
    assert {sweep.flags(point)["seed"] for point in sweep.grid()} == {42, 10}


def test_one_seed_and_one_task_are_lists_too():
    words, _ = sweep_words("all-MiniLM-L6-v2", ("rotten_tomatoes",), None, "7", None)
    assert reproduce_sweep(words).size == 6


def test_set_puts_a_parameter_in_place_of_the_files():
    sweep = reproduce_sweep(["seed=[5]", "learning_rate=0.001", "task_name=mrpc", "train_head=false"])
    first = sweep.flags(next(sweep.grid()))
    assert (first["seed"], first["learning_rate"], first["task_name"], first["train_head"]) == (5, 0.001, "mrpc", False)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed", "--set seed: must be name=value, or name=[value, value]"),
        ("=3", "--set =3: must be name=value"),
        ("seed=[1", "--set seed=[1: not valid YAML"),
        ("seeds=[1]", "--set seeds=[1]: --seeds: no such flag; did you mean --seed?"),
        ("seed=x", "--set seed=x: --seed: invalid int value"),
        ("output_dir=x", "--output_dir is set by the sweep itself"),
    ],
)
def test_a_wrong_change_is_one_line(word, message):
    with pytest.raises(UserError) as caught:
        reproduce_sweep([word])
    assert message in str(caught.value) and "\n" not in str(caught.value)
