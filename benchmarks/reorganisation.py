"""What a training step computes on edges, moves, keeps and takes, with plait and without: layers that repeat work per edge.

usage: python benchmarks/reorganisation.py [--nodes 5000] [--edges 200000] [--width 64] [--rounds 9] [--markdown]

Counts are `plait.explain`'s: the same rules for both sides, over the operators and programs that were executed. The FLOPs of
matrix products on edges are counted a second time, by a dispatch mode that knows nothing of plait; the script fails if the two
differ. Work inside of kernels is in no dispatch mode: it is taken from the programs' text, where a sum of products with a
weight, edge by edge, counts as a matrix product on edges.

Not counted: reading the index tensors to find the graph again (16 bytes per edge and step), and what is computed once a graph.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.nn import EdgeConv, GATConv

import plait
from plait.tools.explain_text import human_bytes, human_flops, human_ratio, human_seconds
from plait.tools.explain_work import Tally

NUM_KERNELS, NUM_COORDINATES = 3, 2  # of MoNet, as in the paper


class NaiveGAT(nn.Module):
    """Attention as it is written in the paper of GAT: a score of both ends' features, edge by edge.

    how: "weighted" ((cat * att).sum(-1)), "product" (cat @ att), or "all" (the projection is done edge by edge, too).
    """

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.lin = nn.Linear(width, width, bias=False)
        self.att = nn.Parameter(0.1 * torch.randn(2 * width, 1))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        src, dst = edge_index
        if self.how == "all":
            h_i, h_j = self.lin(x[dst]), self.lin(x[src])
        else:
            h = self.lin(x)
            h_i, h_j = h[dst], h[src]
        both = torch.cat([h_i, h_j], -1)
        score = (both * self.att.view(-1)).sum(-1, keepdim=True) if self.how == "weighted" else both @ self.att
        score = nn.functional.leaky_relu(score, 0.2)
        top = torch.full((x.shape[0], 1), float("-inf")).scatter_reduce(0, dst.view(-1, 1), score, "amax")
        weight = (score - top[dst]).exp()
        total = torch.zeros_like(top).index_add(0, dst, weight)
        return torch.zeros_like(x).index_add(0, dst, weight / total[dst] * h_j)


class NaiveMoNet(nn.Module):
    """Gaussians of pseudo-coordinates weigh K projections of the neighbour's features, projected edge by edge."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, NUM_KERNELS * width, bias=False)
        self.mu = nn.Parameter(torch.randn(NUM_KERNELS, NUM_COORDINATES))
        self.sigma = nn.Parameter(torch.rand(NUM_KERNELS, NUM_COORDINATES) + 0.5)

    def forward(self, x: Tensor, edge_index: Tensor, coordinates: Tensor) -> Tensor:
        src, dst = edge_index
        distance = (coordinates.unsqueeze(1) - self.mu) / self.sigma
        gaussian = (-0.5 * distance.pow(2).sum(-1)).exp()
        messages = self.lin(x[src]).view(-1, NUM_KERNELS, x.shape[1])
        return torch.zeros_like(x).index_add(0, dst, (gaussian.unsqueeze(-1) * messages).sum(1))


@dataclass(frozen=True)
class Graph:
    x: Tensor
    edge_index: Tensor
    coordinates: Tensor


def make_graph(num_nodes: int, num_edges: int, width: int) -> Graph:
    generator = torch.Generator().manual_seed(0)
    return Graph(
        torch.randn(num_nodes, width, generator=generator).requires_grad_(),  # as a hidden layer's: it gets a gradient
        torch.randint(num_nodes, (2, num_edges), generator=generator),
        torch.rand(num_edges, NUM_COORDINATES, generator=generator),
    )


