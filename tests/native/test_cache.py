"""The directory of built libraries: private, checked, bounded, whole after any death."""

import dataclasses
import os
import pathlib
import stat
import time

import pytest

from plait.errors import LibraryCacheError
from plait.native import cache as cache_module
from plait.native.cache import LibraryCache, library_key
from plait.native.compiler import Toolchain

CHAIN = Toolchain(("/usr/bin/g++",), "g++ 12", ("-O3",), ("avx2",))
KEY = "a" * 64
OTHER_KEY = "b" * 64


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "kernels"


@pytest.fixture
def cache(directory: pathlib.Path) -> LibraryCache:
    return LibraryCache.open(directory, 1 << 20)


def publish(cache: LibraryCache, key: str, data: bytes, used_s: float | None = None) -> pathlib.Path:
    with cache.scratch() as folder:
        built = folder / "built.so"
        built.write_bytes(data)
        cache.seal(key, built)
        path = cache.publish(key, built)
    if used_s is not None:
        os.utime(path, (used_s, used_s))
    return path


def library_names(cache: LibraryCache) -> list[str]:
    return sorted(path.name for path in cache.directory.iterdir())


def test_directory_is_created_private(directory: pathlib.Path) -> None:
    LibraryCache.open(directory / "deep", 0)

    assert stat.S_IMODE((directory / "deep").stat().st_mode) == 0o700


def test_what_was_published_is_found(cache: LibraryCache) -> None:
    path = publish(cache, KEY, b"library")

    assert cache.find(KEY) == path
    assert path.read_bytes().startswith(b"library")


def test_what_was_not_published_is_not_found(cache: LibraryCache) -> None:
    assert cache.find(KEY) is None


def test_scratch_directories_are_removed(cache: LibraryCache) -> None:
    publish(cache, KEY, b"library")

    assert library_names(cache) == [f"{KEY}.so"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "wrong byte", "longer", "other key"])
def test_a_damaged_library_is_not_loaded_and_removed(cache: LibraryCache, damage: str) -> None:
    path = publish(cache, KEY, b"some library" * 100)
    data = path.read_bytes()
    broken = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "wrong byte": data[:50] + bytes([data[50] ^ 1]) + data[51:],
        "longer": data + b"\0",
        "other key": publish(cache, OTHER_KEY, b"another").read_bytes(),
    }
    path.write_bytes(broken[damage])

    assert cache.find(KEY) is None
    assert not path.exists()


def test_a_file_of_somebody_else_is_not_loaded(cache: LibraryCache, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cache, KEY, b"library")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    with pytest.raises(LibraryCacheError, match=r"belongs to user \d+, not to you \(12345\), and is not loaded"):
        cache.find(KEY)


def test_a_directory_of_somebody_else_is_not_used(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    with pytest.raises(LibraryCacheError, match="Set PLAIT_CACHE_DIR to a directory of your own"):
        LibraryCache.open(directory, 0)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_directory_others_can_write_to_is_not_used(directory: pathlib.Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)

    with pytest.raises(LibraryCacheError, match=f"can be written to by others .mode {mode:04o}."):
        LibraryCache.open(directory, 0)


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_file_others_can_write_to_is_not_loaded(cache: LibraryCache, mode: int) -> None:
    publish(cache, KEY, b"library").chmod(mode)

    with pytest.raises(LibraryCacheError, match="chmod go-w"):
        cache.find(KEY)


def test_a_symbolic_link_is_not_followed(cache: LibraryCache, tmp_path: pathlib.Path) -> None:
    elsewhere = tmp_path / "elsewhere.so"
    publish(cache, KEY, b"library").rename(elsewhere)
    (cache.directory / f"{KEY}.so").symlink_to(elsewhere)

    with pytest.raises(LibraryCacheError, match="cannot be read"):
        cache.find(KEY)


def test_a_file_in_place_of_the_directory_is_an_error(directory: pathlib.Path) -> None:
    directory.write_text("")

    with pytest.raises(LibraryCacheError, match="is not a directory"):
        LibraryCache.open(directory, 0)


def test_an_unwritable_directory_is_an_error(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)  # root can write anywhere

    with pytest.raises(LibraryCacheError, match="is not writable"):
        LibraryCache.open(directory, 0)


def test_a_directory_that_cannot_be_made_is_an_error(directory: pathlib.Path) -> None:
    directory.write_text("")

    with pytest.raises(LibraryCacheError, match="cannot be used"):
        LibraryCache.open(directory / "below", 0)


def test_trim_removes_the_least_recently_used(cache: LibraryCache) -> None:
    now_s = time.time()
    keys = [f"{number:064x}" for number in range(4)]
    for number, key in enumerate(keys):
        publish(cache, key, bytes(1000), used_s=now_s - 100 + number)
    assert cache.find(keys[0]) is not None  # used now
    size = (cache.directory / f"{keys[0]}.so").stat().st_size

    dataclasses.replace(cache, limit_bytes=2 * size).trim()

    assert library_names(cache) == [f"{keys[0]}.so", f"{keys[3]}.so"]


def test_a_bound_of_zero_keeps_nothing(cache: LibraryCache) -> None:
    publish(cache, KEY, b"library")

    dataclasses.replace(cache, limit_bytes=0).trim()

    assert library_names(cache) == []


def test_trim_removes_what_killed_builds_left_long_ago(cache: LibraryCache) -> None:
    for name, age_s in ((".building-old", 7200), (".building-new", 10)):
        folder = cache.directory / name
        folder.mkdir()
        (folder / "built.so").write_bytes(b"half")
        os.utime(folder, (time.time() - age_s, time.time() - age_s))

    cache.trim()

    assert library_names(cache) == [".building-new"]


def test_clear_removes_libraries_and_nothing_of_the_user(cache: LibraryCache, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cache, KEY, b"library")
    (cache.directory / ".building-x").mkdir()
    (cache.directory / "notes.txt").write_text("mine")
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(cache.directory))

    freed = cache_module.clear()

    assert freed > len(b"library")
    assert library_names(cache) == ["notes.txt"]


def test_the_key_depends_on_everything_a_library_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    key = library_key("int x;", CHAIN)
    changed = [
        library_key("int y;", CHAIN),
        library_key("int x;", dataclasses.replace(CHAIN, command=("/usr/bin/clang++",))),
        library_key("int x;", dataclasses.replace(CHAIN, version="g++ 13")),
        library_key("int x;", dataclasses.replace(CHAIN, flags=("-O2",))),
        library_key("int x;", dataclasses.replace(CHAIN, features=("avx512f",))),
    ]
    monkeypatch.setattr(cache_module, "_plait_version", lambda: "0.0.1")
    changed.append(library_key("int x;", CHAIN))

    assert len({key, *changed}) == 7
