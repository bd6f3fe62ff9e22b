"""GIN and SchNet on molecules: batches of 128 graphs from PyG's DataLoader, every batch of other sizes.

    python benchmarks/molecules.py --data DIR/graphclass/mol_hiv.npz

Engines take turns on the same batches; a step is forward, backward and, as every batch is a new graph, the building of its
adjacency: plait forgets all graphs before each round, and the script checks that it built one for every batch. Outputs and
gradients are compared with eager first. Sizes are marked dynamic, and a compiler that captures more than one graph is an error.
SchNet gets the bonds as edges and random positions.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINConv, SchNet, global_add_pool

import plait
from plait.structure_cache import STRUCTURE

BATCH = 128


class Gin(nn.Module):
    def __init__(self, channels: int, width: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        sizes = [channels, *[width] * num_layers]
        self.layers = nn.ModuleList(
            GINConv(nn.Sequential(nn.Linear(a, width), nn.ReLU(), nn.Linear(width, width)))
            for a in sizes[:-1]
        )  # fmt: skip
        self.out = nn.Linear(width, 1)

    def forward(self, batch: Any) -> Tensor:
        x = batch.x
        for layer in self.layers:
            x = layer(x, batch.edge_index).relu()
        result: Tensor = self.out(global_add_pool(x, batch.batch, BATCH))
        return result


class Filters(nn.Module):
    """PyG's SchNet with the bonds as its edges."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edge_index: Tensor
        self.net = SchNet(hidden_channels=64, num_filters=64, num_interactions=3, interaction_graph=self.bonds)

    def bonds(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = self.edge_index
        return self.edge_index, (pos[src] - pos[dst]).norm(dim=-1)

    def forward(self, batch: Any) -> Tensor:
        self.edge_index = batch.edge_index
        result: Tensor = self.net(batch.kind, batch.pos, batch.batch)
        return result


def molecules(path: pathlib.Path, count: int) -> list[Data]:
    """Molecules of at least two atoms and one bond, with random positions."""
    arrays = dict(np.load(path))
    nodes, bonds = arrays["graph_ptr"], arrays["edge_ptr"]
    draw = torch.Generator().manual_seed(0)
    found = []
    for number in range(len(nodes) - 1):
        bond = torch.from_numpy(arrays["edge_local"][:, bonds[number] : bonds[number + 1]].astype(np.int64))
        rows = torch.from_numpy(arrays["x"][nodes[number] : nodes[number + 1]].astype(np.int64))
        if bond.shape[1] == 0:
            continue
        kind, pos = rows[:, 0].clamp(max=99), torch.randn(len(rows), 3, generator=draw)
        found.append(Data(x=rows.float(), kind=kind, pos=pos, edge_index=torch.cat([bond, bond.flip(0)], 1)))
        if len(found) == count:
            break
    return found


def step(model: nn.Module, run: Callable[..., Tensor], batch: Any) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    out = run(batch)
    out.square().mean().backward()
    found = {name: item.grad for name, item in model.named_parameters() if item.grad is not None}
    return {"output": out.detach(), **found}


def captures() -> int:
    """Graphs that Dynamo has captured in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def measure(make: Callable[[], nn.Module], batches: list[Any], rounds: int, engines: list[str]) -> dict[str, list[float]]:
    """Seconds of every step by engine, after two batches to compile on; AssertionError if anything is compiled after these."""
    torch.manual_seed(0)
    eager = make()
    models = {name: copy.deepcopy(eager) for name in engines}
    runs: dict[str, Callable[..., Tensor]] = {name: models[name] for name in engines}
    if "inductor" in runs:
        runs["inductor"] = torch.compile(models["inductor"], dynamic=True)
    if "plait" in runs:
        runs["plait"] = plait.compile(models["plait"], dynamic=True)
    for name, run in runs.items():
        before = captures()
        for batch in batches[:2]:
            want, got = step(eager, eager, batch), step(models[name], run, batch)
            for key, value in want.items():
                allowed = 1e-3 * float(value.abs().max()) + 1e-6
                assert float((got[key] - value).abs().max()) <= allowed, f"{name}, {key} differs from eager"
        assert captures() - before == (name != "eager"), f"{name} captured {captures() - before} graphs"
    before = captures()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        STRUCTURE.clear()  # index maps, degrees and orderings: every batch of an epoch is a graph not seen before
        for batch in batches:
            for name, run in runs.items():
                begin = time.perf_counter()
                step(models[name], run, batch)
                times[name].append(time.perf_counter() - begin)
        assert "plait" not in runs or STRUCTURE.stats().misses >= len(batches), "a graph was known from before"
    assert captures() == before, "compiled again"
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a molecule file, as graphclass/mol_hiv.npz")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="*", default=["GIN", "SchNet"], choices=["GIN", "SchNet"])
    parser.add_argument("--engines", nargs="*", default=["eager", "inductor", "plait"], choices=["eager", "inductor", "plait"])
    arguments = parser.parse_args()
    data = molecules(arguments.data, BATCH * arguments.batches)
    torch.manual_seed(0)
    batches = list(DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True))
    channels = data[0].x.shape[1]
    sizes = [(batch.num_nodes, batch.num_edges) for batch in batches]
    print(f"{len(batches)} batches of {min(sizes)} to {max(sizes)} nodes and edges, {torch.get_num_threads()} threads")
    for name, make in (("GIN", lambda: Gin(channels)), ("SchNet", lambda: Filters(channels))):
        if name not in arguments.models:
            continue
        torch._dynamo.reset()
        found = measure(make, batches, arguments.rounds, arguments.engines)
        quartiles = {engine: statistics.quantiles(items, n=4) for engine, items in found.items()}
        text = [f"{engine} {1e3 * b:.1f} ms ({1e3 * a:.1f} to {1e3 * c:.1f})" for engine, (a, b, c) in quartiles.items()]
        ratios = [
            f"{quartiles[other][1] / quartiles['plait'][1]:.2f} times faster than {other}"
            for other in quartiles
            if "plait" in quartiles and other != "plait"
        ]
        print(f"{name}: {', '.join(text)}; plait is {' and '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