# name -> the layer of a width, and what it takes
MODELS: dict[str, tuple[Callable[[int], nn.Module], Callable[[Graph], tuple[Tensor, ...]]]] = {
    "naive GAT, (cat * att).sum": (lambda width: NaiveGAT(width, "weighted"), lambda graph: (graph.x, graph.edge_index)),
    "naive GAT, cat @ att": (lambda width: NaiveGAT(width, "product"), lambda graph: (graph.x, graph.edge_index)),
    "naive GAT, W on edges too": (lambda width: NaiveGAT(width, "all"), lambda graph: (graph.x, graph.edge_index)),
    "PyG GATConv, 4 heads": (lambda width: GATConv(width, width // 4, heads=4), lambda graph: (graph.x, graph.edge_index)),
    "PyG EdgeConv, linear": (lambda width: EdgeConv(nn.Linear(2 * width, width)), lambda graph: (graph.x, graph.edge_index)),
    "naive MoNet, W on edges": (NaiveMoNet, lambda graph: (graph.x, graph.edge_index, graph.coordinates)),
}


# --- the second count ------------------------------------------------------------------------------------------------


# positions of the two factors among the arguments
FACTORS = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "dot": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "addmv": (1, 2)}


class EdgeProducts(TorchDispatchMode):
    """FLOPs of the matrix products that PyTorch runs and that have a row per edge on some side."""

    def __init__(self, edge_counts: set[int]) -> None:
        super().__init__()
        self.edge_counts = edge_counts
        self.flops = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else torch.compile steps aside, and what is counted is the un-compiled model

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = FACTORS.get(func._schema.name.removeprefix("aten::"))
        if factors is not None:
            left, right = (args[position] for position in factors)
            if self.edge_counts & {*left.shape, *right.shape}:
                columns = right.shape[-1] if right.dim() > 1 else 1
                self.flops += 2 * left.numel() * columns
        return func(*args, **(kwargs or {}))


def edge_counts(edge_index: Tensor, num_nodes: int) -> set[int]:
    """As many edges as the layer is given, or as are left with every self-loop replaced."""
    num_edges = edge_index.shape[1]
    return {num_edges, int((edge_index[0] != edge_index[1]).sum()) + num_nodes}


def step(model: Callable[..., Any], leaves: Sequence[Tensor], inputs: tuple[Tensor, ...], gradient: Tensor) -> None:
    torch.autograd.grad(model(*inputs), leaves, gradient)


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    name: str
    before: Tally
    after: Tally
    before_s: float
    after_s: float


def measure(name: str, graph: Graph, rounds: int) -> Line:
    make, inputs_of = MODELS[name]
    torch.manual_seed(0)
    model, inputs = make(graph.x.shape[1]), inputs_of(graph)
    found = plait.explain(model, *inputs)
    if found.before is None or found.after is None or found.fallbacks:
        raise SystemExit(f"{name}: not counted, or not compiled: {found.uncounted + found.fallbacks}")
    leaves = [graph.x, *model.parameters()]
    gradient = torch.ones_like(model(*inputs))
    engines: dict[str, Callable[..., Any]] = {"before": model, "after": torch.compile(model, backend="plait")}
    inside = sum(item.edge_product_flops for item in found.after.steps if item.kind == "program")
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    for (engine, run), expected in zip(engines.items(), (found.before.tally, found.after.tally), strict=True):
        step(run, leaves, inputs, gradient)
        with EdgeProducts(edge_counts(graph.edge_index, len(graph.x))) as second:
            step(run, leaves, inputs, gradient)
        counted = second.flops + (inside if engine == "after" else 0)
        if counted != expected.edge_product_flops:
            raise SystemExit(
                f"{name}, {engine}: {counted} FLOPs of products on edges, explain says {expected.edge_product_flops}"
            )
    for _ in range(rounds):
        for engine, run in engines.items():
            start = time.perf_counter()
            step(run, leaves, inputs, gradient)
            times[engine].append(time.perf_counter() - start)
    before_s, after_s = (statistics.median(times[engine]) for engine in engines)
    return Line(name, found.before.tally, found.after.tally, before_s, after_s)


HEADER = (
    "layer",
    "products on edges, eager",
    "plait",
    "removed",
    "bytes moved, eager",
    "plait",
    "less",
    "kept, eager",
    "plait",
    "less",
    "step, eager",
    "plait",
    "faster",
)


def cells(line: Line) -> tuple[str, ...]:
    before, after = line.before, line.after
    removed = "-"
    if before.edge_product_flops:
        removed = f"{100 * (1 - after.edge_product_flops / before.edge_product_flops):.1f} %"
    return (
        line.name,
        human_flops(before.edge_product_flops),
        human_flops(after.edge_product_flops),
        removed,
        human_bytes(before.bytes),
        human_bytes(after.bytes),
        _ratio(before.bytes, after.bytes),
        human_bytes(before.kept_bytes),
        human_bytes(after.kept_bytes),
        _ratio(before.kept_bytes, after.kept_bytes),
        human_seconds(line.before_s),
        human_seconds(line.after_s),
        human_ratio(line.before_s / line.after_s),
    )


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.2f}x" if after else "-"


def show(lines: Sequence[Line], *, markdown: bool) -> None:
    rows = [cells(line) for line in lines]
    if markdown:
        print("\n".join(f"| {' | '.join(row)} |" for row in (HEADER, ("---",) * len(HEADER), *rows)))
        return
    widths = [max(len(row[column]) for row in (HEADER, *rows)) for column in range(len(HEADER))]
    for row in (HEADER, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--edges", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    graph = make_graph(arguments.nodes, arguments.edges, arguments.width)
    show([measure(name, graph, arguments.rounds) for name in arguments.models], markdown=arguments.markdown)


if __name__ == "__main__":
    main()
