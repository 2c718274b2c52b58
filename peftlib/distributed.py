"""Distributed runs, on one node or several: join the processes, share errors, and check that all have the same inputs.

Each process reads flags, data and the base model itself, and nodes need not share a file system. If one process exited
with an error of its own, the others would wait for it until torch times out, half an hour later.
"""

from __future__ import annotations

import atexit
import gc
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object, get_cpu_distributed_information

from peftlib.errors import Ending, RunError, UserError, in_one_line

_Answer = TypeVar("_Answer")
#: Variables of `accelerate launch` -> what they turn on.
_SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism configuration",
}


def join(timeout: timedelta | None = None) -> PartialState:
    """Join the launcher's processes, if any; return accelerate's state, the same object at every call.

    Args:
        timeout: of collective operations, joining included; None means torch's default.

    Raises:
        UserError: the launcher was told to shard the model, or started fewer processes than it was asked for.
        RunError: the processes do not reach each other.
    """
    if PartialState._shared_state:
        return PartialState()
    _refuse_sharding()
    _refuse_a_lone_process()
    on_cpus = not has_accelerator()
    if on_cpus and (interface := _interface_towards_others()):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    try:
        # Without a GPU, accelerate joins the launcher's processes only with cpu=True.
        state = PartialState(cpu=on_cpus, **({} if timeout is None else {"timeout": timeout}))
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise RunError(
            f"process {os.environ.get('RANK')} on {platform.node()} cannot join the others: {_why_alone(error)}"
        ) from error
    if dist.is_initialized():
        _free_last(dist.group.WORLD)
    return state


def _refuse_sharding() -> None:
    for variable, way in _SHARDING.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            problem = UserError(
                f"accelerate's {way} is not supported, as every process holds the whole model; use "
                "accelerate_configs/multi_gpu.yaml, or accelerate launch --multi_gpu"
            )
            raise _shared(problem)


def _why_alone(error: RuntimeError) -> str:
    reason = in_one_line(error)
    if "EADDRINUSE" in reason:
        return f"{reason}; choose another --main_process_port"
    if "gloo" not in reason.lower():
        return reason
    return f"{reason}; nodes must reach each other on all ports, by the network interface in GLOO_SOCKET_IFNAME=eth0"


def _refuse_a_lone_process() -> None:
    """Without several GPUs, accelerate starts one process whatever it is asked for, unless the file says MULTI_GPU."""
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and _launcher_set_the_address():
        raise UserError(
            "accelerate launch was asked for several processes but starts one: without --cpu, use --config_file "
            "accelerate_configs/multi_cpu.yaml, multi_gpu.yaml or, on several machines, multi_node.yaml"
        )


def _launcher_set_the_address() -> bool:
    """Whether this process is alone, and MASTER_ADDR came from its launcher, not from a job script or cluster."""
    if "WORLD_SIZE" in os.environ or get_cpu_distributed_information().world_size > 1:
        return False
    try:
        of_launcher = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:  # not on Linux
        return os.environ["MASTER_ADDR"] == "127.0.0.1"
    return not any(line.startswith(b"MASTER_ADDR=") for line in of_launcher)


