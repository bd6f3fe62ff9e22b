"""A training step with edge scalars cached by the forward, recomputed in the backward, and as the planner chooses.

usage: python benchmarks/edge_scalars.py [--graphs cora-sized 20k/1M 400k/4M] [--models gat ...] [--rounds 9]

The three take turns in one process. The planner's choice should never take more than 1/0.95 of the faster fixed plan.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv

from plait.capture.record import RECORDS
from plait.config import EDGE_SCALARS
from plait.tools import generate

WIDTH, EDGE_WIDTH, HEADS = 128, 16, 4
GRAPHS = {"cora-sized": (2_708, 10_556), "20k/1M": (20_000, 1_000_000), "400k/4M": (400_000, 4_000_000)}


class GatedMLP(nn.Module):
    """Messages from an MLP of both ends and their squared distance, weighted by a gate of the message, as in EGNN."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * WIDTH + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.gate = nn.Sequential(nn.Linear(hidden, 1), nn.Sigmoid())

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst = edge_index
        distance = (x[src] - x[dst]).pow(2).sum(-1, keepdim=True)
        message = self.message(torch.cat([x[dst], x[src], distance], -1))
        return x.new_zeros(x.shape[0], message.shape[1]).index_add(0, dst, self.gate(message) * message)


class SharedGate(nn.Module):
    """A weight per edge and head, made by an MLP of the edge's features, that some layers have in common."""

    def __init__(self, num_layers: int, hidden: int = 64) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(EDGE_WIDTH, hidden), nn.SiLU(), nn.Linear(hidden, HEADS), nn.Sigmoid())
        self.lins = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(num_layers))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst = edge_index
        gate = self.gate(edge_attr).unsqueeze(-1)
        for lin in self.lins:
            h = torch.relu(lin(x)).view(-1, HEADS, WIDTH // HEADS)
            x = torch.zeros_like(h).index_add(0, dst, h[src] * gate).flatten(1)
        return x


class OfNodes(nn.Module):
    """A layer that takes no features of edges."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        result: Tensor = self.layer(x, edge_index)
        return result


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GAT, 4 x 32": lambda: OfNodes(GATConv(WIDTH, 32, heads=HEADS)),
    "GATv2, 4 x 64": lambda: OfNodes(GATv2Conv(WIDTH, 64, heads=HEADS)),
    "gated messages (EGNN), 64": lambda: GatedMLP(64),
    "edge MLP, 3 layers share it": lambda: SharedGate(3),
}


def step_of(make: Callable[[], nn.Module], plan: str, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], None], int]:
    """A training step that has run once, and the bytes it keeps."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = make()
    compiled = torch.compile(model, backend="plait", options={"edge_scalars": plan})
    gradient = torch.ones_like(compiled(*inputs))
    prediction = RECORDS[-1].prediction
    assert prediction is not None
    leaves = [inputs[0], *model.parameters()]

    def step() -> None:
        torch.autograd.grad(compiled(*inputs), leaves, gradient)

    step()
    return step, prediction.kept_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), choices=list(GRAPHS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="beginnings of names")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print("| layer | graph | cached | recomputed | kept, cached | kept, recomputed | the planner's | against the faster |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for graph in arguments.graphs:
        num_nodes, num_edges = GRAPHS[graph]
        generator = torch.Generator().manual_seed(2)
        x = generate.features(num_nodes, WIDTH, seed=1).requires_grad_()
        edges = generate.powerlaw_edges(num_nodes, num_edges, seed=0)
        inputs = x, edges, torch.randn(edges.shape[1], EDGE_WIDTH, generator=generator)
        for name in MODELS:
            if not name.startswith(tuple(arguments.models)):
                continue
            runs = {plan: step_of(MODELS[name], plan, inputs) for plan in EDGE_SCALARS}
            times: dict[str, list[float]] = {plan: [] for plan in runs}
            for number in range(arguments.rounds):
                for plan in EDGE_SCALARS[number % 3 :] + EDGE_SCALARS[: number % 3]:
                    start = time.perf_counter()
                    runs[plan][0]()
                    times[plan].append(time.perf_counter() - start)
            took = {plan: 1e3 * statistics.median(times[plan]) for plan in EDGE_SCALARS}
            kept = {plan: run[1] for plan, run in runs.items()}
            choice = "recomputed" if kept["auto"] == kept["recomputed"] else "cached"
            if kept["cached"] == kept["recomputed"]:
                choice = "nothing to choose"
            elif kept["auto"] not in (kept["cached"], kept["recomputed"]):
                choice = "some cached"
            print(
                f"| {name} | {graph} | {took['cached']:.1f} ms | {took['recomputed']:.1f} ms | {kept['cached'] / 1e6:.1f} MB "
                f"| {kept['recomputed'] / 1e6:.1f} MB | {choice}, {took['auto']:.1f} ms "
                f"| {min(took['cached'], took['recomputed']) / took['auto']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
