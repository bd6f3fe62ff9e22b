"""A (X W) or (A X) W: the order plait chooses against both fixed orders and PyTorch Geometric's own, 2-layer GCN and SAGE.

usage: python benchmarks/order.py [--data DIR] [--hidden 8 32 128 ...] [--models gcn sage] [--rounds 5] [--json FILE]

All orders run in plait, in one process, taking turns; "as written" is PyTorch Geometric's: products first in GCN, behind in
SAGE. Graphs: the shape of ogbn-arxiv and a dense one, generated; with --data also PubMed and Coauthor CS. Features get no
gradient, as in training; the first layer's weight does.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from plait.config import ORDERS
from plait.tools import generate
from plait.tools.npz import NpzFile, read_edges, read_features

HIDDEN = (8, 16, 32, 64, 128, 256, 512, 1024)
MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "gcn": lambda a, b: pyg.GCNConv(a, b),
    "sage": lambda a, b: pyg.SAGEConv(a, b),
}
FIXED = ("first", "behind")


@dataclass(frozen=True)
class Data:
    name: str
    x: Tensor
    edge_index: Tensor
    num_classes: int


class TwoLayers(nn.Module):
    def __init__(self, make: Callable[[int, int], nn.Module], widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.first, self.second = make(*widths[:2]), make(*widths[1:])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        result: Tensor = self.second(torch.relu(self.first(x, edge_index)), edge_index)
        return result


def generated(name: str, num_nodes: int, num_edges: int, width: int, num_classes: int) -> Data:
    edges = generate.powerlaw_edges(num_nodes, num_edges, seed=0)
    return Data(name, generate.features(num_nodes, width, seed=1), edges, num_classes)


def data_sets(directory: str | None) -> Iterator[Data]:
    yield generated("arxiv-sized", 169_343, 2_332_486, 128, 40)
    yield generated("20k/1M", 20_000, 1_000_000, 128, 40)
    for name, path in (("pubmed", "planetoid/pubmed.npz"), ("coauthor_cs", "nodeclass/coauthor_cs.npz")):
        if directory is None:
            continue
        file = NpzFile(pathlib.Path(directory) / path)
        edge_index, num_nodes = read_edges(file)
        x = read_features(file, num_nodes)
        assert x is not None
        yield Data(name, x, edge_index, 3 if name == "pubmed" else 15)


def steps(model: nn.Module, data: Data, order: str) -> dict[str, Callable[[], Any]]:
    """A training step and an inference of the model under one order."""
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="plait", options={"order": order})
    cotangent = torch.randn(len(data.x), data.num_classes, generator=torch.Generator().manual_seed(0))

    def train() -> Tensor:
        model.zero_grad()
        out: Tensor = compiled(data.x, data.edge_index)
        out.backward(cotangent)
        return out.detach()

    def infer() -> Tensor:
        with torch.no_grad():
            out: Tensor = compiled(data.x, data.edge_index)
        return out

    return {"train": train, "infer": infer}


def measure(name: str, data: Data, hidden: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds by kind and order. Every order is checked against the one as written."""
    torch.manual_seed(0)
    model = TwoLayers(MODELS[name], (data.x.shape[1], hidden, data.num_classes))
    runs = {order: steps(model, data, order) for order in ORDERS}
    medians: dict[str, dict[str, float]] = {}
    for kind in ("train", "infer"):
        expected = None
        for order in ("as_written", *ORDERS):
            result = runs[order][kind]()
            expected = result if expected is None else expected
            difference = ((result - expected).abs().max() / expected.abs().max()).item()
            if not difference < 1e-4:
                raise SystemExit(f"{name} on {data.name}, hidden {hidden}: order {order} is wrong by {difference:.1e}")
        times: dict[str, list[float]] = {order: [] for order in ORDERS}
        for number in range(rounds):
            for order in ORDERS[number % len(ORDERS) :] + ORDERS[: number % len(ORDERS)]:
                start = time.perf_counter()
                runs[order][kind]()
                times[order].append(time.perf_counter() - start)
        medians[kind] = {order: statistics.median(samples) for order, samples in times.items()}
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", help="directory of .npz files")
    parser.add_argument("--graphs", nargs="*", help="names; default: all there are")
    parser.add_argument("--hidden", nargs="+", type=int, default=HIDDEN)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rows = []
    print("| graph | model | hidden | | first | behind | auto | auto against the better | auto against as written |")
    print("|---|---|---|---|---|---|---|---|---|")
    for data in data_sets(arguments.data):
        if arguments.graphs and data.name not in arguments.graphs:
            continue
        for name in arguments.models:
            for hidden in arguments.hidden:
                for kind, found in measure(name, data, hidden, arguments.rounds).items():
                    better = min(found[order] for order in FIXED) / found["auto"]
                    written = found["as_written"] / found["auto"]
                    cells = " | ".join(f"{1e3 * found[order]:.1f} ms" for order in (*FIXED, "auto"))
                    print(f"| {data.name} | {name} | {hidden} | {kind} | {cells} | {better:.2f} | {written:.2f} |", flush=True)
                    rows.append({"graph": data.name, "model": name, "hidden": hidden, "kind": kind, **found})
                if arguments.json:
                    pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1))
    ratios = [row["as_written"] / row["auto"] for row in rows]
    worst = min(min(row[order] for order in FIXED) / row["auto"] for row in rows)
    print(f"\nagainst as written: geometric mean {statistics.geometric_mean(ratios):.2f}, largest {max(ratios):.2f}")
    print(f"against the better fixed order: never below {worst:.2f}")


if __name__ == "__main__":
    main()
