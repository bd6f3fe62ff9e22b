"""The C++ beside this file, built at first use; where it cannot be built, the loader does without, and says so once."""

from __future__ import annotations

import ctypes
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from plait.errors import CompilerError
from plait.native import library

_log = logging.getLogger(__name__)
_HERE = pathlib.Path(__file__).parent
_INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)

# name: (type of the result, types of the arguments)
Functions = Mapping[str, tuple[Any, tuple[Any, ...]]]


def load(file: str, functions: Functions, *, instead: str) -> ctypes.CDLL | None:
    """The library of a file, with the types of its functions set; None if it cannot be built.

    instead: what happens without it, for the warning.
    """
    try:
        native = library.build_now(read(file), pathlib.Path(file).stem)
    except CompilerError as error:
        _log.warning("%s\n  %s", error, instead)
        return None
    for name, (result, arguments) in functions.items():
        function = getattr(native, name)
        function.restype, function.argtypes = result, arguments
    return native


def read(file: str) -> str:
    """A file with the ones it includes, each once, in their places: a library is built, and known, by one text.

    >>> "struct HashTable" in read("sampler.cpp")
    True
    """
    return _expanded(file, set())


def _expanded(file: str, seen: set[str]) -> str:
    seen.add(file)

    def included(match: re.Match[str]) -> str:
        return "" if match[1] in seen else _expanded(match[1], seen)

    return _INCLUDE.sub(included, (_HERE / file).read_text().replace("#pragma once\n", ""))
