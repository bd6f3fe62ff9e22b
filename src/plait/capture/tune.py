"""Measures what `plait.costs.Costs` holds, with plait's own kernels: a few seconds, once per machine."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils._python_dispatch import _disable_current_modes

from plait import costs
from plait.codegen.kernel import Kernel, compile_programs
from plait.config import environment
from plait.costs import Costs
from plait.graph import Ordering
from plait.ir import ops
from plait.ir.program import Builder, Input, Output, Program, Space, Type

FILE = "costs.json"  # in the cache directory

log = logging.getLogger("plait")

WIDTHS = (4, 16, 64, 256)  # float32: rows of 16 bytes to 1 KiB
TABLE_BYTES = (1 << 18, 1 << 22, 1 << 25, 1 << 28)  # of a cache near, of one far, and of none
DEGREE = 16
GATHERED_BYTES = 1 << 25  # per measurement
MAX_EDGES = 1 << 19
REPEATS = 3
PRODUCT_SIZE = 512


def machine_costs() -> Costs:
    """What was measured on this machine before, or is measured now and stored: one file, whatever the number of threads, since
    another order of a sum gives other last bits. Raises CompilerError where no kernel can be built."""
    return _costs(environment().cache_dir / FILE)


@functools.cache
def _costs(path: pathlib.Path) -> Costs:
    found = costs.load(path)
    if found is not None:
        return found
    if not _can_store(path):
        return costs.BY_BYTES
    found = measure()
    try:
        costs.store(path, found, overwrite=False)
    except FileExistsError:  # another process was faster, or the file is broken
        return costs.load(path) or remeasure()
    return found


def _can_store(path: pathlib.Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        log.debug("costs are not measured: %s", error)
        return False
    return os.access(path.parent, os.W_OK)


def remeasure() -> Costs:
    """Measures anew and stores the result. Raises CompilerError (no kernel can be built) or OSError (nothing can be stored)."""
    found = measure()
    costs.store(environment().cache_dir / FILE, found)
    _costs.cache_clear()
    return found


def measure() -> Costs:
    """Takes a few seconds and 300 MB. Raises CompilerError where no kernel can be built.

    On one thread, in time of the processor: what counts is how costs compare, and another process must not change that.
    """
    with _disable_current_modes(), torch.no_grad(), _one_thread():
        kernels = compile_programs([neighbour_sum(width) for width in WIDTHS])
        kernels[0].wait()
        memory = torch.ones(TABLE_BYTES[-1] // 4)
        gather_s = tuple(
            tuple(_gather_seconds(kernel, memory, width, size) for kernel, width in zip(kernels, WIDTHS, strict=True))
            for size in TABLE_BYTES
        )
        a, b = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE), torch.ones(PRODUCT_SIZE, PRODUCT_SIZE)
        product_s = least_seconds(lambda: torch.mm(a, b))
        half = len(memory) // 2
        copy_s = least_seconds(lambda: memory[:half].copy_(memory[half:]))
    return Costs(
        row_bytes=tuple(4 * width for width in WIDTHS),
        table_bytes=TABLE_BYTES,
        gather_s=gather_s,
        product_flops=2.0 * PRODUCT_SIZE**3 / product_s,
        stream_bytes=4.0 * 2 * half / copy_s,
    )


def neighbour_sum(width: int) -> Program:
    """y[i] = sum of x[j] over the edges j -> i."""
    builder = Builder()
    row = builder.node(ops.LoadAt(0, 0), (), Type(Space.EDGE, (width,), torch.float32))
    total = builder.node(ops.SegmentReduce(ops.Reduce.SUM, 0.0, False), (row,), Type(Space.ROW, (width,), torch.float32))
    source = Input("x", (width,), torch.float32, "at", 0)
    return Program(f"tune_{width}", True, ("src",), (source,), (Output("y", total),))


def _gather_seconds(kernel: Kernel, memory: torch.Tensor, width: int, table_bytes: int) -> float:
    """Per edge, of a graph whose sources are drawn evenly from a table of that size."""
    num_sources = table_bytes // (4 * width)
    num_rows = min(MAX_EDGES, GATHERED_BYTES // (4 * width)) // DEGREE
    num_edges = num_rows * DEGREE
    generator = torch.Generator().manual_seed(0)
    indptr = torch.arange(num_rows + 1) * DEGREE
    indices = torch.randint(num_sources, (num_edges,), generator=generator, dtype=torch.int32)
    graph = Ordering(num_edges, num_rows, indptr, None, (indices,), True)
    table = memory[: num_sources * width].view(num_sources, width)
    return least_seconds(lambda: kernel([table], graph, num_rows, num_edges)) / num_edges


def least_seconds(run: Callable[[], object]) -> float:
    """Of a few runs, after one that warms up."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.thread_time()
        run()
        seconds.append(time.thread_time() - start)
    return min(seconds)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
