"""What one process cannot do, none does; what one does differently is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState

from peftlib import distributed
from peftlib.distributed import everywhere, join, on_main, refuse_differences
from peftlib.errors import RunError, UserError
from tests.conftest import ROOT
from tests.launching import clean_environment, launch, run_python

#: What makes networks of its own.
_TOOLS = ["timeout", "unshare", "nsenter", "ip", "mount", "hostname"]
_HOSTS = Path(__file__).with_name("two_hosts.sh")
_OWN_NETWORK = ["timeout", "--kill-after=5", "120", "unshare", "--map-root-user", "--net", "--mount", "--pid",
                "--mount-proc", "--kill-child"]  # fmt: skip


class Group:
    """Two processes of which this is one: what the other says at each gather is known from the start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, *others: Any, local: bool = False) -> None:
        self._rank, self._others, self.waits = rank, list(others), 0
        state = SimpleNamespace(is_local_main_process=not (local and rank), wait_for_everyone=self._wait)
        monkeypatch.setattr(distributed, "join", lambda: state)
        monkeypatch.setattr(distributed, "gather_object", self._gather)

    def _wait(self) -> None:
        self.waits += 1

    def _gather(self, mine: list[Any]) -> list[Any]:
        both = [*mine, self._others.pop(0)]
        return both if self._rank == 0 else both[::-1]

    def assert_heard_out(self) -> None:
        assert self._others == [], "the other process waits for this one"


WELL = ("other", None, False)


def test_alone_an_error_stays_as_it_is() -> None:
    error = UserError("--data_dir x: missing")
    with pytest.raises(UserError) as caught, everywhere():
        raise error
    assert caught.value is error
    with everywhere(in_turn=True):
        pass


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("by_input", "kind"), [(True, UserError), (False, RunError)])
def test_the_others_error_is_raised_here_and_says_where(monkeypatch, rank, by_input, kind) -> None:
    group = Group(monkeypatch, rank, ("other", "x is missing", by_input))
    with pytest.raises(kind, match=f"^in process {1 - rank} on other: x is missing$"), everywhere():
        pass
    group.assert_heard_out()


def test_the_error_of_this_one_says_where_too(monkeypatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "here")
    group = Group(monkeypatch, 1, WELL)
    with pytest.raises(UserError, match=r"^in process 1 on here: x is missing$"), everywhere():
        raise UserError("x is missing")
    group.assert_heard_out()


def test_an_error_that_all_have_is_said_as_it_is(monkeypatch) -> None:
    Group(monkeypatch, 0, ("other", "x is missing", True))
    with pytest.raises(UserError, match=r"^x is missing$"), everywhere():
        raise UserError("x is missing")


def test_a_bug_keeps_its_type_where_it_is_and_is_told_to_the_others(monkeypatch) -> None:
    group = Group(monkeypatch, 0, WELL)
    with pytest.raises(ZeroDivisionError), everywhere():
        1 / 0  # noqa: B018
    group.assert_heard_out()
    Group(monkeypatch, 0, ("other", "ZeroDivisionError: division by zero", False))
    with pytest.raises(RunError, match="in process 1 on other: ZeroDivisionError"), everywhere():
        pass


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fails", [False, True])
def test_in_turn_each_waits_once_whatever_happens(monkeypatch, rank, fails) -> None:
    group = Group(monkeypatch, rank, WELL, local=True)
    seen = []
    try:
        with everywhere(in_turn=True):
            seen.append(group.waits)
            if fails:
                raise UserError("x is missing")
    except UserError:
        assert fails
    assert seen == [rank] and group.waits == 1
    group.assert_heard_out()


@pytest.mark.parametrize("rank", [0, 1])
def test_what_differs_is_refused_by_its_name_on_all(monkeypatch, rank) -> None:
    monkeypatch.setattr("platform.node", lambda: "here")
    mine, theirs = {"--seed": 1, "--lora_r": 8, "--use_dora": False}, {"--seed": 2, "--lora_r": 8, "the data": "x"}
    first, second = ("here", "other") if rank == 0 else ("other", "here")
    line = f"process 1 on {second} differs from process 0 on {first} in --seed, --use_dora, the data;"
    group = Group(monkeypatch, rank, ("other", theirs), ("other", mine))
    with pytest.raises(UserError, match=line):
        refuse_differences(mine)
    refuse_differences(mine)
    group.assert_heard_out()


