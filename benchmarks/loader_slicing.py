"""Slicing the rows of a batch, beside what memory gives: a straight copy, and a gather that only reads.

    python benchmarks/loader_slicing.py                        # 128 float32, as in `plait bench loader`, 1 and 2 threads
    python benchmarks/loader_slicing.py --shapes 602:float32 16:float32 128:bfloat16 1:int64

The rows are those of a batch of three hops (fan-outs 15, 10, 5, 1,024 seeds) on a power-law graph of 400 thousand nodes.
Everything takes turns in one process, every thread has a processor and a reused buffer of its own. A ratio is of two times of
one round; medians and quartiles are over rounds. A round in which the hypervisor took processor time away is not counted,
unless all are.

    copy        as many bytes, one after the other, written past the caches: nothing that writes a batch can be faster
    memcpy      the same with the C library (torch's copy_)
    read        the rows of the batch are read, and nothing is written; features on huge pages
    slice 4K    what the loader does, features on pages of 4 KiB
    slice 2M    the same, features on huge pages: where the loader puts them (plait/sampling/pages.py)
    torch       torch.index_select

With --variants, what the loader's code was chosen from, for rows of whole lines of 64 bytes and features on huge pages, as one
small kernel: streaming or ordinary stores, requests ahead into the first or the second cache, a read of the batch right after.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pathlib
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from plait import memory, native
from plait.loader import Graph, NeighborLoader
from plait.sampling import pages
from plait.sampling.features import FeatureRows
from plait.tools import generate

NUM_NODES, NUM_EDGES = 400_000, 4_000_000
_SOURCE = """
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
extern "C" void plait_copy_past(const char* from, int64_t bytes, char* to) {
    int64_t k = 0;
#if defined(__AVX512F__)
    for (; k + 64 <= bytes; k += 64) _mm512_stream_si512((__m512i*)(to + k), _mm512_loadu_si512(from + k));
#elif defined(__AVX__)
    for (; k + 32 <= bytes; k += 32) _mm256_stream_si256((__m256i*)(to + k), _mm256_loadu_si256((const __m256i*)(from + k)));
#endif
    memcpy(to + k, from + k, bytes - k);
    _mm_sfence();
}
typedef uint64_t lane __attribute__((vector_size(64), aligned(1)));
extern "C" void plait_read_rows(const char* table, const int64_t* index, int64_t count, int64_t bytes, char* out) {
    const int64_t ahead = bytes >= 512 ? 32768 / bytes : 64;
    lane sum = {};
    uint64_t rest = 0;
    for (int64_t i = 0; i < count; i++) {
        const char* next = table + bytes * index[i + ahead < count ? i + ahead : i];
        for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch(next + k, 0, 2);
        const char* row = table + bytes * index[i];
        int64_t k = 0;
        for (; k + 64 <= bytes; k += 64) sum ^= *(const lane*)(row + k);
        for (; k + 2 <= bytes; k += 2) rest += *(const uint16_t*)(row + k);
    }
    sum[0] += rest;
    *(lane*)out = sum;
}
template <int CACHE, bool STREAM>
static void gather(const char* table, const int64_t* index, int64_t count, int64_t bytes, char* out, int64_t ahead) {
    for (int64_t i = 0; i < count; i++) {
        const char* next = table + bytes * index[i + ahead < count ? i + ahead : i];
        if (CACHE == 1) for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch(next + k, 0, 3);
        if (CACHE == 2) for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch(next + k, 0, 2);
        const char* row = table + bytes * index[i];
        char* to = out + bytes * i;
        for (int64_t k = 0; k < bytes; k += 64) {
#if defined(__AVX512F__)
            if (STREAM) { _mm512_stream_si512((__m512i*)(to + k), _mm512_loadu_si512(row + k)); continue; }
#endif
            *(lane*)(to + k) = *(const lane*)(row + k);
        }
    }
    _mm_sfence();
}
extern "C" void plait_gather_variant(const char* table, const int64_t* index, int64_t count, int64_t bytes, char* out,
                                     int64_t cache, int64_t ahead, int64_t stream, int64_t read, char* sink) {
    if (stream && cache == 0) gather<0, true>(table, index, count, bytes, out, ahead);
    if (stream && cache == 1) gather<1, true>(table, index, count, bytes, out, ahead);
    if (stream && cache == 2) gather<2, true>(table, index, count, bytes, out, ahead);
    if (!stream) gather<2, false>(table, index, count, bytes, out, ahead);
    if (!read) return;
    lane sum = {};
    for (int64_t k = 0; k < count * bytes; k += 64) sum ^= *(const lane*)(out + k);
    *(lane*)sink = sum;
}
"""

# name: cache that is asked, rows ahead, streaming stores, read afterwards
VARIANTS = {
    "stream, no requests": (0, 0, 1, 0),
    "stream, first cache, 8 ahead": (1, 8, 1, 0),
    "stream, first cache, 64 ahead": (1, 64, 1, 0),
    "stream, second cache, 8 ahead": (2, 8, 1, 0),
    "stream, second cache, 64 ahead": (2, 64, 1, 0),
    "stream, second cache, 256 ahead": (2, 256, 1, 0),
    "stores, second cache, 64 ahead": (2, 64, 0, 0),
    "stream, and read": (2, 64, 1, 1),
    "stores, and read": (2, 64, 0, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["128:float32"], metavar="COLUMNS:TYPE")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--variants", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    batches = batch_rows(max(given.threads))
    for shape in given.shapes:
        columns, dtype = shape.split(":")
        measure(int(columns), getattr(torch, dtype), batches, given.threads, given.rounds, with_variants=given.variants)


def batch_rows(count: int) -> list[Tensor]:
    """The nodes of so many batches, int64 [R] each."""
    edge_index = generate.powerlaw_edges(NUM_NODES, NUM_EDGES, seed=0)
    loader = NeighborLoader(Graph(edge_index, NUM_NODES), [15, 10, 5], batch_size=1024, shuffle=True, seed=0)
    return [batch.n_id for batch, _ in zip(loader, range(count), strict=False)]


def measure(
    columns: int, dtype: torch.dtype, batches: list[Tensor], thread_counts: list[int], rounds: int, *, with_variants: bool
) -> None:
    """Prints a table for one shape of features."""
    library = native.build_now(_SOURCE, "slicing_bounds")
    small = torch.randint(100, (NUM_NODES, columns), generator=torch.Generator().manual_seed(0)).to(dtype)
    huge = small.clone()
    on_huge = pages.advise(huge)
    row_bytes = columns * dtype.itemsize
    outs = [memory.empty((len(ids), columns), dtype) for ids in batches]
    for out in outs:
        out.zero_()

    def address(tensor: Tensor) -> ctypes.c_void_p:
        return ctypes.c_void_p(tensor.data_ptr())

    def copy(thread: int) -> None:
        library.plait_copy_past(address(small), ctypes.c_int64(outs[thread].nbytes), address(outs[thread]))

    def read(thread: int) -> None:
        ids = batches[thread]
        size = ctypes.c_int64(row_bytes)
        library.plait_read_rows(address(huge), address(ids), ctypes.c_int64(len(ids)), size, address(outs[thread]))

    def slice_from(table: Tensor, thread: int) -> None:
        FeatureRows(table).gather(batches[thread])

    runs: dict[str, Callable[[int], object]] = {
        "copy": copy,
        "memcpy": lambda thread: outs[thread].copy_(small[: len(outs[thread])]),
        "read": read,
        "slice 4K": partial(slice_from, small),
        "slice 2M": partial(slice_from, huge),
        "torch": lambda thread: torch.index_select(small, 0, batches[thread], out=outs[thread]),
    }
    if with_variants:
        sink = torch.zeros(8 * len(batches), 8, dtype=torch.int64)

        def variant(arguments: tuple[int, ...], thread: int) -> None:
            ids, numbers = batches[thread], map(ctypes.c_int64, arguments)
            size = (ctypes.c_int64(len(ids)), ctypes.c_int64(row_bytes))
            library.plait_gather_variant(
                address(huge), address(ids), *size, address(outs[thread]), *numbers, address(sink[8 * thread])
            )

        runs = {"copy": copy, "read": read}
        runs |= {name: partial(variant, arguments) for name, arguments in VARIANTS.items()}
    print(f"{columns} x {dtype}: rows of {row_bytes} bytes, {on_huge >> 20} MiB of {huge.nbytes >> 20} on huge pages")
    for num_threads in thread_counts:
        times, num_left_out = timed(runs, num_threads, rounds)
        moved = 2 * sum(out.nbytes for out in outs[:num_threads])
        print(f"  {num_threads} threads; {num_left_out} of {rounds} rounds left out, the hypervisor was in them")
        for name, seconds in times.items():
            median, of_copy = statistics.median(seconds), quartiles(times["copy"], seconds)
            rate = (moved / 2 if name == "read" else moved) / median / 1e9
            text = f"{name:{max(map(len, runs))}} {1e3 * median:7.2f} ms {rate:6.1f} GB/s, of the copy's speed {of_copy}"
            print(f"    {text}, of the reading's {quartiles(times['read'], seconds)}", flush=True)


def timed(runs: dict[str, Callable[[int], object]], num_threads: int, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of every round that counts, by name; how many did not."""
    quiet: list[dict[str, float]] = []
    stolen: list[dict[str, float]] = []
    for number in range(rounds + 2):
        before, times = stolen_ticks(), {}
        for name, run in runs.items():
            times[name] = in_threads(run, num_threads)
        if number >= 2:  # the first ones fill the pool of buffers
            (quiet if stolen_ticks() == before else stolen).append(times)
    kept = quiet or stolen
    return {name: [times[name] for times in kept] for name in runs}, len(stolen) if quiet else 0


def in_threads(run: Callable[[int], object], num_threads: int) -> float:
    """From the start of the first thread to the end of the last: the caller itself may wake up late."""
    ready = threading.Barrier(num_threads)
    spans: list[tuple[float, float]] = []

    def work(thread: int) -> None:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[thread]})  # of this thread alone
        ready.wait()
        start = time.perf_counter()
        run(thread)
        spans.append((start, time.perf_counter()))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)


def stolen_ticks() -> int:
    """Processor time that the hypervisor gave to others, in hundredths of a second."""
    try:
        return int(pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    except (OSError, IndexError):
        return 0


def quartiles(whole: list[float], part: list[float]) -> str:
    ratios = [100 * a / b for a, b in zip(whole, part, strict=True)]
    if len(ratios) < 4:
        return f"{statistics.median(ratios):.0f} %"
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.0f} % ({low:.0f}-{high:.0f})"


if __name__ == "__main__":
    main()
