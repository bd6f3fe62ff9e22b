"""Building: in the background, once, with one place where it can fail."""

import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest

from plait.errors import CompilerError
from plait.native import cache as cache_module
from plait.native import compiler, library
from plait.native.library import build, build_now


@pytest.fixture(autouse=True)
def directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A cache of one's own, and no memory of what other tests built."""
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(library, "_warned", False)
    return tmp_path / "kernels"


def source_of(value: int) -> str:
    """A source nobody has built before, whose `answer` is `value`."""
    return f'// {uuid.uuid4()}\nextern "C" int answer() {{ return {value}; }}\n'


def slow_source(seconds: int = 60) -> str:
    """A source the fake compiler of `slow_compiler` takes so long for."""
    return f"// {uuid.uuid4()}\n// seconds {seconds}\n"


def count_compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    compile_one = library.LibraryFuture._compile

    def counted(self: library.LibraryFuture, folder: pathlib.Path) -> pathlib.Path:
        names.append(self.name)
        return compile_one(self, folder)

    monkeypatch.setattr(library.LibraryFuture, "_compile", counted)
    return names


def forget(source: str) -> None:
    """As in a new process: what is on disk counts."""
    del library._futures[cache_module.library_key(source, compiler.toolchain())]


@pytest.fixture
def slow_compiler(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A compiler that writes its child's process id to a file and then waits."""
    program = tmp_path / "slow++"
    pid_file = tmp_path / "pid"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo slow 1.0; exit; fi\nsleep 60 &\necho $! > {pid_file}\nwait\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PLAIT_CXX", str(program))
    return pid_file


def wait_for(file: pathlib.Path) -> int:
    for _ in range(500):
        if file.exists() and file.read_text().strip():
            return int(file.read_text())
        time.sleep(0.01)
    raise AssertionError(f"{file} did not appear")


def is_alive(pid: int) -> bool:
    status = pathlib.Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_until_dead(pid: int) -> bool:
    for _ in range(300):
        if not is_alive(pid):
            return True
        time.sleep(0.01)
    return False


def children_of(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()


def test_a_built_library_runs() -> None:
    assert build(source_of(42), "answer").result().answer() == 42


def test_equal_sources_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = count_compilations(monkeypatch)
    source = source_of(1)
    futures = [build(source, "answer") for _ in range(5)]

    assert len({id(future.result()) for future in futures}) == 1
    assert names == ["answer"]


def test_equal_sources_from_many_threads_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = count_compilations(monkeypatch)
    source = source_of(7)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(build_now(source, "answer").answer())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [7] * 8
    assert names == ["answer"]


def test_a_second_process_finds_it_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(3)
    build_now(source, "answer")
    forget(source)
    names = count_compilations(monkeypatch)

    assert build(source, "answer").done()
    assert build(source, "answer").result().answer() == 3
    assert names == []


def test_a_damaged_library_is_built_again(directory: pathlib.Path) -> None:
    source = source_of(4)
    build_now(source, "answer")
    forget(source)
    (path,) = directory.glob("*.so")
    path.write_bytes(path.read_bytes()[:1000])

    assert build_now(source, "answer").answer() == 4
    assert path.stat().st_size > 1000


def test_nothing_but_libraries_is_left_behind(directory: pathlib.Path) -> None:
    build_now(source_of(5), "answer")
    with pytest.raises(CompilerError):
        build_now(f"{source_of(5)} int x =", "broken")

    assert [path.suffix for path in directory.iterdir()] == [".so"]


def test_a_failure_says_what_the_compiler_said() -> None:
    with pytest.raises(CompilerError, match=r"(?s)^sum_0: .*g\+\+.* failed with status 1\n.*sum_0\.cpp:.*PLAIT_DUMP") as caught:
        build_now(f"{source_of(0)} int x =", "sum_0")

    assert len(str(caught.value).splitlines()) < 16


def test_a_failure_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    names = count_compilations(monkeypatch)
    source = f"{source_of(0)} int x ="
    for _ in range(3):
        with pytest.raises(CompilerError):
            build_now(source, "broken")

    assert names == ["broken"]


def test_a_failing_source_is_kept_on_request_only(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_DUMP", str(tmp_path / "dump"))
    source = f"{source_of(0)} int x ="
    with pytest.raises(CompilerError, match=r"Source and message: .*dump.*\.cpp and \.log"):
        build_now(source, "broken")

    (kept,) = (tmp_path / "dump").glob("broken-*.cpp")
    assert kept.read_text() == source


def test_a_missing_compiler_is_an_error_of_result_not_of_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_CXX", "/no/such/compiler")
    future = build(source_of(0), "answer")

    with pytest.raises(CompilerError, match=r"asks for '/no/such/compiler', which is not a program here\n  Install g\+\+"):
        future.result()


def test_no_compiler_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLAIT_CXX", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(CompilerError, match=r"neither g\+\+ nor clang\+\+ is on PATH"):
        compiler.toolchain()


def test_a_changed_environment_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(6)
    monkeypatch.setenv("PLAIT_CXX", "/no/such/compiler")
    with pytest.raises(CompilerError):
        build_now(source, "answer")
    monkeypatch.delenv("PLAIT_CXX")

    assert build_now(source, "answer").answer() == 6


def test_another_platform_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.platform, "machine", lambda: "riscv64")

    with pytest.raises(CompilerError, match="x86_64 or aarch64 only, this is linux on riscv64"):
        compiler.toolchain()


def test_a_compiler_may_come_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_CXX", "env g++")

    assert build_now(source_of(8), "answer").answer() == 8


def test_the_vector_width_follows_from_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    for features in (("avx2", "avx512f"), ("avx2",), ("asimd",)):
        monkeypatch.setattr(compiler, "cpu_features", lambda features=features: features)
        widths.append(compiler.simd_bytes())

    assert widths == [64, 32, 16]


def test_the_self_check_passes_with_a_working_compiler() -> None:
    assert compiler.try_compile() > 0


def test_the_self_check_explains_a_broken_compiler(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "broken++"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit\necho no licence >&2\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PLAIT_CXX", str(program))

    with pytest.raises(CompilerError, match=r"(?s)does not build a small program:.*no licence"):
        compiler.try_compile()


@pytest.mark.parametrize("trouble", ["open to others", "a file", "untrusted library"])
def test_a_refused_cache_is_replaced_by_a_private_one(
    directory: pathlib.Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(9)
    if trouble == "a file":
        directory.write_text("")
    else:
        directory.mkdir(mode=0o700)
        directory.chmod(0o777 if trouble == "open to others" else 0o700)
    if trouble == "untrusted library":
        planted = directory / f"{cache_module.library_key(source, compiler.toolchain())}.so"
        planted.write_bytes(b"evil")
        planted.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        answers = [build_now(source, "answer").answer(), build_now(source_of(10), "answer").answer()]

    assert answers == [9, 10]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "private temporary directory" in caplog.text
    if trouble == "untrusted library":
        assert planted.read_bytes() == b"evil"


def test_a_full_disk_is_survived(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(self: cache_module.LibraryCache, key: str, built: pathlib.Path) -> None:
        raise OSError(28, "No space left on device")

    shared, publish = cache_module.shared_cache().directory, cache_module.LibraryCache.publish
    monkeypatch.setattr(
        cache_module.LibraryCache, "publish", lambda self, *args: (full if self.directory == shared else publish)(self, *args)
    )

    assert build_now(source_of(11), "answer").answer() == 11
    assert "No space left" in caplog.text


def test_the_directory_stays_below_its_bound(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_now(source_of(0), "answer")
    bound = 5 * next(directory.iterdir()).stat().st_size // 2
    monkeypatch.setenv("PLAIT_CACHE_BYTES", str(bound))
    for value in range(4):
        assert build_now(source_of(value), "answer").answer() == value

    assert len(list(directory.iterdir())) == 2


def test_a_bound_of_zero_still_builds(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_CACHE_BYTES", "0")

    assert build_now(source_of(12), "answer").answer() == 12
    assert list(directory.iterdir()) == []


CHILD = "import sys; from plait.native import build_now; print(build_now(sys.stdin.read(), 'answer').answer())"


def start_python(code: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def test_two_processes_at_once_build_one_library(directory: pathlib.Path) -> None:
    source = source_of(13)
    processes = [start_python(CHILD) for _ in range(2)]
    answers = []
    writers = [threading.Thread(target=lambda p=p: answers.append(p.communicate(source))) for p in processes]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert [out for out, _ in answers] == ["13\n", "13\n"], answers
    assert len(list(directory.iterdir())) == 1


def test_a_killed_build_leaves_nothing_that_is_loaded(
    directory: pathlib.Path, slow_compiler: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(14)
    process = start_python(CHILD)
    assert process.stdin is not None
    process.stdin.write(source)
    process.stdin.close()
    sleeper = wait_for(slow_compiler)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    os.kill(sleeper, signal.SIGKILL)
    left = [path.name for path in directory.iterdir()]
    monkeypatch.delenv("PLAIT_CXX")

    assert [name[:10] for name in left] == [".building-"]
    assert build_now(source, "answer").answer() == 14


def test_a_process_that_ends_takes_its_compilers_along(directory: pathlib.Path, slow_compiler: pathlib.Path) -> None:
    code = "import time, sys, pathlib; from plait.native import build; build('int x;', 'slow')\n"
    code += f"while not pathlib.Path({str(slow_compiler)!r}).exists(): time.sleep(0.01)"
    process = start_python(code)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    assert wait_until_dead(wait_for(slow_compiler))
    assert list(directory.iterdir()) == []


def test_an_interrupt_while_waiting_ends_the_compiler(slow_compiler: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
    source = slow_source()
    future = build(source, "slow")
    sleeper = wait_for(slow_compiler)
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        future.result()
    timer.join()

    assert wait_until_dead(sleeper)
    with pytest.raises(CompilerError, match="the build was interrupted"):
        future.result()
    again = build(source, "slow")
    assert again is not future
    again.cancel()
    with pytest.raises(CompilerError, match="the build was interrupted"):
        again.result()


def test_builds_leave_no_zombies() -> None:
    build_now(source_of(15), "answer")
    with pytest.raises(CompilerError):
        build_now(f"{source_of(15)} int x =", "broken")

    states = [pathlib.Path(f"/proc/{pid}/stat").read_text() for pid in children_of(os.getpid()).split()]
    assert not [state for state in states if ") Z" in state]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_loads_and_builds(slow_compiler: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight = build(slow_source(), "slow")  # its thread is not in the child
    wait_for(slow_compiler)
    monkeypatch.delenv("PLAIT_CXX")
    loaded, fresh = source_of(16), source_of(17)
    build_now(loaded, "answer")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            right = build_now(loaded, "answer").answer() == 16 and build_now(fresh, "answer").answer() == 17
            # The source of the one in flight has no `answer`, but the child's own compiler takes it.
            right = right and in_flight.result() is not None and library.num_threads() == 1
            status = 0 if right else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    in_flight.cancel()

    assert os.waitstatus_to_exitcode(status) == 0
