"""The processes of a run, on one node or on several: how they join, and what has to be the same on all of them.

Each process reads flags, data and the base model for itself, and nodes need not share a file system. One that leaves
with an error of its own would keep the others waiting for it until torch gives up, half an hour later.
"""

from __future__ import annotations

import atexit
import gc
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from peftlib.errors import RunError, UserError

_Answer = TypeVar("_Answer")


def join(timeout: timedelta | None = None) -> PartialState:
    """The device of this process and, under a launcher, its place among the others; the same one at every call.

    Args:
        timeout: of what all processes do together, from joining on; None is torch's.
    """
    if PartialState._shared_state:
        return PartialState()
    # Without a GPU, accelerate joins the processes of a launcher only when it is told that they are on CPUs.
    state = PartialState(cpu=not has_accelerator(), **({} if timeout is None else {"timeout": timeout}))
    if dist.is_initialized():
        _free_last(dist.group.WORLD)
    return state


def has_accelerator() -> bool:
    """Whether torch finds a GPU here."""
    return bool(torch.accelerator.is_available() and torch.accelerator.device_count() > 0)


@contextmanager
def everywhere(*, in_turn: bool = False, alike: dict[str, Any] | None = None) -> Iterator[None]:
    """What fails in this block on one process fails on all, with that one's line. Called on every process.

    The block must not communicate: a process that failed in it would not answer.

    Args:
        in_turn: the first process of each node goes ahead, and the others find what it has left in a cache.
        alike: what has to be the same on all of them, see `refuse_differences`.

    Raises:
        UserError: one process had it.
        RunError: one process had it, or an error that is nobody's input; there it keeps its own type.
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
    said = gather_object([(platform.node(), alike, _line(problem), isinstance(problem, UserError))])
    all_say_so = len({line for _, _, line, _ in said}) == 1
    if problem is not None and (all_say_so or not isinstance(problem, (UserError, RunError))):
        raise problem
    for rank, (host, _, line, by_input) in enumerate(said):
        if line is not None:  # not what all of them say: somebody has to know where to look
            raise (UserError if by_input else RunError)(f"in process {rank} on {host}: {line}") from problem
    if alike is not None:
        _compare([(host, values) for host, values, *_ in said])


def refuse_differences(values: dict[str, Any]) -> None:
    """Called on every process, with what makes its part of the run.

    Args:
        values: what it is called -> JSON types.

    Raises:
        UserError: one process has another value than the first.
    """
    _compare(gather_object([(platform.node(), values)]))


def _compare(of_all: list[tuple[str, dict[str, Any]]]) -> None:
    host, first = of_all[0]
    for rank, (other, theirs) in enumerate(of_all):
        if names := [name for name in first.keys() | theirs.keys() if first.get(name) != theirs.get(name)]:
            raise UserError(
                f"process {rank} on {other} differs from process 0 on {host} in {', '.join(sorted(names))}; start all "
                "nodes with the same command, and with the same files"
            )


def tell(error: UserError) -> None:
    """End the other processes with an error that this one had before it joined them, at their first `everywhere`.

    They wait for it. For those that do not come either, it waits a minute or two.
    """
    if not dist.is_initialized():
        with suppress(UserError, RuntimeError):  # torch's errors of processes that are away
            join(timedelta(minutes=1))
            with everywhere():
                raise error


def on_main(call: Callable[[], _Answer]) -> _Answer:
    """What `call` returns on the main process, or raises there, on every process: none waits for ever."""
    outcome: list[Any] = [None, None]
    if join().is_main_process:
        try:
            outcome = [call(), None]
        except Exception as error:
            outcome = [None, error]
    broadcast_object_list(outcome)
    answer, problem = outcome
    if problem is not None:
        raise problem
    return answer


def _line(error: Exception | None) -> str | None:
    if error is None or isinstance(error, (UserError, RunError)):
        return None if error is None else str(error)
    return f"{type(error).__name__}: {error}"


def _free_last(group: dist.ProcessGroup | None) -> None:
    """Let nothing free this process group before the process ends, and its threads finish what they do.

    Whoever frees gloo's group waits for its threads, and a thread that still lets go of a tensor waits for Python's
    lock. DistributedDataParallel's Reducer holds that lock meanwhile: where the model is freed last, a run that is done
    hangs for ever, or aborts (torch 2.13, about one of ten ends on busy cores).
    """
    held = [group]

    def free() -> None:
        gc.collect()  # models that wait in reference cycles go first
        time.sleep(0.1)  # gives the lock up, to a thread that waits for it
        held.clear()

    atexit.register(free)
