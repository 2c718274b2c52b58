"""Where the CPU kernels are built and cached, and the warning if they cannot be built."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from peftlib.acceleration import cpu_compiler
from peftlib.acceleration.cpu_compiler import kernels
from tests.conftest import KERNELS, ROOT

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="this machine has no g++ for the CPU kernels"
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Give each test its own cache folder, and forget loaded kernels before and after it."""
    kernels.cache_clear()
    monkeypatch.setenv("PEFTLIB_CACHE", str(tmp_path / "cache"))
    yield
    kernels.cache_clear()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two sources that compile in no time, in place of the kernels."""
    sources = [tmp_path / "sources" / name for name in ("one.cpp", "two.cpp")]
    sources[0].parent.mkdir()
    for source in sources:
        source.write_text(f'extern "C" int {source.stem}() {{ return 7; }}\n')
    monkeypatch.setattr(cpu_compiler, "_SOURCES", sources)
    return sources


def builds(monkeypatch, run=None):
    """Record what is linked from now on: each build ends with it."""
    made = []
    plain = subprocess.run

    def recorded(command, **how):
        if "-shared" in command:
            made.append(command)
        return (run or plain)(command, **how)

    monkeypatch.setattr(cpu_compiler.subprocess, "run", recorded)
    return made


@needs_compiler
def test_they_are_built_once_and_found_by_the_next_process(monkeypatch, tmp_path, small):
    made = builds(monkeypatch)
    library = kernels()
    assert kernels() is library is not None
    assert library.one() == library.two() == 7 and len(made) == 1
    (built,) = (tmp_path / "cache" / "kernels").iterdir()
    kernels.cache_clear()
    assert kernels() is not None
    assert len(made) == 1
    # For another processor, source or compiler flag, anew.
    monkeypatch.setattr(cpu_compiler, "_FLAGS", ("-O1", *cpu_compiler._FLAGS[1:]))
    kernels.cache_clear()
    assert kernels() is not None and len(made) == 2
    small[1].write_text('extern "C" int two() { return 8; }\n')
    kernels.cache_clear()
    changed = kernels()
    assert changed is not None and changed.two() == 8 and len(made) == 3
    assert len(list(built.parent.iterdir())) == 3


@needs_compiler
@pytest.mark.usefixtures("small")
def test_while_one_process_builds_them_the_others_wait(monkeypatch, tmp_path):
    made = builds(monkeypatch)
    assert kernels() is not None
    (built,) = (tmp_path / "cache" / "kernels").iterdir()
    kernels.cache_clear()
    aside = built.rename(tmp_path / "aside")
    builder = os.open(built.parent, os.O_RDONLY)
    fcntl.flock(builder, fcntl.LOCK_EX)
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(kernels)
        time.sleep(0.3)
        assert not waits.done()
        aside.rename(built)
        os.close(builder)
        assert waits.result(60) is not None
    assert len(made) == 1


@needs_compiler
def test_they_share_torch_s_threads():
    """The process has a single OpenMP: a second thread pool would compete for the cores."""
    code = "import torch; from peftlib.acceleration.cpu_compiler import kernels; assert kernels() is not None; "
    code += "maps = open('/proc/self/maps').read().split(); print(len({one for one in maps if 'libgomp' in one}))"
    there = {**os.environ, "PEFTLIB_CACHE": str(KERNELS.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=there, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path, small):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTLIB_CACHE", str(tmp_path / "file"))
    assert kernels() is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", small[0].parent.name]


@needs_compiler
@pytest.mark.parametrize("of_others", ["owner", "mode"])
@pytest.mark.parametrize("place", ["library", "folder"])
@pytest.mark.usefixtures("small")
def test_what_another_user_can_have_put_into_the_cache_is_not_loaded(monkeypatch, tmp_path, of_others, place):
    """A cached library that others can write is built anew; in a folder of theirs nothing is looked for or left."""
    made = builds(monkeypatch)
    assert kernels() is not None
    (library,) = (tmp_path / "cache" / "kernels").iterdir()
    library.unlink()  # this process has loaded it
    library.write_text("someone else's")
    changed = library if place == "library" else library.parent
    if of_others == "mode":
        changed.chmod(0o770)
    elif os.geteuid() == 0:
        os.chown(changed, 12345, -1)
    else:
        pytest.skip("only root can give files away")
    kernels.cache_clear()
    assert kernels() is not None and len(made) == 2
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    assert (library.read_bytes() == b"someone else's") == (place == "folder")
    assert place == "folder" or cpu_compiler._is_only_ours(library)


@needs_compiler
@pytest.mark.usefixtures("small")
def test_a_damaged_library_is_built_anew(monkeypatch, tmp_path):
    made = builds(monkeypatch)
    library = tmp_path / "cache" / "kernels" / f"{cpu_compiler._fingerprint()}.so"
    library.parent.mkdir(mode=0o700, parents=True)
    library.touch(mode=0o700)
    built = kernels()
    assert built is not None and built.one() == 7 and len(made) == 1
    kernels.cache_clear()
    assert kernels() is not None and len(made) == 1


def test_without_a_compiler_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_compiler.sys, "platform", "linux")
    monkeypatch.setattr(cpu_compiler.shutil, "which", lambda _: None)
    with pytest.warns(UserWarning, match="no CPU kernels, .*: they need g\\+\\+ .apt install") as said:
        assert kernels() is None
    assert kernels() is None and len(said) == 1  # once
    assert not any((tmp_path / "cache" / "kernels").iterdir())


@pytest.mark.parametrize("failure", [
    subprocess.CalledProcessError(1, "g++", stderr="cpu_kernels.cpp:1: fatal error: omp.h: no such file\nand more\n"),
    subprocess.TimeoutExpired("g++", 120),
    subprocess.TimeoutExpired("g++", 120, stderr=b"a warning\n"),
    PermissionError("g++"),
])  # fmt: skip
def test_a_compiler_that_fails_leaves_nothing_behind(failure, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(cpu_compiler.sys, "platform", "linux")
    monkeypatch.setattr(cpu_compiler.shutil, "which", lambda _: "/usr/bin/g++")
    builds(monkeypatch, fail)
    with pytest.warns(UserWarning, match="no CPU kernels") as said:
        assert kernels() is None
    assert "\n" not in str(said[0].message)
    assert not any((tmp_path / "cache" / "kernels").iterdir())


def test_other_systems_go_without_a_word(monkeypatch):
    monkeypatch.setattr(cpu_compiler.sys, "platform", "darwin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels() is None
