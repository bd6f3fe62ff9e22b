"""Every convolution of PyTorch Geometric that takes plain tensors: is it right, fused, faster? Prints a table.

usage: python benchmarks/coverage.py [--layers GCNConv ...] [--nodes 20000] [--edges 200000] [--width 64] [--rounds 5]
       [--markdown FILE]

Per layer: output and all gradients against eager on a small awkward graph; graph breaks; programs; the widest tensor with a row
per edge that a training step makes (seen by a dispatch mode that knows nothing of plait, in columns per edge); and times of
training steps against eager, in turns.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from plait.capture.record import RECORDS
from plait.tools import generate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """x float32 [N, F] and edges [2, E], with what some layers want besides."""

    x: Tensor
    edge_index: Tensor
    generator: torch.Generator

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    def edge_weight(self) -> Tensor:
        return torch.rand(self.num_edges, generator=self.generator)

    def edge_features(self, width: int) -> Tensor:
        return torch.randn(self.num_edges, width, generator=self.generator)

    def positions(self, width: int = 3) -> Tensor:
        return torch.rand(self.num_nodes, width, generator=self.generator)

    def types(self, count: int, of: str = "edge") -> Tensor:
        size = self.num_edges if of == "edge" else self.num_nodes
        return torch.randint(count, (size,), generator=self.generator)


def mlp(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, b))


def degree_histogram(graph: Graph) -> Tensor:
    return torch.bincount(torch.bincount(graph.edge_index[1], minlength=graph.num_nodes))


# name -> (layer, what it takes after x and edge_index, by position or name), for width F
LAYERS: dict[str, Callable[[int, Graph], tuple[nn.Module, dict[str, Any]]]] = {
    "SimpleConv": lambda f, g: (pyg.SimpleConv(aggr="mean"), {}),
    "GCNConv": lambda f, g: (pyg.GCNConv(f, f), {}),
    "GCNConv, edge weights": lambda f, g: (pyg.GCNConv(f, f), {"edge_weight": g.edge_weight()}),
    "ChebConv": lambda f, g: (pyg.ChebConv(f, f, K=3), {}),
    "SAGEConv, mean": lambda f, g: (pyg.SAGEConv(f, f), {}),
    "SAGEConv, max": lambda f, g: (pyg.SAGEConv(f, f, aggr="max"), {}),
    "GraphConv": lambda f, g: (pyg.GraphConv(f, f), {"edge_weight": g.edge_weight()}),
    "GatedGraphConv": lambda f, g: (pyg.GatedGraphConv(f, num_layers=2), {}),
    "ResGatedGraphConv": lambda f, g: (pyg.ResGatedGraphConv(f, f), {}),
    "ResGatedGraphConv, edge_dim": lambda f, g: (pyg.ResGatedGraphConv(f, f, edge_dim=8), {"edge_attr": g.edge_features(8)}),
    "GATConv": lambda f, g: (pyg.GATConv(f, f // 4, heads=4), {}),
    "GATConv, edge_dim": lambda f, g: (pyg.GATConv(f, f // 4, heads=4, edge_dim=8), {"edge_attr": g.edge_features(8)}),
    "GATv2Conv": lambda f, g: (pyg.GATv2Conv(f, f // 4, heads=4), {}),
    "GATv2Conv, edge_dim": lambda f, g: (pyg.GATv2Conv(f, f // 4, heads=4, edge_dim=8), {"edge_attr": g.edge_features(8)}),
    "TransformerConv": lambda f, g: (pyg.TransformerConv(f, f // 4, heads=4), {}),
    "TransformerConv, edge_dim": lambda f, g: (
        pyg.TransformerConv(f, f // 4, heads=4, edge_dim=8),
        {"edge_attr": g.edge_features(8)},
    ),
    "AGNNConv": lambda f, g: (pyg.AGNNConv(), {}),
    "TAGConv": lambda f, g: (pyg.TAGConv(f, f, K=2), {}),
    "GINConv": lambda f, g: (pyg.GINConv(mlp(f, f)), {}),
    "GINEConv": lambda f, g: (pyg.GINEConv(mlp(f, f)), {"edge_attr": g.edge_features(f)}),
    "GINEConv, edge_dim": lambda f, g: (pyg.GINEConv(mlp(f, f), edge_dim=8), {"edge_attr": g.edge_features(8)}),
    "ARMAConv": lambda f, g: (pyg.ARMAConv(f, f, num_stacks=2, num_layers=2), {}),
    "SGConv": lambda f, g: (pyg.SGConv(f, f, K=2), {}),
    "SSGConv": lambda f, g: (pyg.SSGConv(f, f, alpha=0.1, K=2), {}),
    "APPNP": lambda f, g: (pyg.APPNP(K=3, alpha=0.1), {}),
    "MFConv": lambda f, g: (pyg.MFConv(f, f), {}),
    "RGCNConv": lambda f, g: (pyg.RGCNConv(f, f, num_relations=4), {"edge_type": g.types(4)}),
    "RGCNConv, bases": lambda f, g: (pyg.RGCNConv(f, f, num_relations=4, num_bases=2), {"edge_type": g.types(4)}),
    "FastRGCNConv": lambda f, g: (pyg.FastRGCNConv(f, f, num_relations=4), {"edge_type": g.types(4)}),
    "RGATConv": lambda f, g: (pyg.RGATConv(f, f // 4, num_relations=4, heads=4), {"edge_type": g.types(4)}),
    "SignedConv": lambda f, g: (pyg.SignedConv(f, f, first_aggr=True), {"neg_edge_index": g.edge_index.flip(0)}),
    "PointNetConv": lambda f, g: (pyg.PointNetConv(mlp(f + 3, f)), {"pos": g.positions()}),
    "GMMConv": lambda f, g: (pyg.GMMConv(f, f, dim=2, kernel_size=3), {"edge_attr": g.edge_features(2)}),
    "GMMConv, separate": lambda f, g: (
        pyg.GMMConv(f, f, dim=2, kernel_size=3, separate_gaussians=True),
        {"edge_attr": g.edge_features(2)},
    ),
    "NNConv": lambda f, g: (pyg.NNConv(f, f, nn.Linear(4, f * f)), {"edge_attr": g.edge_features(4)}),
    "CGConv": lambda f, g: (pyg.CGConv(f, dim=8), {"edge_attr": g.edge_features(8)}),
    "EdgeConv, linear": lambda f, g: (pyg.EdgeConv(nn.Linear(2 * f, f)), {}),
    "EdgeConv, MLP": lambda f, g: (pyg.EdgeConv(mlp(2 * f, f)), {}),
    "EdgeConv, MLP, mean": lambda f, g: (pyg.EdgeConv(mlp(2 * f, f), aggr="mean"), {}),
    "PPFConv": lambda f, g: (pyg.PPFConv(mlp(f + 4, f)), {"pos": g.positions(), "normal": g.positions()}),
    "FeaStConv": lambda f, g: (pyg.FeaStConv(f, f, heads=2), {}),
    "PointTransformerConv": lambda f, g: (pyg.PointTransformerConv(f, f), {"pos": g.positions()}),
    "HypergraphConv": lambda f, g: (pyg.HypergraphConv(f, f), {}),
    "LEConv": lambda f, g: (pyg.LEConv(f, f), {}),
    "PNAConv": lambda f, g: (
        pyg.PNAConv(f, f, ["mean", "min", "max", "std"], ["identity", "amplification", "attenuation"], degree_histogram(g)),
        {},
    ),
    "PNAConv, edge_dim": lambda f, g: (
        pyg.PNAConv(f, f, ["mean", "max", "std"], ["identity", "amplification"], degree_histogram(g), edge_dim=8),
        {"edge_attr": g.edge_features(8)},
    ),
    "ClusterGCNConv": lambda f, g: (pyg.ClusterGCNConv(f, f), {}),
    "GENConv": lambda f, g: (pyg.GENConv(f, f, aggr="softmax", learn_t=True), {}),
    "GENConv, powermean": lambda f, g: (pyg.GENConv(f, f, aggr="powermean", learn_p=True), {}),
    "GCN2Conv": lambda f, g: (pyg.GCN2Conv(f, alpha=0.1), {"x_0": g.x.detach().clone()}),
    "PANConv": lambda f, g: (pyg.PANConv(f, f, filter_size=2), {}),
    "WLConvContinuous": lambda f, g: (pyg.WLConvContinuous(), {}),
    "FiLMConv": lambda f, g: (pyg.FiLMConv(f, f), {}),
    "SuperGATConv": lambda f, g: (pyg.SuperGATConv(f, f // 4, heads=4, is_undirected=True), {}),
    "FAConv": lambda f, g: (pyg.FAConv(f), {"x_0": g.x.detach().clone()}),
    "EGConv": lambda f, g: (pyg.EGConv(f, f, aggregators=["sum", "mean", "max", "std"]), {}),
    "PDNConv": lambda f, g: (pyg.PDNConv(f, f, edge_dim=8, hidden_channels=16), {"edge_attr": g.edge_features(8)}),
    "GeneralConv": lambda f, g: (pyg.GeneralConv(f, f, attention=True, heads=2), {}),
    "HEATConv": lambda f, g: (
        pyg.HEATConv(f, f // 4, 3, 4, 8, 8, 8, heads=4),
        {"node_type": g.types(3, "node"), "edge_type": g.types(4), "edge_attr": g.edge_features(8)},
    ),
    "LGConv": lambda f, g: (pyg.LGConv(), {}),
    "PointGNNConv": lambda f, g: (pyg.PointGNNConv(mlp(f, 3), mlp(f + 3, f), mlp(f, f)), {"pos": g.positions()}),
    "GPSConv": lambda f, g: (pyg.GPSConv(f, pyg.GINConv(mlp(f, f)), heads=1, attn_type="performer"), {}),
    "AntiSymmetricConv": lambda f, g: (pyg.AntiSymmetricConv(f), {}),
    "DirGNNConv": lambda f, g: (pyg.DirGNNConv(pyg.SAGEConv(f, f)), {}),
    "MixHopConv": lambda f, g: (pyg.MixHopConv(f, f), {}),
    "DNAConv": lambda f, g: (pyg.DNAConv(f, heads=2), {}),
}
ORDER_OF_INPUTS = {"PointNetConv": ("x", "pos", "edge_index"), "PointTransformerConv": ("x", "pos", "edge_index")}
ORDER_OF_INPUTS |= {"PointGNNConv": ("x", "pos", "edge_index"), "PPFConv": ("x", "pos", "normal", "edge_index")}
ORDER_OF_INPUTS |= {"HEATConv": ("x", "edge_index", "node_type", "edge_type", "edge_attr")}
ORDER_OF_INPUTS |= {"GCN2Conv": ("x", "x_0", "edge_index"), "FAConv": ("x", "x_0", "edge_index")}


@dataclass
class Row:
    """A line of the table."""

    layer: str
    is_right: bool = False
    num_breaks: int = 0
    num_programs: int = 0
    edge_columns: int = 0  # of the widest tensor with a row per edge
    ratio: float | None = None
    why: str = ""


def make_graph(num_nodes: int, num_edges: int, width: int) -> Graph:
    generator = torch.Generator().manual_seed(0)
    edges = generate.powerlaw_edges(num_nodes, num_edges, seed=0)
    return Graph(generate.features(num_nodes, width, seed=1), edges, generator)


def small_graph(width: int) -> Graph:
    """With isolated nodes, self-loops and repeated edges."""
    generator = torch.Generator().manual_seed(3)
    edges = torch.randint(0, 40, (2, 190), generator=generator)
    edges = torch.cat([edges, edges[:, :7], torch.arange(5).repeat(2, 1)], 1)
    return Graph(torch.randn(47, width, generator=generator), edges, generator)


def inputs_of(name: str, graph: Graph, extra: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kind = name.split(",")[0]
    x = graph.x.detach().clone().requires_grad_()
    known: dict[str, Any] = {"x": x, "edge_index": graph.edge_index, **extra}
    if kind == "SignedConv":
        return (x, graph.edge_index, extra["neg_edge_index"]), {}
    if kind == "DNAConv":
        return (x.detach().view(graph.num_nodes, 1, -1).repeat(1, 3, 1).requires_grad_(), graph.edge_index), {}
    order = ORDER_OF_INPUTS.get(kind, ("x", "edge_index"))
    return tuple(known.pop(item) for item in order), known


def step(run: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs and all gradients of one training step."""
    model.zero_grad()
    args[0].grad = None
    torch.manual_seed(1)
    result = run(*args, **kwargs)
    outputs = [item for item in torch.utils._pytree.tree_leaves(result) if isinstance(item, Tensor) and item.requires_grad]
    generator = torch.Generator().manual_seed(2)
    total = sum((item * torch.randn(item.shape, generator=generator)).sum() for item in outputs)
    assert isinstance(total, Tensor)
    total.backward()
    found = {f"output {number}": item.detach() for number, item in enumerate(outputs)}
    found |= {"x": args[0].grad} | {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: item for name, item in found.items() if item is not None}


