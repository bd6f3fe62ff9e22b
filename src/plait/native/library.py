"""Build a C++ source into a loaded library, in the background, once per source.

What is loaded stays loaded: a library belongs to the process, under the key of its source. So do failures, so that a compiler
that does not work is not tried again at every step.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import pathlib
import re
import signal
import subprocess
import threading

import torch

from plait.config import environment
from plait.errors import CompilerError, LibraryCacheError
from plait.native.cache import LibraryCache, library_key, private_cache, shared_cache
from plait.native.compiler import Toolchain, toolchain

_log = logging.getLogger(__name__)

_MESSAGE_LINES = 12


class LibraryFuture:
    """A library that is being built. All callers with one source share one future.

    Never raises before `result()`, so there is one place to fall back.
    """

    def __init__(self, source: str, name: str, chain: Toolchain | None, key: str) -> None:
        self.name = name
        self.key = key
        self._source = source
        self._chain = chain
        self._pid = os.getpid()
        self._finished = threading.Event()
        self._library: ctypes.CDLL | None = None
        self._error: CompilerError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False

    def done(self) -> bool:
        """Whether `result()` returns or raises at once."""
        return self._finished.is_set()

    def result(self) -> ctypes.CDLL:
        """Wait for the library. Raises CompilerError, with the first lines of what the compiler said.

        An interrupt while waiting (Ctrl-C) ends the compiler; the next `build` of the source starts again.
        """
        if not self.done() and self._pid != os.getpid():
            # The thread that builds it lives in the parent of this forked process.
            return build(self._source, self.name).result()
        try:
            self._finished.wait()
        except BaseException:
            self.cancel()
            raise
        if self._library is not None:
            return self._library
        # A new exception for every caller: raising one object twice would join their tracebacks.
        assert self._error is not None
        raise CompilerError(*self._error.args) from self._error.__cause__

    def cancel(self) -> None:
        """End the compiler, if it runs; whoever waits gets a CompilerError, and the next `build` starts again."""
        with _lock:
            self._cancelled = True
            if _futures.get(self.key) is self and not self.done():
                del _futures[self.key]
            process = self._process
            if process is not None and process.poll() is None:
                # Its whole process group: the driver's children are what takes the time.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _start(self) -> None:
        """Load it from disk now if it is there, or start a thread that builds it."""
        if self._chain is None:
            return
        try:
            library = self._load_from_disk()
            if library is not None:
                self._finish(library)
                return
            threading.Thread(target=self._run, name=f"plait-build-{self.name}", daemon=True).start()
        except Exception as error:  # noqa: BLE001 - it is raised again by `result`
            self._fail(error)
        except BaseException:
            self.cancel()
            self._fail(CompilerError(f"{self.name}: the build was interrupted"))
            raise

    def _run(self) -> None:
        """The builder thread: whatever happens, whoever waits is told."""
        try:
            with _slots:
                self._finish(self._build())
        except BaseException as error:  # noqa: BLE001 - it is raised again in every thread that waits
            self._fail(error)

    def _finish(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._finished.set()

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, CompilerError):
            _log.debug("building %s failed", self.name, exc_info=error)
            cause, error = error, CompilerError(f"{self.name}: building it failed: {type(error).__name__}: {error}")
            error.__cause__ = cause
        self._error = error
        self._finished.set()

    def _load_from_disk(self) -> ctypes.CDLL | None:
        """The library as it was built before; None if it is not there, damaged, or does not load."""
        try:
            path = shared_cache().find(self.key)
        except LibraryCacheError as error:
            _warn_once(error)
            path = private_cache().find(self.key)
        if path is None:
            return None
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            # Another process evicted it in this moment, or it needs something that is gone (an OpenMP runtime, say).
            _log.debug("%s: the built library does not load (%s), it is built again", self.name, error)
            return None

    def _build(self) -> ctypes.CDLL:
        """Compile into the shared cache, or into the private one if the shared one refuses."""
        try:
            cache = shared_cache()
            cache.find(self.key)  # a file there that must not be loaded must not be replaced either
            return self._build_in(cache)
        except CompilerError:
            raise
        except OSError as error:  # not safe, not writable, full, or mounted without the right to execute
            _warn_once(error)
            return self._build_in(private_cache())

    def _build_in(self, cache: LibraryCache) -> ctypes.CDLL:
        with cache.scratch() as folder:
            built = self._compile(folder)
            cache.seal(self.key, built)
            # Loaded before others see it: from then on it may be evicted at any time.
            library = ctypes.CDLL(str(built))
            cache.publish(self.key, built)
        with contextlib.suppress(OSError):
            cache.trim()
        return library

    def _compile(self, folder: pathlib.Path) -> pathlib.Path:
        """Run the compiler in `folder`; the shared object. Raises CompilerError."""
        assert self._chain is not None
        source, built = folder / f"{_file_name(self.name)}.cpp", folder / "built.so"
        source.write_text(self._source)
        # Its temporary files go to the same folder, to be removed with it whatever happens to this process.
        setting = ("/usr/bin/env", f"TMPDIR={folder}", "LC_ALL=C")
        command = [*setting, *self._chain.command, *self._chain.flags, source.name, "-o", built.name]
        with _lock:
            if self._cancelled:
                raise CompilerError(f"{self.name}: the build was interrupted")
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a group of its own, to be ended as one
            )
            self._process = process
        try:
            _, message = process.communicate()
        finally:
            with _lock:
                self._process = None
        if self._cancelled:
            raise CompilerError(f"{self.name}: the build was interrupted")
        if process.returncode == 0:
            return built
        raise CompilerError(self._explain(process.returncode, message.decode(errors="replace")))

    def _explain(self, status: int, message: str) -> str:
        """What to tell the user; with PLAIT_DUMP, source and message are kept to read."""
        assert self._chain is not None
        dump = environment().dump
        lines = message.splitlines()[:_MESSAGE_LINES]
        advice = "Set PLAIT_DUMP=dir to keep the source and the whole message."
        if dump is not None:
            stem = f"{_file_name(self.name)}-{self.key[:12]}"
            dump.mkdir(parents=True, exist_ok=True)
            (dump / f"{stem}.cpp").write_text(self._source)
            (dump / f"{stem}.log").write_text(message)
            advice = f"Source and message: {dump / stem}.cpp and .log"
        head = f"{self.name}: {self._chain.command[0]} ({self._chain.version}) failed with status {status}"
        return "\n  ".join([head, *lines, advice])


def build(source: str, name: str) -> LibraryFuture:
    """Start to build a C++ source with a plain C interface, or find it in memory or on disk. Never raises; `result()` does."""
    try:
        chain = toolchain()
    except CompilerError as error:
        future = LibraryFuture(source, name, None, "")
        future._fail(error)
        return future
    key = library_key(source, chain)
    with _lock:
        known = _futures.get(key)
        if known is not None:
            return known
        future = LibraryFuture(source, name, chain, key)
        _futures[key] = future
    future._start()
    return future


def build_now(source: str, name: str) -> ctypes.CDLL:
    """`build` and wait. Raises CompilerError."""
    return build(source, name).result()


def num_threads() -> int:
    """The threads native code may use: torch's number; 1 in a forked child, which has OpenMP's state without its threads."""
    return 1 if _in_forked_child else torch.get_num_threads()


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:80] or "kernel"


def _warn_once(error: OSError) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    _log.warning("%s\n  Kernels are built into a private temporary directory, again in every process.", error)


_lock = threading.RLock()  # re-entrant: a signal handler or a finalizer may build while this thread holds it
_slots = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))  # compilers at once
_futures: dict[str, LibraryFuture] = {}
_warned = False
_in_forked_child = False


def _after_fork_in_child() -> None:
    """What other threads held or were building stayed in the parent."""
    global _lock, _slots, _in_forked_child
    _lock = threading.RLock()
    _slots = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
    for key in [key for key, future in _futures.items() if not future.done()]:
        del _futures[key]
    _in_forked_child = True


os.register_at_fork(after_in_child=_after_fork_in_child)


@atexit.register
def _end_compilers() -> None:
    """A process that ends leaves no compiler behind, and no half-built file."""
    unfinished = [future for future in _futures.values() if not future.done()]
    for future in unfinished:
        future.cancel()
    for future in unfinished:
        future._finished.wait(timeout=5)
