"""Both systems, measured over the same examples, in processes that lack what a bare GPU machine lacks."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
import time
from dataclasses import asdict

import psutil
import pytest

from benchmarks.jobs import Job, run, run_all
from benchmarks.startup import seconds_to_first_update, seconds_to_help
from tests.conftest import ROOT
from tests.launching import run_python, start_python
from tests.test_benchmarks.conftest import EXAMPLES

#: Runs jobs in a Python that does not find some packages.
WITHOUT = """
    import json, sys
    from importlib.machinery import PathFinder

    class Without(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            absent = name.partition(".")[0] in {"wandb", "datasets", "evaluate", "sklearn", "tensorboard"}
            return None if absent else super().find_spec(name, path, target)

    sys.meta_path[sys.meta_path.index(PathFinder)] = Without
    from benchmarks.jobs import Job
    from benchmarks.worker import measure
    for job in json.loads(sys.argv[1]):
        print("RESULT", json.dumps(measure(Job(**{**job, "flags": tuple(job["flags"])}))))
"""


def in_a_bare_python(jobs, folder):
    script = folder / "bare.py"
    script.write_text(textwrap.dedent(WITHOUT))
    (folder / "work").mkdir()
    words = json.dumps([asdict(job) for job in jobs])
    done = run_python(script, words, cwd=folder / "work", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]


@pytest.mark.launch
def test_a_bare_machine_measures_both_systems_over_the_same_examples(flags, tmp_path):
    jobs = [Job(kind, system, flags, warmup=1) for kind in ("train", "evaluate") for system in ("trainer", "ours")]
    theirs, ours, their_evaluation, our_evaluation = in_a_bare_python(jobs, tmp_path)
    assert theirs["examples"] == ours["examples"] == EXAMPLES
    assert theirs["tokens"] == pytest.approx(ours["tokens"], rel=0.1)  # another epoch's first batch stands for one
    assert our_evaluation["tokens"] == their_evaluation["tokens"] < our_evaluation["computed"]
    assert ours["computed"] < theirs["computed"]
    for speed in (theirs, ours, their_evaluation, our_evaluation):
        assert speed["precision"] == "no" and speed["threads"] == 1


@pytest.mark.launch
def test_jobs_share_a_process_and_one_that_fails_says_why(flags):
    first, second = run_all([Job("train", "ours", flags, warmup=1), Job("train", "ours", flags, warmup=1)])
    assert first["tokens"] == second["tokens"] and first["examples"] == second["examples"] == EXAMPLES
    assert first["first_update"] > 0 and second["first_update"] is None
    with pytest.raises(RuntimeError, match="no_such_task"):
        run(Job("train", "ours", (*flags, "--task_name", "no_such_task")))


@pytest.mark.launch
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a process that its parent died")
@pytest.mark.parametrize("config", [None, "cpu"])
def test_a_worker_ends_with_the_benchmark_that_started_it(flags, config, tmp_path):
    script = tmp_path / "endless.py"
    job = Job("train", "ours", flags, epochs=10**6)
    script.write_text(f"from benchmarks.jobs import Job, run\nrun({job!r}, {config!r})\n")
    (tmp_path / "work").mkdir()
    benchmark = start_python(script, cwd=tmp_path / "work", PYTHONPATH=str(ROOT))
    started: list[psutil.Process] = []
    try:
        while not any(one.cmdline()[1:3] == ["-m", "benchmarks.worker"] and one.num_threads() > 1 for one in started):
            assert benchmark.poll() is None, benchmark.communicate()
            time.sleep(0.1)  # until the worker loads torch
            started = psutil.Process(benchmark.pid).children(recursive=True)
        assert len(started) == (1 if config is None else 2)  # beside it accelerate's launcher
        benchmark.terminate()
        assert not psutil.wait_procs(started, timeout=60)[1]
    finally:
        for one in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        benchmark.kill()
        benchmark.communicate()


@pytest.mark.launch
def test_a_launch_is_timed_to_its_first_update_and_ended(flags):
    waits = seconds_to_help(), seconds_to_first_update(flags, "cpu", timeout=120)
    assert 0 < waits[0] < waits[1] < 120


@pytest.mark.launch
def test_a_launch_without_an_update_says_why(flags):
    with pytest.raises(RuntimeError, match="no_such_task"):
        seconds_to_first_update((*flags, "--task_name", "no_such_task"), "cpu", timeout=120)
