"""Pushing a result to the Hub: the real client, with a local server."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from huggingface_hub.utils import validate_repo_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftlib.arguments import parse_export_arguments
from peftlib.errors import RunError, UserError
from peftlib.tracking.reporter import Reporter
from peftlib.training.publishing import (
    Repository,
    choose_repository,
    find_repository,
    push_adapter,
    push_checkpoint,
    push_run,
)
from tests.local_hub import TOKEN, LocalHub, local_hub
from tests.tracking.facts import made_arguments, made_facts

AS_SAVED = ("adapter_model.safetensors", "all_results.json", "tokenizer.json", "tokenizer_config.json")
STAY = ("metrics.jsonl", "predictions.safetensors", "run.json", ".lock", "notes.txt")
MINE = Repository("me/reviews", private=False)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub() as hub:
        yield hub


def record(*words: str, **model: str) -> dict[str, Any]:
    run = {"arguments": made_arguments(*words), **made_facts(), "steps": 3}
    run["model"] |= model
    return run | {"results": {"best_eval_accuracy": 0.75, "best_eval_loss": 0.5, "best_eval_step": 3}}


def write_run(folder: Path) -> Path:
    """Make the folder of a run that has saved an adapter, with a checkpoint and other files."""
    for name in (*AS_SAVED, *STAY, "checkpoints/step_3/model.safetensors", "predictions/test/results.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"{name} of {folder}".encode())
    (folder / "README.md").write_text(f'from_pretrained("{folder}")')
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder), "r": 8}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_commit_brings_what_others_need_and_nothing_else(hub: LocalHub, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    before = contents(folder)
    address = push_run(folder, record(name=str(tmp_path / "bert"), location=str(tmp_path / "bert")), MINE)
    assert address == f"{hub.endpoint}/me/reviews"
    ((place, added, deleted),) = hub.commits
    assert (place, deleted, hub.created[0].get("visibility")) == ("me/reviews", [], None)
    assert added.keys() == {*AS_SAVED, "README.md", "adapter_config.json"}
    assert {name: added[name] for name in AS_SAVED} == {name: (folder / name).read_bytes() for name in AS_SAVED}
    assert json.loads(added["adapter_config.json"]) == {"base_model_name_or_path": "bert", "r": 8}
    card = added["README.md"].decode()
    assert 'from_pretrained("me/reviews"' in card and "| accuracy | 0.7500 |" in card
    assert str(tmp_path).encode() not in added["README.md"] + added["adapter_config.json"]
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("words", "name", "location", "expected"),
    [
        ((), "all-MiniLM-L6-v2", "/venv/model", ("sentence-transformers/all-MiniLM-L6-v2", None)),
        ((), "some/model", "some/model", ("some/model", None)),
        (("--model_revision", "v2"), "some/model", "some/model", ("some/model", "v2")),
        (("--model_revision", "v2"), "./models/bert", "/home/me/models/bert", ("bert", None)),
    ],
)
def test_an_adapter_finds_its_base_model_elsewhere(
    hub: LocalHub, tmp_path: Path, words: tuple[str, ...], name: str, location: str, expected: tuple[str, str | None]
) -> None:
    push_run(write_run(tmp_path), record(*words, name=name, location=location), MINE)
    config = json.loads(hub.repositories["me/reviews"]["adapter_config.json"])
    assert (config["base_model_name_or_path"], config.get("revision")) == expected


def test_a_whole_model_replaces_an_adapter_and_the_other_way_round(hub: LocalHub, tmp_path: Path) -> None:
    """transformers would load an adapter on top of the model's weights."""
    hub.repositories["me/reviews"] = {"LICENSE": b"mine", "tokenizer.json": b"old"}
    push_run(write_run(tmp_path / "run"), record(), MINE)
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("README.md", "config.json", "model.safetensors", "tokenizer.json"):
        (plain / name).write_text(name)
    push_checkpoint(plain, MINE)
    adapter, kept = {"adapter_config.json", "adapter_model.safetensors"}, {"LICENSE", "all_results.json"}
    assert hub.repositories["me/reviews"].keys() == contents_names(plain) | kept | {"tokenizer_config.json"}
    push_run(tmp_path / "run", record(), MINE)
    assert hub.repositories["me/reviews"].keys() == {*AS_SAVED, "README.md", "LICENSE"} | adapter
    assert [deleted for _, _, deleted in hub.commits] == [[], sorted(adapter), ["config.json", "model.safetensors"]]


def contents_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_private_repository_is_made_private(hub: LocalHub, tmp_path: Path) -> None:
    push_run(write_run(tmp_path), record(), find_repository("reviews", "run", private=True))
    assert hub.public == set()
    assert hub.created == [{"name": "reviews", "organization": "me", "visibility": "private"}]


