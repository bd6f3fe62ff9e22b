"""Capacity: one training step of a GAT layer on a graph of Reddit's size, 233 thousand nodes and 114.6 million edges.

64 features in, 4 heads x 16. Eager PyTorch needs more than 24 GB for it. Prints the time of each step and peak resident memory.

usage: python benchmarks/reddit_sized.py [--engine plait] [--nodes N] [--edges E] [--steps 2] [--no-self-loops]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from torch_geometric.nn import GATConv

from plait.tools import memory
from plait.tools.engines import compile_with

NODES, EDGES = 232_965, 114_615_892
CHUNK = 1 << 22


def powerlaw_in_chunks(num_nodes: int, num_edges: int) -> Tensor:
    """The distribution of `generate.powerlaw_edges`, drawn a piece at a time: nothing but the result is large."""
    random = torch.Generator().manual_seed(0)
    total = (torch.rand(num_nodes, generator=random, dtype=torch.float64) ** -0.6).cumsum(0)
    total /= total[-1].clone()
    edge_index = torch.empty(2, num_edges, dtype=torch.int64)
    for row in edge_index:
        for part in row.split(CHUNK):
            draw = torch.rand(len(part), generator=random, dtype=torch.float64)
            part.copy_(torch.searchsorted(total, draw).clamp_(max=num_nodes - 1))
    return edge_index


def report(what: str, start: float) -> None:
    seconds = time.perf_counter() - start
    resident, peak = memory.resident_bytes() / 1e9, memory.peak_bytes() / 1e9
    print(f"{what:28} {seconds:7.1f} s   resident {resident:6.2f} GB   peak {peak:6.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", default="plait")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--edges", type=int, default=EDGES)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--no-self-loops", action="store_true")
    arguments = parser.parse_args()

    start = time.perf_counter()
    edge_index = powerlaw_in_chunks(arguments.nodes, arguments.edges)
    torch.manual_seed(0)
    x = torch.randn(arguments.nodes, 64)
    report("graph made", start)
    model = GATConv(64, 16, heads=4, add_self_loops=not arguments.no_self_loops)
    optimizer = torch.optim.Adam(model.parameters())
    compiled = compile_with(arguments.engine, model)
    for step in range(arguments.steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = compiled(x, edge_index).square().mean()
        loss.backward()
        optimizer.step()
        report(f"step {step + 1}, loss {loss.item():.6f}", start)
    print(f"peak resident memory: {memory.peak_bytes() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
