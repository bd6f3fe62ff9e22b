"""Products inside of edge programs: how fast they are beside `torch.mm`, and what layers with message MLPs take.

usage: python benchmarks/tiles.py products
       python benchmarks/tiles.py layers [--layers EdgeConv CGConv] [--nodes 20000] [--edges 1000000] [--width 64] [--rounds 5]

`products`: the blocked product of generated kernels on tiles of 96 edges, and `torch.mm` on the same shapes; one thread, in
GFLOPS. `layers`: a training step (forward and backward, a fixed gradient of the output) of the eager model and of the compiled
one, each in a process of its own that has run on a small graph before; the median of the rounds, and by how much the step
raised the process's peak of resident memory.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

import plait
from plait.codegen.kernel import prelude
from plait.codegen.target import native_target
from plait.native import library

TILE = 96
SHAPES = [(64, 64), (128, 128), (32, 32), (16, 128), (128, 16), (100, 100), (256, 256), (500, 500), (3, 64), (64, 1)]


# --- products --------------------------------------------------------------------------------------------------------


def products() -> None:
    lanes = native_target().lanes(torch.float32)
    functions = [
        f"""extern "C" void multiply_{f}_{g}(const f32* a, const f32* w, f32* packed, f32* c, i64 count) {{
  pack<f32x{lanes}, {f}, {g}>(packed, w, {g}, 1);
  for (i64 i = 0; i < count; ++i) {{
    multiply<f32x{lanes}, {f}, {g}>(a, {f}, packed, c, {-(-g // lanes) * lanes}, {TILE});
    asm volatile("" ::"r"(c) : "memory");
  }}
}}
extern "C" void add_outer_{f}_{g}(const f32* a, const f32* c, f32* total, i64 count) {{
  const i64 stride = {-(-g // lanes) * lanes};
  for (i64 i = 0; i < count; ++i) {{
    add_outer<f32x{lanes}, {f}, {g}>(a, {f}, c, stride, total, stride, {TILE});
    asm volatile("" ::"r"(total) : "memory");
  }}
}}"""
        for f, g in SHAPES
    ]
    built = library.build("\n".join([prelude(with_products=True), *functions]), "tiles").result()
    torch.set_num_threads(1)
    print(f"GFLOPS on tiles of {TILE} edges, one thread")
    print(f"{'F':>5} {'G':>5} {'product':>9} {'torch.mm':>9} {'share':>6} {'gradient':>9} {'torch.mm':>9} {'share':>6}")
    for f, g in SHAPES:
        padded = -(-g // lanes) * lanes
        a, w, c = torch.randn(TILE + 16, f), torch.randn(f, g), torch.empty(TILE, padded)
        packed, total = torch.empty(f * padded), torch.zeros(f + 16, padded)
        count = max(int(1e9 / (2 * TILE * f * g)), 10)
        flops = 2.0 * TILE * f * g * count
        multiply, outer = getattr(built, f"multiply_{f}_{g}"), getattr(built, f"add_outer_{f}_{g}")
        size = ctypes.c_int64(count)
        pointers = [ctypes.c_void_p(item.data_ptr()) for item in (a, w, packed, c, total)]
        own = flops / best_s(lambda: multiply(*pointers[:4], size))  # noqa: B023
        own_outer = flops / best_s(lambda: outer(pointers[0], pointers[3], pointers[4], size))  # noqa: B023
        tile, out = a[:TILE].contiguous(), torch.empty(TILE, g)
        grad, gradient = torch.randn(TILE, g), torch.zeros(f, g)
        theirs = flops / best_s(lambda: [torch.mm(tile, w, out=out) for _ in range(count)])  # noqa: B023
        added = flops / best_s(lambda: [gradient.addmm_(tile.t(), grad) for _ in range(count)])  # noqa: B023
        rates = f"{own / 1e9:9.1f} {theirs / 1e9:9.1f} {own / theirs:6.0%} {own_outer / 1e9:9.1f} {added / 1e9:9.1f}"
        print(f"{f:5} {g:5} {rates} {own_outer / added:6.0%}")


def best_s(run: Callable[[], object], rounds: int = 5) -> float:
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return min(samples)


# --- layers ----------------------------------------------------------------------------------------------------------


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        parts += [nn.Linear(a, b), activation()]
    return nn.Sequential(*parts[:-1])


class Filter(nn.Module):
    """SchNet's continuous filter: 50 radial functions of the distance, two layers, a product with the neighbour's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = mlp(50, width, width, activation=nn.Softplus)
        self.before, self.after = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.register_buffer("centres", torch.linspace(0.0, 5.0, 50))

    def forward(self, x: Tensor, edge_index: Tensor, distance: Tensor) -> Tensor:
        src, dst = edge_index
        radial = torch.exp(-10.0 * (distance - self.centres).pow(2))
        weight = self.filter(radial) * (0.5 * (torch.cos(distance * 0.6) + 1.0))
        return self.after(torch.zeros_like(x).index_add(0, dst, self.before(x)[src] * weight))


class Equivariant(nn.Module):
    """EGNN: a message MLP of both ends and their distance, positions that move along the edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message = nn.Sequential(mlp(2 * width + 1, width, width, activation=nn.SiLU), nn.SiLU())
        self.move = mlp(width, width, 1, activation=nn.SiLU)
        self.update = mlp(2 * width, width, width, activation=nn.SiLU)

    def forward(self, x: Tensor, edge_index: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        along = pos[dst] - pos[src]
        distance = along.pow(2).sum(-1, keepdim=True)
        message = self.message(torch.cat([x[dst], x[src], distance], -1))
        moved = pos + 0.01 * torch.zeros_like(pos).index_add(0, dst, along * self.move(message))
        return self.update(torch.cat([x, torch.zeros_like(x).index_add(0, dst, message)], -1)), moved


def several_reductions(width: int) -> nn.Module:
    """PNA with four reductions and three scalers, for graphs of about 50 edges per node."""
    scalers = ["identity", "amplification", "attenuation"]
    return pyg.PNAConv(width, width, ["mean", "min", "max", "std"], scalers, torch.bincount(torch.full((1000,), 50)))


# layer by width, and what it reads beside x and edge_index: nothing, or [E or N, columns]
LAYERS: dict[str, tuple[Callable[[int], nn.Module], str | None, int]] = {
    "EdgeConv_mean": (lambda w: pyg.EdgeConv(mlp(2 * w, w, w), aggr="mean"), None, 0),
    "EdgeConv": (lambda w: pyg.EdgeConv(mlp(2 * w, w, w), aggr="max"), None, 0),
    "CGConv": (lambda w: pyg.CGConv(w, 16), "edges", 16),
    "SchNet": (Filter, "edges", 1),
    "EGNN": (Equivariant, "nodes", 3),
    "PNA": (several_reductions, None, 0),
}


def inputs(name: str, num_nodes: int, num_edges: int, width: int) -> list[Tensor]:
    torch.manual_seed(0)
    x, edge_index = torch.randn(num_nodes, width, requires_grad=True), torch.randint(num_nodes, (2, num_edges))
    _, rows, columns = LAYERS[name]
    if rows is None:
        return [x, edge_index]
    return [x, edge_index, torch.rand(num_edges if rows == "edges" else num_nodes, columns)]


def step(model: Callable[..., object], given: list[Tensor]) -> None:
    found = model(*given)
    outputs = [found] if isinstance(found, Tensor) else list(found)  # type: ignore[call-overload]
    torch.autograd.backward(outputs, [torch.ones_like(item) for item in outputs])


def resident(line: str) -> float:
    with open("/proc/self/status") as status:
        return next(float(text.split()[1]) / 1024 for text in status if text.startswith(line))


def run_one(name: str, engine: str, args: argparse.Namespace) -> None:
    """In a process of its own: seconds of every round and MB as one line of JSON."""
    torch.manual_seed(1)
    layer = LAYERS[name][0](args.width)
    model = plait.compile(layer, dynamic=True) if engine == "plait" else layer
    step(model, inputs(name, 100, 1000, args.width))
    given = inputs(name, args.nodes, args.edges, args.width)
    gc.collect()
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    samples = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        step(model, given)
        samples.append(time.perf_counter() - start)
        layer.zero_grad(set_to_none=True)
        given[0].grad = None
    print(json.dumps({"seconds": samples[1:], "first": samples[0], "mb": resident("VmHWM") - before}))


def layers(args: argparse.Namespace) -> None:
    sizes = f"{args.nodes} nodes, {args.edges} edges, width {args.width}"
    print(f"{sizes}, {torch.get_num_threads()} threads, median of {args.rounds}")
    print(f"{'layer':14} {'eager':>9} {'plait':>9} {'faster':>7} {'eager MB':>9} {'plait MB':>9} {'less':>6}")
    for name in args.layers or LAYERS:
        found = {}
        for engine in ("eager", "plait"):
            sizes = ["--nodes", args.nodes, "--edges", args.edges, "--width", args.width, "--rounds", args.rounds]
            command = [sys.executable, __file__, "one", "--layers", name, "--engine", engine, *map(str, sizes)]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            found[engine] = json.loads(lines[-1])
        eager_s, plait_s = (statistics.median(found[engine]["seconds"]) for engine in ("eager", "plait"))
        eager_mb, plait_mb = (found[engine]["mb"] for engine in ("eager", "plait"))
        speed = f"{eager_s:8.3f}s {plait_s:8.3f}s {eager_s / plait_s:6.1f}x"
        print(f"{name:14} {speed} {eager_mb:9.0f} {plait_mb:9.0f} {eager_mb / max(plait_mb, 1):5.1f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["products", "layers", "one"])
    parser.add_argument("--layers", nargs="*", choices=list(LAYERS))
    parser.add_argument("--engine", default="plait", choices=["eager", "plait"])
    for option, default in (("nodes", 20_000), ("edges", 1_000_000), ("width", 64), ("rounds", 5)):
        parser.add_argument(f"--{option}", type=int, default=default)
    args = parser.parse_args()
    if args.what == "products":
        products()
    elif args.what == "layers":
        layers(args)
    else:
        run_one(args.layers[0], args.engine, args)


if __name__ == "__main__":
    main()
