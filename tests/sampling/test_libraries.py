"""The loader's C++: files put together, types of functions set, a warning where it cannot be built."""

from __future__ import annotations

import ctypes
import logging
import pathlib

import pytest

from plait.sampling import libraries


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where files are looked for."""
    monkeypatch.setattr(libraries, "_HERE", tmp_path)
    return tmp_path


def test_included_files_are_put_in_their_places_once(folder: pathlib.Path) -> None:
    (folder / "a.h").write_text("#pragma once\nint a() { return 1; }\n")
    (folder / "b.h").write_text('#pragma once\n#include "a.h"\nint b() { return a() + 1; }\n')
    (folder / "c.cpp").write_text('#include <vector>\n#include "a.h"\n#include "b.h"\nextern "C" long c() { return b(); }\n')

    assert libraries.read("c.cpp").splitlines() == [
        "#include <vector>",
        "int a() { return 1; }",
        "int b() { return a() + 1; }",
        'extern "C" long c() { return b(); }',
    ]
    native = libraries.load("c.cpp", {"c": (ctypes.c_long, ())}, instead="")
    assert native is not None
    assert native.c() == 2


def test_what_cannot_be_built_is_said(folder: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "wrong.cpp").write_text("this is not C++\n")
    with caplog.at_level(logging.WARNING):
        assert libraries.load("wrong.cpp", {}, instead="Something slower runs.") is None

    assert "wrong.cpp:1" in caplog.text
    assert "Something slower runs." in caplog.text
