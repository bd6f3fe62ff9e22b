"""Built libraries on disk: private, checked before they are loaded, bounded, safe under several processes and sudden deaths.

A library is one file, `<key>.so`: the shared object followed by a trailer of 40 bytes, a magic word and the SHA-256 of key and
object (the loader of the system does not look behind an ELF file's end). One file means that one rename makes it appear whole.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from plait.config import environment
from plait.errors import LibraryCacheError
from plait.native.compiler import Toolchain

_log = logging.getLogger(__name__)

_MAGIC = b"plaitso1"
_TRAILER_BYTES = len(_MAGIC) + 32
_LIBRARY = re.compile(r"[0-9a-f]{64}\.so")
_SCRATCH_PREFIX = ".building-"
# A build takes seconds; what is older than this was left behind by a process that was killed.
_SCRATCH_MAX_AGE_S = 3600.0


def library_key(source: str, chain: Toolchain) -> str:
    """SHA-256, in hexadecimal, of everything the bytes of a library depend on."""
    digest = hashlib.sha256()
    for part in (_plait_version(), chain.identity(), source):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _plait_version() -> str:
    try:
        return importlib.metadata.version("plait")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True, slots=True)
class LibraryCache:
    """directory: where the libraries are, checked when it was opened; limit_bytes: what `trim` leaves at most."""

    directory: pathlib.Path
    limit_bytes: int

    @staticmethod
    def open(directory: pathlib.Path, limit_bytes: int) -> LibraryCache:
        """The cache in `directory`, created with mode 0700 if missing. Raises LibraryCacheError if it is not safe or usable."""
        directory = directory.absolute()
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
            status = directory.stat()
        except OSError as error:
            raise LibraryCacheError(f"kernel cache: {directory} cannot be used: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise LibraryCacheError(f"kernel cache: {directory} is not a directory")
        _check_private(directory, status)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise LibraryCacheError(f"kernel cache: {directory} is not writable")
        return LibraryCache(directory, limit_bytes)

    def find(self, key: str) -> pathlib.Path | None:
        """The library with this key, checked byte by byte and marked as used now; None if missing or broken (and removed).

        Raises LibraryCacheError for a file somebody else owns or can write to.
        """
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LibraryCacheError(f"kernel cache: {path} cannot be read: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise LibraryCacheError(f"kernel cache: {path} is not a file")
            _check_private(path, status)
            data = file.read()
        if data[-_TRAILER_BYTES:] != _trailer(key, data[:-_TRAILER_BYTES]):
            _log.info("kernel cache: %s is damaged and is built again", path)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    @contextlib.contextmanager
    def scratch(self) -> Iterator[pathlib.Path]:
        """A directory of one's own on the same file system, gone afterwards. OSError if there is no room for one."""
        folder = pathlib.Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=self.directory))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def seal(self, key: str, built: pathlib.Path) -> None:
        """Write key and checksum behind a built library, and all of it to the disk."""
        with built.open("r+b") as file:
            file.write(_trailer(key, file.read()))
            file.flush()
            os.fsync(file.fileno())
        built.chmod(0o700)

    def publish(self, key: str, sealed: pathlib.Path) -> pathlib.Path:
        """Move a sealed library (from `scratch`) to its place, in one step that other processes see whole or not at all."""
        path = self._path(key)
        os.replace(sealed, path)
        return path

    def trim(self) -> None:
        """Remove the least recently used libraries above the bound, and what killed builds left behind."""
        found = self._libraries()
        total = sum(status.st_size for _, status in found)
        for path, status in sorted(found, key=lambda item: item[1].st_mtime_ns):
            if total <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= status.st_size
        self._sweep(time.time() - _SCRATCH_MAX_AGE_S)

    def clear(self) -> int:
        """Remove every library and every unfinished build; the number of bytes that were freed."""
        freed = 0
        for path, status in self._libraries():
            path.unlink(missing_ok=True)
            freed += status.st_size
        self._sweep(time.time() + _SCRATCH_MAX_AGE_S)
        return freed

    def _path(self, key: str) -> pathlib.Path:
        return self.directory / f"{key}.so"

    def _libraries(self) -> list[tuple[pathlib.Path, os.stat_result]]:
        """The libraries and their status; another process may remove one at any time."""
        found: list[tuple[pathlib.Path, os.stat_result]] = []
        for entry in os.scandir(self.directory):
            if not _LIBRARY.fullmatch(entry.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                found.append((pathlib.Path(entry.path), entry.stat(follow_symlinks=False)))
        return found

    def _sweep(self, before_s: float) -> None:
        """Remove the scratch directories last written to before this time."""
        for entry in os.scandir(self.directory):
            if not entry.name.startswith(_SCRATCH_PREFIX):
                continue
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < before_s:
                    shutil.rmtree(entry.path, ignore_errors=True)


def _trailer(key: str, data: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(key.encode() + data).digest()


def _check_private(path: pathlib.Path, status: os.stat_result) -> None:
    """Loading a library runs its code: refuse what anybody else could have written."""
    if status.st_uid != os.geteuid():
        raise LibraryCacheError(
            f"kernel cache: {path} belongs to user {status.st_uid}, not to you ({os.geteuid()}), and is not loaded\n"
            "  Set PLAIT_CACHE_DIR to a directory of your own."
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LibraryCacheError(
            f"kernel cache: {path} can be written to by others (mode {stat.S_IMODE(status.st_mode):04o}) and is not loaded\n"
            f"  Run `chmod go-w {path}`, or set PLAIT_CACHE_DIR to a directory of your own."
        )


def shared_cache() -> LibraryCache:
    """The cache the environment names now. Raises LibraryCacheError if it is not safe or not usable."""
    env = environment()
    return LibraryCache.open(env.cache_dir, env.cache_bytes)


def clear() -> int:
    """Empty the cache the environment names; the number of bytes that were freed."""
    return shared_cache().clear()


_private: dict[int, LibraryCache] = {}  # by process id: a forked child makes its own


def private_cache() -> LibraryCache:
    """A cache in a temporary directory of this process, removed when it ends: for when the shared one cannot be used."""
    found = _private.get(os.getpid())
    if found is None:
        found = LibraryCache.open(pathlib.Path(tempfile.mkdtemp(prefix="plait-")), environment().cache_bytes)
        _private[os.getpid()] = found
    return found


@atexit.register
def _remove_private() -> None:
    found = _private.pop(os.getpid(), None)
    if found is not None:
        shutil.rmtree(found.directory, ignore_errors=True)