def test_what_one_could_not_even_parse_comes_before_what_differs(monkeypatch) -> None:
    group = Group(monkeypatch, 0, ("other", "--seed x: no number", True))
    with pytest.raises(UserError, match=r"^in process 1 on other: --seed x: no number$"):
        with everywhere():
            pass
        refuse_differences({"a": 1})
    group.assert_heard_out()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_answers_for_all(monkeypatch, rank) -> None:
    said: list[Any] = []

    def broadcast(objects: list[Any]) -> None:
        if rank == 0:
            said[:] = objects
        else:
            objects[:] = ["theirs", None]

    monkeypatch.setattr(distributed, "join", lambda: SimpleNamespace(is_main_process=rank == 0))
    monkeypatch.setattr(distributed, "broadcast_object_list", broadcast)
    calls = []
    assert on_main(lambda: calls.append(rank) or "mine") == ("mine" if rank == 0 else "theirs")
    assert calls == [0] * (rank == 0)
    if rank == 0:
        with pytest.raises(UserError, match="no"):
            on_main(lambda: (_ for _ in ()).throw(UserError("no")))
        assert said[0] is None and isinstance(said[1], UserError)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launcher_that_would_divide_the_model_is_refused(monkeypatch, variable) -> None:
    PartialState._reset_state()
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=r"^accelerate's (FSDP|DeepSpeed) is not supported, .* launch --multi_gpu$"):
        join()
    monkeypatch.setenv(variable, "false")
    assert join().num_processes == 1


