"""Sum of neighbours, 128 features, forward: plait against torch.sparse.mm (MKL) and eager, taking turns.

usage: python benchmarks/spmm.py [--graphs 20k/1M 400k/4M] [--width 128] [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from plait.tools.bench.graphs import load_graph


def sum_of_neighbours(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, dst, x.index_select(0, src))


def adjacency(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Row i holds the sources of the edges into node i, ascending. Repeated edges stay, which the invariants would forbid."""
    src, dst = edge_index
    by_src = torch.argsort(src, stable=True)
    order = by_src[torch.argsort(dst[by_src], stable=True)]
    indptr = torch.zeros(num_nodes + 1, dtype=torch.int64)
    indptr[1:] = torch.bincount(dst, minlength=num_nodes).cumsum(0)
    return torch.sparse_csr_tensor(
        indptr, src[order], torch.ones(len(src)), size=(num_nodes, num_nodes), check_invariants=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--graphs", nargs="+", default=["20k/1M", "400k/4M"])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    for size in arguments.graphs:
        graph = load_graph(f"powerlaw:{size}", None, arguments.width)
        x, (src, dst) = graph.x.detach(), graph.edge_index
        matrix = adjacency(graph.edge_index, graph.num_nodes)
        compiled = torch.compile(sum_of_neighbours, backend="plait")
        engines: dict[str, Callable[[], Tensor]] = {
            "eager": lambda x=x, src=src, dst=dst: sum_of_neighbours(x, src, dst),
            "torch.sparse": lambda x=x, matrix=matrix: torch.sparse.mm(matrix, x),
            "plait": lambda x=x, src=src, dst=dst, compiled=compiled: compiled(x, src, dst),
        }
        expected = engines["eager"]()
        times: dict[str, list[float]] = {name: [] for name in engines}
        for name, run in engines.items():
            difference = ((run() - expected).abs().max() / expected.abs().max()).item()
            if not difference < 1e-5:
                raise SystemExit(f"{name} is wrong by {difference:.1e}")
        for _ in range(arguments.rounds):
            for name, run in engines.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(samples) for name, samples in times.items()}
        for name, samples in times.items():
            low, _, high = statistics.quantiles(samples, n=4)
            ratio = medians["torch.sparse"] / medians[name]
            spread = f"({1e3 * low:.1f}-{1e3 * high:.1f})"
            print(f"{size:10} {name:13} {1e3 * medians[name]:8.1f} ms  {spread:16} {ratio:5.2f} x torch.sparse")


if __name__ == "__main__":
    main()
