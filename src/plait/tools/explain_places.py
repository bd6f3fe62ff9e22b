"""Places in source files as a report shows them: short, and the same on every machine."""

from __future__ import annotations

import os
import re

# PyG writes a module for each layer class into a temporary directory, under a random name
_GENERATED = re.compile(r"(torch_geometric\.[\w.]+)_\w{8}\.py$")
_PACKAGES = re.compile(r"[^\s\"']*/site-packages/")


def short(line: str) -> str:
    """A source line with its path from the package, or from where we are, on; "" stays.

    >>> short("/opt/env/lib/python3.11/site-packages/torch_geometric/nn/conv/gat_conv.py:330: a = x * w")
    'torch_geometric/nn/conv/gat_conv.py:330: a = x * w'
    """
    path, separator, rest = line.partition(":")
    if "/site-packages/" in path:
        return _PACKAGES.sub("", path) + separator + rest
    here = os.path.relpath(path) if path.startswith("/") else path
    name = os.path.basename(path) if here.startswith("..") else here
    return _GENERATED.sub(r"\1.py", name) + separator + rest


def without_paths(text: str) -> str:
    """`text` with installed packages named from the package on."""
    return _PACKAGES.sub("", text)
