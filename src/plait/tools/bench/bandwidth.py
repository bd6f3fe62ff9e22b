"""What this machine's memory gives: a copy, and the sum of randomly chosen rows, which is what a sum of neighbours reads.

The second is the ceiling of every fused kernel; a kernel's own rate is shown as a share of it.
"""

from __future__ import annotations

import ctypes
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plait import native
from plait.errors import CompilerError

log = logging.getLogger(__name__)

ROWS, WIDTH, DRAWS = 400_000, 128, 2_000_000  # rows of 512 bytes; the table of 205 MB fits no private cache
REPEATS = 5

_SOURCE = """
// gather bandwidth: the sum of the rows index[0], index[1], ... of a table, rows of 128 floats, in parallel
#include <stdint.h>
typedef float lane __attribute__((vector_size(64), aligned(4)));
extern "C" void plait_gather_rate(const float* table, const int32_t* index, int64_t count, float* out) {
#pragma omp parallel
    {
        lane sum[8] = {};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count; i++) {
            const float* ahead = table + 128 * (int64_t)index[i + 16 < count ? i + 16 : i];
            for (int k = 0; k < 8; k++) __builtin_prefetch(ahead + 16 * k);
            const float* row = table + 128 * (int64_t)index[i];
            for (int k = 0; k < 8; k++) sum[k] += *(const lane*)(row + 16 * k);
        }
#pragma omp critical
        for (int k = 0; k < 8; k++) *(lane*)(out + 16 * k) += sum[k];
    }
}
"""


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Bytes per second. A copy counts what it reads and what it writes; a gather what it reads."""

    copy: float
    gather: float
    gather_by: str  # who gathered: "kernel", or "torch.index_select" where there is no C++ compiler


@dataclass(frozen=True, kw_only=True)
class KernelTraffic:
    """What one fused kernel moves at least: the bytes its program reads and writes, and how long a run took."""

    name: str
    bytes: float
    seconds: float

    def share_of(self, bandwidth: Bandwidth) -> float:
        """Of the gather bandwidth.

        >>> KernelTraffic(name="k", bytes=7e9, seconds=1.0).share_of(Bandwidth(copy=2e10, gather=1e10, gather_by="kernel"))
        0.7
        """
        return self.bytes / self.seconds / bandwidth.gather


def measure() -> Bandwidth:
    """Takes about two seconds and 500 MB."""
    table = torch.ones(ROWS, WIDTH)
    copy_s = _median_seconds(partial(torch.empty_like(table).copy_, table))
    index = torch.randint(ROWS, (DRAWS,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    gather_s, by = _gather_seconds(table, index)
    size = table.element_size() * WIDTH
    return Bandwidth(copy=2 * ROWS * size / copy_s, gather=DRAWS * size / gather_s, gather_by=by)


def _gather_seconds(table: Tensor, index: Tensor) -> tuple[float, str]:
    try:
        library = native.build_now(_SOURCE, "gather_rate")
    except CompilerError as error:
        log.info("gather bandwidth without a C++ compiler: %s", error)
        # it writes what it reads: half of its rows are drawn, so that the time stands for as many bytes
        half = index[: DRAWS // 2]
        out = torch.empty(len(half), WIDTH)
        return _median_seconds(lambda: torch.index_select(table, 0, half, out=out)), "torch.index_select"
    out = torch.zeros(WIDTH)
    arguments = [ctypes.c_void_p(table.data_ptr()), ctypes.c_void_p(index.data_ptr()), ctypes.c_int64(DRAWS)]
    return _median_seconds(lambda: library.plait_gather_rate(*arguments, ctypes.c_void_p(out.data_ptr()))), "kernel"


def _median_seconds(run: Callable[[], object]) -> float:
    run()
    seconds: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def shares(kernels: Sequence[KernelTraffic], bandwidth: Bandwidth) -> list[tuple[str, float, float]]:
    """Name, bytes per second, share of the gather bandwidth; the slowest share first."""
    found = [(kernel.name, kernel.bytes / kernel.seconds, kernel.share_of(bandwidth)) for kernel in kernels]
    return sorted(found, key=lambda row: row[2])
