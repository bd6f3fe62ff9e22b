"""Work done ahead by threads: results in order, a bounded number of them, errors where they belong, an end at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

Result = TypeVar("Result")
Tool = TypeVar("Tool")

_JOIN_S = 5.0  # a thread ends after the batch it is at; one that hangs in a file system is left behind


def run_ahead(
    num_tasks: int,
    work: Callable[[Tool, int], Result],
    tool: Callable[[], AbstractContextManager[Tool]],
    *,
    num_threads: int,
    depth: int,
) -> Iterator[Result]:
    """work(tool, 0), work(tool, 1), ... in this order, computed by threads up to `depth` tasks ahead of the caller.

    tool: what a thread needs for itself (a sampler), opened once by every thread. num_threads 0: everything happens in the
    calling thread, when it is asked for. An error of a task is raised when its turn comes, the tasks before it are delivered
    first. Closing the iterator, or an exception in the caller such as Ctrl-C, ends the threads.
    """
    if num_threads == 0:
        with tool() as own:
            for number in range(num_tasks):
                yield work(own, number)
        return
    ahead = _Ahead(num_tasks, work, tool, max(depth, 1))
    threads = [
        threading.Thread(target=ahead.run, name=f"plait-loader-{i}", daemon=True) for i in range(min(num_threads, num_tasks))
    ]
    try:
        for thread in threads:
            thread.start()
        for number in range(num_tasks):
            yield ahead.take(number)
    finally:
        ahead.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join(_JOIN_S)


class _Ahead(Generic[Tool, Result]):
    """What the threads and the caller share, under one lock."""

    def __init__(
        self,
        num_tasks: int,
        work: Callable[[Tool, int], Result],
        tool: Callable[[], AbstractContextManager[Tool]],
        depth: int,
    ) -> None:
        self._num_tasks, self._work, self._tool, self._depth = num_tasks, work, tool, depth
        self._changed = threading.Condition()
        self._next = 0  # the first task that no thread has taken
        self._delivered = 0
        self._done: dict[int, Result] = {}
        self._failed: dict[int, BaseException] = {}
        self._stopped = False

    def run(self) -> None:
        """A thread: takes tasks until there are none, or one failed, or the caller is gone."""
        number = None
        try:
            with self._tool() as own:
                while (number := self._claim()) is not None:
                    self._keep(number, self._work(own, number))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller
            self._fail(number, error)

    def take(self, number: int) -> Result:
        """Wait for the result of a task. Raises what the task raised."""
        with self._changed:
            while number not in self._done and number not in self._failed:
                self._changed.wait()
            error = self._failed.pop(number, None)
            if error is not None:
                raise error
            self._delivered = number + 1
            self._changed.notify_all()
            return self._done.pop(number)

    def stop(self) -> None:
        """Tell the threads to end, and drop what nobody will ask for."""
        with self._changed:
            self._stopped = True
            self._done.clear()
            self._failed.clear()
            self._changed.notify_all()

    def _claim(self) -> int | None:
        """The next task, once it is at most `depth` ahead of the caller; None if there is no more to do."""
        with self._changed:
            while not self._stopped and self._next < self._num_tasks and self._next >= self._delivered + self._depth:
                self._changed.wait()
            if self._stopped or self._next >= self._num_tasks:
                return None
            self._next += 1
            return self._next - 1

    def _keep(self, number: int, result: Result) -> None:
        with self._changed:
            if not self._stopped:
                self._done[number] = result
                self._changed.notify_all()

    def _fail(self, number: int | None, error: BaseException) -> None:
        """Keep the error for the caller; tasks that no thread has taken yet are not begun."""
        with self._changed:
            if number is None:  # the thread's tool could not be opened: the task it would have taken has failed
                number = self._next
            self._failed[number] = error
            self._num_tasks = min(self._num_tasks, self._next)
            self._changed.notify_all()
