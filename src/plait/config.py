"""Options of a compile, and the only reader of the environment."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from dataclasses import dataclass
from typing import Any

from plait.errors import OptionError

RESTS = ("eager", "inductor")
ORDERS = ("auto", "as_written", "first", "behind")
EDGE_SCALARS = ("recomputed", "cached", "auto")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `torch.compile(model, backend="plait", options={...})` and `plait.compile(model, ...)` accept.

    rest: who runs what is not fused, "eager" or "inductor".
    order: where products with weights stand to propagations, A (X W) or (A X) W: "auto" (what costs less on this machine),
    "as_written", "first" (products before), "behind".
    memory_budget: the most a training step may hold at once beyond its inputs, parameters and the graph's structure: bytes
    (an int, 1 or more), or a share of what the un-compiled model would hold (a float). The backward then computes again as much
    as it must; None keeps what is fastest and no value per edge and feature but what many programs share. Predicted for
    the sizes of the first call.
    edge_scalars: values of few numbers per edge that the backward reads, such as attention weights: "recomputed", "cached" by
    the forward, or "auto" (what is predicted to cost less on this machine). A memory budget may give up what is cached.
    stop_after: name of the last graph pass to run, for debugging; None runs them all.
    strict: a fallback is an error; None means what PLAIT_STRICT says.
    """

    rest: str = "eager"
    order: str = "auto"
    memory_budget: int | float | None = None
    edge_scalars: str = "recomputed"
    stop_after: str | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        for name, valid in (("rest", RESTS), ("order", ORDERS), ("edge_scalars", EDGE_SCALARS)):
            given = getattr(self, name)
            if given not in valid:
                raise OptionError(f"{name}: expected one of {', '.join(map(repr, valid))}, got {given!r}")
        budget = self.memory_budget
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0):
            raise OptionError(f"memory_budget: expected bytes (an int) or a share of eager's peak (a float), got {budget!r}")

    def is_strict(self) -> bool:
        """Whether a fallback is an error."""
        return environment().strict if self.strict is None else self.strict

    @staticmethod
    def parse(given: dict[str, Any]) -> Options:
        """The options a user gave by name; a name that does not exist is an error that lists the valid ones."""
        valid = [field.name for field in dataclasses.fields(Options)]
        unknown = sorted(set(given) - set(valid))
        if unknown:
            raise OptionError(f"unknown option {', '.join(map(repr, unknown))}; valid options: {', '.join(valid)}")
        return Options(**given)


class Environment:
    """What the environment says. Each is read when it is asked for, so that a test or a notebook can change it.

    PLAIT_STRICT=1           fallbacks are errors
    PLAIT_DUMP=dir           write the graph after each pass, the programs and the sources there
    PLAIT_CACHE_DIR=dir      built kernels (default: $XDG_CACHE_HOME/plait, else ~/.cache/plait)
    PLAIT_CACHE_BYTES=n      bound of that directory (default 256 MiB)
    PLAIT_GRAPH_BYTES=n      bound of the structure kept between steps, in memory (default 1 GiB; the newest graph always stays)
    PLAIT_POOL_BYTES=n       bound of the idle buffers kept for reuse (default 1 GiB); 0: all tensors are PyTorch's own
    PLAIT_CXX=path           C++ compiler (default: $CXX, g++, clang++)
    PLAIT_DYNAMO_FLAGS=0     leave torch._dynamo.config alone when the backend is loaded
    """

    @property
    def strict(self) -> bool:
        return os.environ.get("PLAIT_STRICT", "0") not in ("", "0")

    @property
    def dump(self) -> pathlib.Path | None:
        name = os.environ.get("PLAIT_DUMP")
        return pathlib.Path(name) if name else None

    @property
    def cache_dir(self) -> pathlib.Path:
        name = os.environ.get("PLAIT_CACHE_DIR")
        if name:
            return pathlib.Path(name)
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return pathlib.Path(base, "plait")

    @property
    def cache_bytes(self) -> int:
        return _bytes("PLAIT_CACHE_BYTES", 256 << 20)

    @property
    def graph_bytes(self) -> int:
        return _bytes("PLAIT_GRAPH_BYTES", 1 << 30)

    @property
    def pool_bytes(self) -> int:
        return _bytes("PLAIT_POOL_BYTES", 1 << 30)

    @property
    def compiler(self) -> str | None:
        return os.environ.get("PLAIT_CXX") or os.environ.get("CXX")

    @property
    def dynamo_flags(self) -> bool:
        return os.environ.get("PLAIT_DYNAMO_FLAGS", "1") != "0"


_ENVIRONMENT = Environment()


def environment() -> Environment:
    """The environment as it is now."""
    return _ENVIRONMENT


def _bytes(name: str, default: int) -> int:
    text = os.environ.get(name)
    if not text:
        return default
    if not text.isdigit():
        raise OptionError(f"{name}: expected a number of bytes, got {text!r}")
    return int(text)