def _interface_towards_others() -> str | None:
    """Return this node's network interface to the first node, if gloo would look at the wrong one.

    Unless GLOO_SOCKET_IFNAME says otherwise, gloo takes the address that the host's name has, which on Debian and
    Ubuntu is 127.0.1.1 (/etc/hosts): the other nodes would look for this one on themselves. NCCL passes loopback over.
    """
    first, told = os.environ.get("MASTER_ADDR", ""), os.environ.get("GLOO_SOCKET_IFNAME")
    processes = get_cpu_distributed_information()
    on_one_node = processes.world_size == processes.local_world_size
    if told or on_one_node or not first or first == "localhost" or _is_loopback(first):
        return None
    interfaces = {address.address: name for name, addresses in psutil.net_if_addrs().items() for address in addresses}
    if any(not _is_loopback(own) and own in interfaces for own in _addresses_of(platform.node())[:1]):
        return None
    # The first node may be loopback to itself. The others are addresses for documentation: where the default route is.
    for host in (first, "198.51.100.1", "2001:db8::1"):
        mine = _address_towards(host)
        if mine is not None and not _is_loopback(mine):
            return interfaces.get(mine)
    return None


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _addresses_of(host: str) -> list[str]:
    with suppress(OSError):
        return [str(place[0]) for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    return []


def _address_towards(host: str) -> str | None:
    """Return the address from which this machine would send to a host, without sending anything."""
    for address in _addresses_of(host):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as end:
            end.connect((address, 9))
            return str(end.getsockname()[0])
    return None


def has_accelerator() -> bool:
    """Return whether torch finds an accelerator on this machine."""
    return bool(torch.accelerator.is_available() and torch.accelerator.device_count() > 0)


@contextmanager
def everywhere(*, in_turn: bool = False) -> Iterator[None]:
    """Make a block that fails on one process fail on all, with that process's message. Call it on every process.

    The block must not communicate, since a process that failed in it would not take part.

    Args:
        in_turn: let the first process of each node run the block before the others, which then find its caches.

    Raises:
        UserError: a process raised it.
        RunError: another process raised it, or any other exception; the failing process keeps its own exception.
    """
    state = join()
    if in_turn and not state.is_local_main_process:
        state.wait_for_everyone()
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    if in_turn and state.is_local_main_process:
        state.wait_for_everyone()
    said = gather_object([(platform.node(), _line(problem), isinstance(problem, UserError))])
    all_say_so = len({line for _, line, _ in said}) == 1
    if problem is not None and (all_say_so or not isinstance(problem, (UserError, RunError))):
        raise _shared(problem)
    for rank, (host, line, by_input) in enumerate(said):
        if line is not None:  # only some processes failed: say which one, so that the user knows where to look
            kind = UserError if by_input else RunError
            raise _shared(kind(f"in process {rank} on {host}: {line}")) from problem


def refuse_differences(values: dict[str, Any]) -> None:
    """Check that all processes have the same values. Call it on every process.

    Args:
        values: name -> value of JSON types.

    Raises:
        UserError: a process differs from the first.
    """
    gathered = gather_object([(platform.node(), values)])
    host, first = gathered[0]
    for rank, (other, theirs) in enumerate(gathered):
        if names := [name for name in first.keys() | theirs.keys() if first.get(name) != theirs.get(name)]:
            problem = UserError(
                f"process {rank} on {other} differs from process 0 on {host} in {', '.join(sorted(names))}; start all "
                "nodes with the same command, and with the same files"
            )
            raise _shared(problem)


def tell(error: UserError) -> None:
    """Pass an error from before `join` on to the other processes, which raise it at their first `everywhere`.

    They are waiting for this process. If they do not join either, give up after a minute or two.
    """
    if not dist.is_initialized():
        with suppress(UserError, RunError, RuntimeError):  # the last two if the other processes are gone
            join(timedelta(minutes=1))
            with everywhere():
                raise error


def on_main(call: Callable[[], _Answer]) -> _Answer:
    """Run `call` on the main process only; return its result, or raise its exception, on every process."""
    outcome: list[Any] = [None, None]
    if join().is_main_process:
        try:
            outcome = [call(), None]
        except Exception as error:
            outcome = [None, error]
    broadcast_object_list(outcome)
    answer, problem = outcome
    if problem is not None:
        raise _shared(problem)
    return answer


def true_everywhere(accelerator: Accelerator, mine: bool) -> bool:
    """Return whether a statement is true on every process; call it on all of them."""
    if accelerator.num_processes == 1:
        return mine
    votes: torch.Tensor = accelerator.reduce(torch.tensor(float(mine), device=accelerator.device), reduction="sum")
    return votes.item() == accelerator.num_processes


def _shared(problem: Exception) -> Exception:
    """Mark an error that all processes raise."""
    if isinstance(problem, Ending):
        problem.shared = True
    return problem


def _line(error: Exception | None) -> str | None:
    if error is None:
        return None
    return str(error) if isinstance(error, (UserError, RunError)) else f"{type(error).__name__}: {error}"


def _free_last(group: dist.ProcessGroup | None) -> None:
    """Keep the process group alive until exit, so that it is freed last, and its threads can finish first.

    Freeing gloo's group waits for its threads, and a thread that is releasing a tensor waits for the GIL, which
    whoever drops the last reference may hold: a finished run then deadlocks or aborts (torch 2.13, on busy cores).
    """
    held = [group]

    def free() -> None:
        gc.collect()  # frees models in reference cycles first
        time.sleep(0.1)  # releases the GIL to a waiting thread
        held.clear()

    atexit.register(free)
