"""The pytest plugin of `pyg_tests.py`: compiles every PyG module that a test calls, and writes down how each test ended.

PYG_TESTS_ENGINE: plain, eager or plait. PYG_TESTS_RESULTS: the file that gets a line of JSON when a test begins, and when it
ends.
PYG_TESTS_MOST: how many sets of parameters of one test run, spread evenly over all; 0 for all.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

ENGINE = os.environ["PYG_TESTS_ENGINE"]
RESULTS = os.environ["PYG_TESTS_RESULTS"]
MOST = int(os.environ.get("PYG_TESTS_MOST", "0"))

_call = nn.Module.__call__
_compiled: weakref.WeakKeyDictionary[nn.Module, Callable[..., Any]] = weakref.WeakKeyDictionary()
_seen = {"depth": 0, "modules": 0}


def compiled(module: nn.Module) -> Callable[..., Any]:
    """The module's call, hooks included, through the engine."""
    if ENGINE == "plait":
        import plait

        return plait.compile(module._call_impl)
    return torch.compile(module._call_impl, backend="eager")  # type: ignore[no-any-return]


def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`Module.__call__`: what a test calls is compiled; modules inside of it run as part of it."""
    is_theirs = type(self).__module__.startswith("torch_geometric.nn") and not isinstance(self, torch.jit.ScriptModule)
    if _seen["depth"] or not is_theirs or torch._C._get_tracing_state() or torch.compiler.is_compiling():
        return _call(self, *args, **kwargs)
    run = _compiled.get(self)
    if run is None:
        run = _compiled[self] = compiled(self)
        _seen["modules"] += 1
    _seen["depth"] += 1
    try:
        return run(*args, **kwargs)
    finally:
        _seen["depth"] -= 1


if ENGINE != "plain":
    nn.Module.__call__ = call  # type: ignore[method-assign]
    # a test calls many modules of one class, and each is a compile of the same code: none is to be passed over in silence
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 4096


def write(**line: Any) -> None:
    with open(RESULTS, "a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture(autouse=True)
def fresh() -> None:
    if ENGINE != "plain":
        torch._dynamo.reset()


def fused() -> int:
    """Kernels of all captures since the last test."""
    from plait.capture.record import RECORDS

    number = sum(len(programs) for record in RECORDS for programs in record.programs.values())
    RECORDS.clear()
    return number


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = [item for group in by_test.values() for item in group[:: max(1, -(-len(group) // MOST)) if MOST else 1]]
    items[:] = kept


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    file, _, name = item.nodeid.partition("::")
    _seen.update(depth=0, modules=0)
    write(test=name, file=file, state="begins")
    _ended.clear()
    began = time.perf_counter()
    yield
    programs = fused() if ENGINE == "plait" else 0
    seconds = round(time.perf_counter() - began, 1)
    write(test=name, file=file, **_ended, modules=_seen["modules"], programs=programs, seconds=seconds)


_ended: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        message = getattr(getattr(report.longrepr, "reprcrash", None), "message", None) or str(report.longrepr)
        _ended.update(state="failed", message=message)
    elif report.skipped:
        _ended.update(state="skipped", message=str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else ""))
    else:
        _ended.setdefault("state", "passed")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        write(
            test="(import)", file=report.nodeid, state="failed", message=str(report.longrepr), modules=0, programs=0, seconds=0
        )
