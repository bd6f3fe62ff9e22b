"""plait: a compiler for graph neural networks. `model = torch.compile(model, backend="plait")`.

Names are loaded when they are first asked for: `plait --help` does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait import loader
    from plait.capture.compile import clear_cache, compile
    from plait.config import Options
    from plait.tools.explain import Explanation, explain

__all__ = ["Explanation", "Options", "clear_cache", "compile", "explain", "loader"]

_HOMES = {
    "Explanation": "plait.tools.explain",
    "Options": "plait.config",
    "clear_cache": "plait.capture.compile",
    "compile": "plait.capture.compile",
    "explain": "plait.tools.explain",
}


def __getattr__(name: str) -> Any:
    if name == "loader":
        return importlib.import_module("plait.loader")
    if name not in _HOMES:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