@pytest.mark.launch
@pytest.mark.parametrize("words", [["--cpu", "--num_processes", "2"], ["--num_processes", "2"]])
@pytest.mark.skipif(torch.cuda.is_available(), reason="accelerate starts several on several GPUs")
def test_fewer_processes_than_were_asked_for_are_refused(tmp_path: Path, words) -> None:
    launcher = ["-m", "accelerate.commands.launch", "-q", *words]
    done = run_python(*launcher, ROOT / "scripts" / "train.py", "--output_dir", "run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr  # the launcher's
    assert done.stderr.splitlines()[-1].startswith(
        "error: accelerate launch was asked for several processes but starts"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.launch
@pytest.mark.parametrize(
    "changes", [{"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "MASTER_ADDR": "host"}, {"MASTER_ADDR": "host"}]
)
def test_one_process_is_not_refused_where_a_cluster_or_a_job_script_names_an_address(tmp_path: Path, changes) -> None:
    script = tmp_path / "alone.py"
    script.write_text("from peftlib.distributed import join; print(join().num_processes)")
    launcher = ["-m", "accelerate.commands.launch", "-q", "--num_processes", "1"]
    done = run_python(*launcher, script, cwd=tmp_path, PYTHONPATH=str(ROOT), **changes)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.launch
@pytest.mark.skipif(torch.cuda.is_available(), reason="about gloo")
def test_two_processes_end_in_good_order(tmp_path: Path) -> None:
    # Without `_free_last` about one of three of these ends hangs or aborts.
    script = Path(__file__).with_name("end_of_two.py")
    done = launch("multi_cpu", script, tmp_path, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def _two_hosts() -> None:
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    if subprocess.run([*_OWN_NETWORK, "bash", _HOSTS, "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not make networks, or this kernel cannot")


def on_two_hosts(code: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Python on two hosts with a network between them."""
    return subprocess.run(
        [*_OWN_NETWORK, "bash", _HOSTS, sys.executable, "-c", code],
        env=clean_environment(cwd, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", **changes),
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.launch
@pytest.mark.skipif(torch.cuda.is_available(), reason="about gloo")
@pytest.mark.usefixtures("_two_hosts")
def test_hosts_join_though_the_name_of_each_means_itself(tmp_path: Path) -> None:
    code = "from peftlib.distributed import join, gather_object; join(); print(gather_object([1]))"
    done = on_two_hosts(code, tmp_path)
    assert (done.returncode, done.stdout.count("[1, 1]")) == (0, 2), done.stderr[-3000:]


@pytest.mark.launch
@pytest.mark.skipif(torch.cuda.is_available(), reason="about gloo")
@pytest.mark.usefixtures("_two_hosts")
def test_hosts_that_cannot_join_say_what_to_set(tmp_path: Path) -> None:
    code = "from peftlib import cli; from peftlib.distributed import join; cli.run(join)"
    done = on_two_hosts(code, tmp_path, GLOO_SOCKET_IFNAME="absent0")
    lines = sorted(line for line in done.stderr.splitlines() if line.startswith("failed: "))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert len(lines) == 2, done.stderr[-3000:]
    for number, line in enumerate(lines):
        assert line.startswith(f"failed: process {number} on host{number} cannot join the others: ")
        assert "absent0" in line and line.endswith("by the network interface in GLOO_SOCKET_IFNAME=eth0")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "198.51.100.1"},
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"},
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost"},
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "198.51.100.1", "GLOO_SOCKET_IFNAME": "eth7"},
    ],
)
def test_no_interface_is_named_where_none_is_needed(monkeypatch, environment) -> None:
    named(monkeypatch, own="127.0.1.1", towards={"198.51.100.1": "10.2.0.1"})
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed._interface_towards_others() is None


def named(monkeypatch: pytest.MonkeyPatch, *, own: str, towards: dict[str, str]) -> None:
    """A host with two networks, whose name is one address, and which sends to others from certain addresses."""
    held = {"lo": ["127.0.0.1"], "eth0": ["10.1.0.1"], "eth1": ["10.2.0.1"]}
    addresses = {name: [SimpleNamespace(address=address) for address in of] for name, of in held.items()}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: addresses)
    monkeypatch.setattr(distributed, "_addresses_of", lambda host: [own] if own else [])
    monkeypatch.setattr(distributed, "_address_towards", towards.get)


@pytest.mark.parametrize(
    ("own", "towards", "expected"),
    [
        ("127.0.1.1", {"first": "10.2.0.1", "198.51.100.1": "10.1.0.1"}, "eth1"),
        ("", {"first": "10.2.0.1"}, "eth1"),  # no name server knows this host
        ("10.1.0.1", {"first": "10.2.0.1"}, None),  # gloo would find it, and may know better
        ("127.0.1.1", {"first": "127.0.1.1", "198.51.100.1": "10.1.0.1"}, "eth0"),  # this is the first node
        ("127.0.1.1", {"first": "::1", "2001:db8::1": "10.2.0.1"}, "eth1"),
        ("127.0.1.1", {}, None),
    ],
)
def test_the_interface_leads_to_the_first_node(monkeypatch, own, towards, expected) -> None:
    named(monkeypatch, own=own, towards=towards)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "first"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert distributed._interface_towards_others() == expected


def test_an_error_that_reaches_no_other_node_keeps_its_status(monkeypatch) -> None:
    def alone(timeout: Any = None) -> None:
        raise RunError("process 0 on here cannot join the others: timed out")

    monkeypatch.setattr(distributed, "join", alone)
    distributed.tell(UserError("--seed x: no number"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.distributed.DistNetworkError("port: 29500, EADDRINUSE"),
            "EADDRINUSE; choose another --main_process_port$",
        ),
        (torch.distributed.DistNetworkError("timed out"), "cannot join the others: timed out$"),
        (RuntimeError("Gloo connectFullMesh failed"), "failed; nodes must reach each other on all ports"),
    ],
)
def test_why_a_process_cannot_join_is_said(monkeypatch, error, said) -> None:
    def fails(**settings: Any) -> None:
        raise error

    fails._shared_state = {}  # type: ignore[attr-defined]
    monkeypatch.setattr(distributed, "PartialState", fails)
    with pytest.raises(RunError, match=said):
        join()
    error = RuntimeError("No CUDA GPUs are available")
    with pytest.raises(RuntimeError, match="No CUDA GPUs"):
        join()