class EdgeTensors(TorchDispatchMode):
    """The widest float tensor whose leading size is a number of edges, among what is made while the mode is on."""

    def __init__(self, counts: set[int]) -> None:
        super().__init__()
        self.counts = counts
        self.columns = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in torch.utils._pytree.tree_leaves(result):
            if isinstance(item, Tensor) and item.is_floating_point() and item.dim() > 0 and item.shape[0] in self.counts:
                self.columns = max(self.columns, item.untyped_storage().nbytes() // item.element_size() // item.shape[0])
        return result


def examine(name: str, large: Graph, rounds: int) -> Row:
    row = Row(name)
    width = large.x.shape[1]
    try:
        check(row, name, width)
        if rounds:
            measure(row, name, large, rounds)
    except Exception as error:  # a table of what works must not end where something does not
        row.why = row.why or f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        log.exception("%s", name)
    return row


def check(row: Row, name: str, width: int) -> None:
    graph = small_graph(width)
    torch.manual_seed(0)
    model, extra = LAYERS[name](width, graph)
    args, kwargs = inputs_of(name, graph, extra)
    expected = step(model, model, args, kwargs)
    torch._dynamo.reset()
    before = len(RECORDS)
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    compiled = torch.compile(model, backend="plait", dynamic=True)
    got = step(compiled, model, args, kwargs)
    row.num_breaks = sum(torch._dynamo.utils.counters["graph_break"].values()) - breaks
    records = RECORDS[before:]
    row.num_programs = sum(len(programs) for record in records for programs in record.programs.values())
    wrong = []
    for key, want in expected.items():
        scale = max(want.abs().max().item(), 1e-6)
        if key not in got or not (got[key] - want).abs().max().item() <= 2e-4 * scale + 2e-5:
            wrong.append(key)
    row.is_right = not wrong
    reasons = [str(item) for record in records for item in record.fallbacks]
    reasons += [note for record in records for note in record.notes if "unfused" in note or "not fused" in note]
    row.why = "; ".join(dict.fromkeys([*(f"WRONG: {key}" for key in wrong), *reasons]))


def measure(row: Row, name: str, graph: Graph, rounds: int) -> None:
    torch.manual_seed(0)
    model, extra = LAYERS[name](graph.x.shape[1], graph)
    args, kwargs = inputs_of(name, graph, extra)
    torch._dynamo.reset()
    runs = {"eager": model, "plait": torch.compile(model, backend="plait", dynamic=True)}
    for _ in range(2):
        for run in runs.values():
            step(run, model, args, kwargs)
    loops = int((graph.edge_index[0] == graph.edge_index[1]).sum())
    edges = graph.num_edges
    with EdgeTensors({edges, edges + graph.num_nodes, edges - loops, edges - loops + graph.num_nodes}) as seen:
        step(runs["plait"], model, args, kwargs)
    row.edge_columns = seen.columns
    times: dict[str, list[float]] = {engine: [] for engine in runs}
    for _ in range(rounds):
        for engine, run in runs.items():
            start = time.perf_counter()
            step(run, model, args, kwargs)
            times[engine].append(time.perf_counter() - start)
    row.ratio = statistics.median(times["eager"]) / statistics.median(times["plait"])


def as_markdown(rows: list[Row]) -> str:
    lines = ["| layer | right | graph breaks | programs | columns per edge left | times faster | what is left, and why |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        right = "yes" if row.is_right else "**no**"
        cells = (row.layer, right, row.num_breaks, row.num_programs, row.edge_columns, ratio, row.why.replace("|", "/"))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", nargs="*", help="names, or beginnings of names")
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--edges", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="0: only the check on a small graph")
    parser.add_argument("--markdown")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    large = make_graph(arguments.nodes, arguments.edges, arguments.width)
    rows = []
    for name in LAYERS:
        if arguments.layers and not any(name.startswith(item) for item in arguments.layers):
            continue
        rows.append(examine(name, large, arguments.rounds))
        print(as_markdown(rows[-1:]).splitlines()[-1], flush=True)
    table = as_markdown(rows)
    if arguments.markdown:
        pathlib.Path(arguments.markdown).write_text(table + "\n")
    ratios = [row.ratio for row in rows if row.ratio]
    num_right = sum(row.is_right for row in rows)
    mean = f"; geometric mean {statistics.geometric_mean(ratios):.2f} times faster than eager" if ratios else ""
    print(f"\n{num_right} of {len(rows)} right{mean}")


if __name__ == "__main__":
    main()
