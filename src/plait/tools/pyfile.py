"""FILE.py:FUNCTION, the way a user names code of their own on the command line."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from plait.errors import OptionError


def load_function(target: str) -> Callable[..., Any]:
    """The function a target names; the file is run as a module of its own name, its directory is searched for imports."""
    file, _, function = target.rpartition(":")
    path = pathlib.Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise OptionError(f"{target!r}: expected FILE.py:FUNCTION with a file that exists, got file {file!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # a path that ends in .py always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickle look a module up by its name
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise OptionError(f"{target!r}: {file} has no function {function!r}")
    return found  # whether it takes and gives the right things is seen when it is called
