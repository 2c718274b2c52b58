"""`--push_to_hub` as its users give it, with a Hub on this machine."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, write_glue
from tests.launching import run_script, start_two
from tests.local_hub import TOKEN, LocalHub, local_hub

pytestmark = pytest.mark.launch
TRAIN, EXPORT = ROOT / "scripts" / "train.py", ROOT / "scripts" / "export.py"
PUSHED_AS_SAVED = {"adapter_model.safetensors", "all_results.json", "tokenizer.json", "tokenizer_config.json"}
PUSHED = {*PUSHED_AS_SAVED, "README.md", "adapter_config.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    """A folder to run in, with `base` and `glue`."""
    place = tmp_path_factory.mktemp("push") / "work"
    shutil.copytree(tiny_folder(), place / "base")
    write_glue(place / "glue", train=20)
    return place


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with local_hub() as hub:
        yield hub


def words(place: Path, *more: object) -> list[object]:
    given = ["--model_name_or_path", place / "base", "--task_name", "sst2", "--data_dir", place / "glue"]
    given += ["--num_train_epochs", 1, "--mixed_precision", "no", "--num_cpu_threads", 1, "--checkpointing_steps", 1]
    return [*given, "--push_to_hub", *more]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def run_in_two(hub: LocalHub, place: Path, *given: object) -> tuple[list[int | None], list[tuple[str, str]]]:
    """The exit statuses of two processes of train.py, and what each of them printed."""
    both = start_two(TRAIN, *words(place, *given), cwd=place, **hub.environment)
    try:
        said = [run.communicate(timeout=300) for run in both]
    finally:
        for run in both:  # one that is left alone would wait for the other for ever
            run.kill()
    return [run.returncode for run in both], said


def test_of_two_processes_one_pushes_what_is_saved_in_one_commit(place: Path, hub: LocalHub) -> None:
    statuses, said = run_in_two(hub, place, "--output_dir", "two", "--hub_private_repo")
    assert statuses == [0, 0], said
    assert said[0][0].endswith(f"pushed to {hub.endpoint}/me/two\n") and "pushed" not in said[1][0]
    ((repository, pushed, deleted),) = hub.commits
    assert (repository, deleted, hub.public) == ("me/two", [], set())
    assert [hub.requests.count(one) for one in ("GET /api/whoami-v2", "POST /api/repos/create")] == [1, 1]
    assert pushed.keys() == PUSHED
    folder = place / "two"
    assert all(pushed[name] == (folder / name).read_bytes() for name in PUSHED_AS_SAVED)
    assert not [name for name, content in pushed.items() if str(place).encode() in content]
    assert json.loads((folder / "run.json").read_text())["arguments"]["push_to_hub"] is True
    assert len(files_of(folder)) > 12
    assert not [path for path in files_of(folder) if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in str(said)


def test_a_push_that_fails_leaves_a_finished_run_which_is_pushed_later(place: Path, hub: LocalHub) -> None:
    hub.broken = "commit/main"
    given = words(place, "--output_dir", "kept", "--hub_model_id", "reviews")
    done = run_script(TRAIN, *given, cwd=place, **hub.environment)
    assert (done.returncode, done.stderr.count("\n"), hub.commits) == (1, 1, [])
    assert done.stderr.startswith("failed: kept holds the whole result, but it was not pushed to me/reviews (HfHubHTTP")
    folder = place / "kept"
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert {path.name for path in folder.iterdir()} >= {*PUSHED, "predictions.safetensors", "metrics.jsonl"}
    command = shlex.split(done.stderr.partition("push it with: ")[2])
    assert command[:2] == ["python", "scripts/export.py"]
    hub.broken = None
    again = run_script(EXPORT, *command[2:], cwd=place, **hub.environment)
    assert (again.returncode, again.stdout) == (0, f"kept pushed to {hub.endpoint}/me/reviews\n"), again.stderr
    assert hub.commits[0][1].keys() == PUSHED
    plain = run_script(
        EXPORT, "kept", "--output_dir", "plain", "--push_to_hub", "--hub_model_id", "reviews", cwd=place,
        **hub.environment,
    )  # fmt: skip
    assert plain.stdout.endswith(f"pushed to {hub.endpoint}/me/reviews\n"), plain.stderr
    _, pushed, deleted = hub.commits[1]
    assert deleted == ["adapter_config.json", "adapter_model.safetensors"]
    assert pushed == {path.name: path.read_bytes() for path in (place / "plain").iterdir()}
    assert pushed.keys() == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not [name for name, content in pushed.items() if str(place).encode() in content]


def test_two_processes_end_alike_before_they_begin_when_the_token_may_not_push(place: Path, hub: LocalHub) -> None:
    hub.role = "read"
    statuses, said = run_in_two(hub, place, "--output_dir", "refused")
    assert statuses == [2, 2], said
    (_, first), (_, second) = said
    assert first.startswith("error: --push_to_hub: this machine's token may only read") and second == ""
    assert not (place / "refused").exists() and hub.created == []
