"""A graph that is another in every step: edges dropped at random (DropEdge), or a fresh equal copy; plait beside eager.

usage: python benchmarks/changing_graph.py [--graphs 2708/10556 20k/200k 20k/1M] [--rounds 9] [--soak 10000]

With dropped edges nothing the graph was known for can be found again: the time holds the sorting and every other thing plait
does with a graph it has not seen. The soak takes that many steps on a small graph and prints resident memory as it goes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from plait.graph import STRUCTURE
from plait.tools.bench.graphs import load_graph
from plait.tools.memory import resident_bytes

KEPT = 0.8  # share of edges
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "GCN": lambda width: pyg.GCNConv(width, width),
    "SAGE": lambda width: pyg.SAGEConv(width, width),
    "GAT": lambda width: pyg.GATConv(width, width // 4, heads=4),
    "EdgeConv": lambda width: pyg.EdgeConv(nn.Linear(2 * width, width)),
}
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "dropped edges": lambda edge_index: edge_index[:, torch.rand(edge_index.shape[1]) < KEPT],
    "equal copy": lambda edge_index: edge_index.clone(),
}


def seconds_of_step(run: Callable[..., Tensor], layer: nn.Module, x: Tensor, edge_index: Tensor) -> float:
    x.grad = None
    layer.zero_grad()
    start = time.perf_counter()
    run(x, edge_index).sum().backward()
    return time.perf_counter() - start


def compare(size: str, width: int, rounds: int) -> None:
    graph = load_graph(f"powerlaw:{size}", None, width)
    for name, make in LAYERS.items():
        layer = make(width)
        engines = {"eager": layer, "plait": torch.compile(layer, backend="plait", dynamic=True)}
        for change, changed in CHANGES.items():
            times: dict[str, list[float]] = {engine: [] for engine in engines}
            for number in range(rounds + 2):
                edge_index = changed(graph.edge_index)
                for engine, run in engines.items():
                    taken = seconds_of_step(run, layer, graph.x, edge_index)
                    if number >= 2:
                        times[engine].append(taken)
            eager, plait = (statistics.median(times[engine]) for engine in ("eager", "plait"))
            print(
                f"{size:12} {name:9} {change:14} eager {1e3 * eager:8.2f} ms  plait {1e3 * plait:8.2f} ms  "
                f"{eager / plait:6.2f}x  structure {STRUCTURE.stats().bytes / 1e6:.0f} MB",
                flush=True,
            )


def soak(num_steps: int) -> None:
    graph = load_graph("powerlaw:500/4k", None, 16)
    layer = LAYERS["GAT"](16)
    run = torch.compile(layer, backend="plait", dynamic=True)
    for number in range(num_steps):
        seconds_of_step(run, layer, graph.x, CHANGES["dropped edges"](graph.edge_index))
        if (number + 1) % max(1, num_steps // 10) == 0:
            resident, held = resident_bytes() / 1e6, STRUCTURE.stats().bytes / 1e6
            print(f"step {number + 1:6}: resident {resident:.0f} MB, structure {held:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--graphs", nargs="+", default=["2708/10556", "20k/200k", "20k/1M"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--soak", type=int, default=0)
    arguments = parser.parse_args()
    for size in arguments.graphs:
        compare(size, arguments.width, arguments.rounds)
    if arguments.soak:
        soak(arguments.soak)


if __name__ == "__main__":
    main()
