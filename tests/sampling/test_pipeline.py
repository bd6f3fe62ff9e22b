"""Work ahead by threads: order, back-pressure, errors, an end at any time."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from plait.sampling.pipeline import run_ahead


@contextlib.contextmanager
def no_tool() -> Iterator[None]:
    yield None


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("plait-loader")]


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_results_come_in_order(num_threads: int) -> None:
    def work(_: None, number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    found = list(run_ahead(20, work, no_tool, num_threads=num_threads, depth=5))

    assert found == [number * number for number in range(20)]


def test_threads_wait_for_a_slow_caller() -> None:
    begun: list[int] = []

    def work(_: None, number: int) -> int:
        begun.append(number)
        return number

    results = run_ahead(100, work, no_tool, num_threads=3, depth=4)
    next(results)
    time.sleep(0.1)

    assert sorted(begun) == [0, 1, 2, 3, 4]  # one delivered, four ahead of it
    results.close()  # type: ignore[attr-defined]


def test_an_error_comes_at_its_turn_with_the_traceback_of_its_thread() -> None:
    def work(_: None, number: int) -> int:
        if number == 3:
            raise ZeroDivisionError("in the middle")
        return number

    results = run_ahead(50, work, no_tool, num_threads=2, depth=8)
    before = [next(results) for _ in range(3)]
    with pytest.raises(ZeroDivisionError, match="in the middle") as caught:
        next(results)

    assert before == [0, 1, 2]
    assert any(entry.name == "work" for entry in caught.traceback)
    assert loader_threads() == []


def test_a_thread_without_its_tool_is_an_error_and_not_a_wait() -> None:
    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        raise MemoryError("no memory for a sampler")
        yield None

    with pytest.raises(MemoryError, match="no memory for a sampler"):
        list(run_ahead(5, lambda _, number: number, broken, num_threads=2, depth=2))


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_threads_end_when_the_caller_does(how: str) -> None:
    results = run_ahead(1000, lambda _, number: number, no_tool, num_threads=4, depth=4)
    next(results)
    if how == "close":
        results.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]

    assert loader_threads() == []


SLEEPER = """
import contextlib, signal, time
from plait.sampling.pipeline import run_ahead

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it

def work(_, number):
    time.sleep(0.05)
    return number

for number in run_ahead(10_000, work, contextlib.nullcontext, num_threads=2, depth=2):
    print(number, flush=True)
"""


def test_an_interrupt_ends_the_process_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, said = process.communicate(timeout=20)

    assert time.monotonic() - start < 5
    assert said.rstrip().endswith("KeyboardInterrupt")


def test_nothing_to_do() -> None:
    assert list(run_ahead(0, lambda _, number: number, no_tool, num_threads=2, depth=2)) == []