@pytest.mark.parametrize("step", ["repos/create", "commit/main"])
def test_a_failed_push_leaves_the_result_and_says_how_to_push_it(hub: LocalHub, tmp_path: Path, step: str) -> None:
    folder = write_run(tmp_path / "my run")
    before = contents(folder)
    hub.broken = step
    with pytest.raises(RunError) as caught:
        push_run(folder, record(), Repository("me/reviews", private=True))
    assert contents(folder) == before and hub.commits == []
    said = str(caught.value)
    assert said.startswith(f"{folder} holds the whole result, but it was not pushed to me/reviews (HfHubHTTPError: ")
    assert "\n" not in said and TOKEN not in said
    words = shlex.split(said.partition("python scripts/export.py ")[2])
    place, options, flags = parse_export_arguments(words)
    assert (place, options.adapter, flags.push_to_hub, flags.hub_private_repo) == (str(folder), True, True, True)
    hub.broken = None
    push_adapter(Path(place), record(), find_repository(flags.hub_model_id, "x", flags.hub_private_repo))
    assert hub.repositories["me/reviews"].keys() >= {*AS_SAVED}


def test_without_weights_nothing_is_pushed(hub: LocalHub, tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors; train it again"):
        push_run(folder, record(), MINE)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json; train it again"):
        push_run(folder, record(), MINE)
    with pytest.raises(UserError, match="holds the whole model and no adapter; leave out --adapter"):
        push_adapter(folder, record(), MINE)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("wanted", "expected"), [(None, "me/run"), ("reviews", "me/reviews"), ("acme/x", "acme/x"), ("ACME/x", "ACME/x")]
)
def test_a_repository_has_the_token_s_owner_unless_another_is_named(
    hub: LocalHub, wanted: str | None, expected: str
) -> None:
    assert find_repository(wanted, "run", private=False) == Repository(expected, False)
    assert hub.created == [] and hub.repositories == {}


@pytest.mark.parametrize(
    ("wanted", "name", "message"),
    [
        ("a b", "run", "--hub_model_id a b: is not a valid name on the Hub"),
        ("", "run", "--hub_model_id : is not a valid name on the Hub"),
        (None, "my run", "--push_to_hub: 'my run': is not a valid name on the Hub"),
        ("other/x", "run", "--hub_model_id other/x: the token of me may write to me, acme; name one of these"),
    ],
)
def test_where_nothing_can_be_pushed_is_refused(hub: LocalHub, wanted: str | None, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_repository(wanted, name, private=False)
    assert str(caught.value).startswith(message)


def test_a_token_that_may_only_read_is_refused_and_one_that_does_not_say_is_tried(hub: LocalHub) -> None:
    hub.role = "read"
    with pytest.raises(UserError, match="token may only read; create one that may write"):
        find_repository(None, "run", private=False)
    hub.role = "fineGrained"
    assert find_repository("other/x", "run", private=False).id == "other/x"


def test_what_shall_be_private_does_not_go_where_everybody_reads(hub: LocalHub) -> None:
    hub.repositories = {"me/open": {}, "me/closed": {}}
    hub.public = {"me/open"}
    with pytest.raises(UserError, match="--hub_model_id open: already exists and is public"):
        find_repository("open", "run", private=True)
    assert find_repository("closed", "run", private=True).id == "me/closed"


@given(name=st.text(min_size=1, max_size=100))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_folder_s_name_is_one_for_the_hub_or_one_line(hub: LocalHub, name: str) -> None:
    try:
        found = find_repository(None, name.replace("/", ":"), private=False)
    except UserError as error:
        assert "is not a valid name on the Hub" in str(error) and "\n" not in str(error)
    else:
        validate_repo_id(found.id)
        assert found.id == f"me/{name}"


def reporter(folder: Path) -> Reporter:
    return Reporter(Accelerator(cpu=True), folder, made_arguments(), [])


def test_a_run_that_is_not_pushed_asks_nobody(hub: LocalHub, tmp_path: Path) -> None:
    assert choose_repository(False, "a b", True, reporter(tmp_path)) is None
    assert hub.requests == []


def test_who_will_read_it_is_said_at_the_start(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for private, access in ((False, "public"), (True, "private if it is new")):
        found = choose_repository(True, None, private, reporter(tmp_path / "run"))
        assert found == Repository("me/run", private)
        expected = f"note: the result will be pushed to me/run on the Hub ({access})\n"
        assert capsys.readouterr().out == expected


def test_a_sweep_s_runs_are_not_pushed(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    with pytest.raises(UserError, match="--push_to_hub: a sweep would push all its runs"):
        choose_repository(True, None, False, reporter(tmp_path))
    assert hub.requests == []
