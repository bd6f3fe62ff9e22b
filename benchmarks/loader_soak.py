"""A thousand epochs on a small graph: resident memory now and then, and threads left at the end.

python benchmarks/loader_soak.py
"""

from __future__ import annotations

import pathlib
import resource
import threading
import time

import torch

from plait.loader import Graph, NeighborLoader
from plait.tools import generate

EPOCHS, EVERY = 1000, 100
PAGE_BYTES = resource.getpagesize()


def resident_mib() -> float:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def main() -> None:
    edge_index = generate.powerlaw_edges(5000, 40_000, seed=0)
    graph = Graph(edge_index, 5000, {"x": torch.randn(5000, 128), "y": torch.arange(5000)})
    loader = NeighborLoader(graph, [10, 5], batch_size=512, shuffle=True, threads=2)
    start = time.perf_counter()
    for epoch in range(EPOCHS):
        for _batch in loader:
            pass
        if (epoch + 1) % EVERY == 0:
            print(f"epoch {epoch + 1:5}  {resident_mib():7.1f} MiB  {time.perf_counter() - start:6.1f} s", flush=True)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("plait-loader")]
    print(f"threads left: {len(left)}")


if __name__ == "__main__":
    main()
