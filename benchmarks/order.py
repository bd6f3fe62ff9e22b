"""A (X W) or (A X) W: the order plait chooses against both fixed orders and PyTorch Geometric's own, 2-layer GCN and SAGE.

usage: python benchmarks/order.py [--data DIR] [--graphs arxiv-sized ...] [--models gcn sage] [--hidden 8 32 128 ...]
       [--plans cached uncached infer] [--rounds 5] [--store FILE.json] [--part 2/9] [--minutes 9]

All orders run in plait, in one process, taking turns of some steps; "as written" is PyTorch Geometric's: products first in GCN,
behind in SAGE. Graphs: the shape of ogbn-arxiv and a dense one, generated; with --data also PubMed and Coauthor CS. Features
get no gradient, as in training; the first layer's weight does.

Plans: a training step that keeps what it likes (cached), one under the smallest `memory_budget` that all orders fit, where the
backward computes again most of what it reads (uncached), and inference. With --store, what the file has is not measured again,
and the table is of all that it has: the whole may be measured in parts, or some minutes at a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import plait
from plait.capture.record import RECORDS
from plait.config import ORDERS
from plait.errors import MemoryBudgetError
from plait.ir.text import to_text
from plait.tools import generate
from plait.tools.npz import NpzFile, read_edges, read_features

HIDDEN = (8, 16, 32, 64, 128, 256, 512, 1024)
MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "gcn": lambda a, b: pyg.GCNConv(a, b),
    "sage": lambda a, b: pyg.SAGEConv(a, b),
}
FIXED = ("first", "behind")
PLANS = ("cached", "uncached", "infer")
TURN_SECONDS, MOST_STEPS = 0.1, 10  # a turn is so long, or one step; as many steps before it are not counted
LONG_SECONDS = 1.0  # so long a step has the caches to itself: none before it needs to be left out


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


def read(name: str, path: pathlib.Path, num_classes: int) -> Data:
    file = NpzFile(path)
    edge_index, num_nodes = read_edges(file)
    x = read_features(file, num_nodes)
    assert x is not None
    return Data(name, x, edge_index, num_classes)


def graphs(directory: str | None) -> dict[str, Callable[[], Data]]:
    """What there is to measure on, made when it is wanted."""
    found: dict[str, Callable[[], Data]] = {
        "arxiv-sized": lambda: generated("arxiv-sized", 169_343, 2_332_486, 128, 40),
        "20k/1M": lambda: generated("20k/1M", 20_000, 1_000_000, 128, 40),
    }
    if directory is not None:
        root = pathlib.Path(directory)
        found["pubmed"] = lambda: read("pubmed", root / "planetoid" / "pubmed.npz", 3)
        found["coauthor_cs"] = lambda: read("coauthor_cs", root / "nodeclass" / "coauthor_cs.npz", 15)
    return found


def step_of(model: nn.Module, data: Data, plan: str, options: dict[str, Any]) -> tuple[Callable[[], Tensor], list[str]]:
    """A training step or an inference of the model, which has run once; its programs, and what it computes again."""
    cotangent = torch.randn(len(data.x), data.num_classes, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    compiled = plait.compile(model, **options)

    def train() -> Tensor:
        model.zero_grad()
        out: Tensor = compiled(data.x, data.edge_index)
        out.backward(cotangent)
        return out.detach()

    def infer() -> Tensor:
        with torch.no_grad():
            out: Tensor = compiled(data.x, data.edge_index)
        return out

    run = infer if plan == "infer" else train
    run()
    record = RECORDS[-1]
    texts = [to_text(program) for some in record.programs.values() for program in some]
    return run, [*texts, *(item.name for item in record.dropped)]


def smallest_budget(model: nn.Module, data: Data, order: str) -> int:
    """Bytes of a step that computes again whatever it can."""
    try:
        step_of(model, data, "uncached", {"order": order, "memory_budget": 1})
    except MemoryBudgetError as error:
        return error.smallest
    return 1


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, data: Data, hidden: int, plan: str, rounds: int) -> dict[str, Any]:
    """Median seconds by order, and which have the programs of the chosen one. What comes to the same programs is measured once.
    The results of all orders are compared."""
    torch.manual_seed(0)
    model = TwoLayers(MODELS[name], (data.x.shape[1], hidden, data.num_classes))
    options: dict[str, Any] = {}
    if plan == "uncached":
        options["memory_budget"] = max(smallest_budget(model, data, order) for order in (*FIXED, "auto"))
    steps = {order: step_of(model, data, plan, {"order": order, **options}) for order in ORDERS}
    alike = {order: next(other for other in ORDERS if steps[other][1] == steps[order][1]) for order in ORDERS}
    distinct = sorted(set(alike.values()))
    # in training a step follows its like: one behind a step that has filled the caches otherwise is not what is asked for
    num_steps, num_before = {}, {}
    expected: Tensor | None = None
    for order in distinct:
        start = time.perf_counter()
        out = steps[order][0]()
        taken = time.perf_counter() - start
        num_steps[order] = max(1, min(MOST_STEPS, round(TURN_SECONDS / taken)))
        num_before[order] = num_steps[order] if taken < LONG_SECONDS else 0
        expected = out if expected is None else expected
        difference = ((out - expected).abs().max() / expected.abs().max()).item()
        if not difference < 1e-4:
            raise SystemExit(
                f"{name} on {data.name}, hidden {hidden}, {plan}: {distinct[0]} and {order} differ by {difference:.1e}"
            )
    times: dict[str, list[float]] = {order: [] for order in distinct}
    for number in range(rounds):
        place = number % len(distinct)
        for order in distinct[place:] + distinct[:place]:
            for _ in range(num_before[order]):
                steps[order][0]()
            times[order] += [seconds(steps[order][0]) for _ in range(num_steps[order])]
    found: dict[str, Any] = {order: statistics.median(times[alike[order]]) for order in ORDERS}
    found["same"] = [order for order in FIXED if alike[order] == alike["auto"]]
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    """A table per graph, a line per model and hidden width, four columns per plan."""
    for graph in dict.fromkeys(row["graph"] for row in rows):
        found = {(row["model"], row["hidden"], row["plan"]): row for row in rows if row["graph"] == graph}
        plans = [plan for plan in PLANS if any(key[2] == plan for key in found)]
        heads = [f"{plan}, ms | order | over the better | over as written" for plan in plans]
        print(f"{graph}\n\n| " + " | ".join(["", *heads]) + " |\n|" + " --- |" * (1 + 4 * len(plans)))
        for model, hidden in dict.fromkeys(key[:2] for key in found):
            cells = [shown(found.get((model, hidden, plan))) for plan in plans]
            print(f"| {model.upper()}, {hidden} | " + " | ".join(cells) + " |")
        print("\n" + summary(list(found.values())) + "\n")
    print("All: " + summary(rows))


def shown(row: dict[str, Any] | None) -> str:
    if row is None:
        return " | | | "
    ratios = f"{min(row[order] for order in FIXED) / row['auto']:.2f} | {row['as_written'] / row['auto']:.2f}"
    return f"{1e3 * row['auto']:.1f} | {row['same'][0] if row['same'] else 'mixed'} | {ratios}"


def summary(rows: list[dict[str, Any]]) -> str:
    ratios = [row["as_written"] / row["auto"] for row in rows]
    worst = min(min(row[order] for order in FIXED) / row["auto"] for row in rows)
    mean, most = statistics.geometric_mean(ratios), max(ratios)
    as_written = f"over as written {mean:.2f} (geometric mean), {most:.2f} at most"
    return f"{len(rows)} cells: {as_written}; over the better fixed order at least {worst:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", help="directory of .npz files")
    parser.add_argument("--graphs", nargs="*", help="names; default: all there are")
    parser.add_argument("--hidden", nargs="+", type=int, default=HIDDEN)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--plans", nargs="+", default=PLANS, choices=PLANS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=pathlib.Path, help="results; what is there is not measured again")
    parser.add_argument("--part", default="1/1", help="K/N: the Kth of N parts of the table, nothing if it is 0")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so long")
    arguments = parser.parse_args()
    part, num_parts = map(int, arguments.part.split("/"))
    started = time.monotonic()
    makers = graphs(arguments.data)
    names = [name for name in makers if not arguments.graphs or name in arguments.graphs]
    wanted = list(itertools.product(names, arguments.models, arguments.hidden, arguments.plans))
    rows: list[dict[str, Any]] = []
    if arguments.store is not None and arguments.store.exists():
        rows = json.loads(arguments.store.read_text())
    there = {(row["graph"], row["model"], row["hidden"], row["plan"]) for row in rows}
    data: Data | None = None
    for cell in wanted[part - 1 :: num_parts] if part else []:
        if cell in there:
            continue
        if arguments.minutes is not None and time.monotonic() - started > 60 * arguments.minutes:
            print(f"stopped after {arguments.minutes:g} minutes before {cell}")
            break
        graph, model, hidden, plan = cell
        if data is None or data.name != graph:
            data = makers[graph]()
        found = measure(model, data, hidden, plan, arguments.rounds)
        print(*cell, *(f"{order} {1e3 * found[order]:.1f} ms" for order in ORDERS), "same:", *found["same"], flush=True)
        rows.append({"graph": graph, "model": model, "hidden": hidden, "plan": plan, **found})
        if arguments.store is not None:
            arguments.store.write_text(json.dumps(rows, indent=1))
    place = {cell: number for number, cell in enumerate(wanted)}
    rows = [row for row in rows if (row["graph"], row["model"], row["hidden"], row["plan"]) in place]
    if rows:
        print_table(sorted(rows, key=lambda row: place[row["graph"], row["model"], row["hidden"], row["plan"]]))


if __name__ == "__main__":
    main()
