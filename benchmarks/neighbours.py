"""Layers on a matrix of neighbours, nbr [N, K], in plain PyTorch: a training step under eager, Inductor and plait.

usage: python benchmarks/neighbours.py [--nodes 20000] [--count 16] [--width 60] [--rounds 9] [--layers NAME ...]
       [--no-inductor]

The layers are those of the tests (`tests/neighbour_layers.py`); outputs and the gradient of x are compared with eager before
anything is timed. Medians of steps (forward and backward) in rotating turns, warmed up.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

import plait

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from tests import neighbour_layers

Run = Callable[[Tensor, Tensor], Tensor]


def step(run: Run, x: Tensor, nbr: Tensor) -> tuple[float, Tensor, Tensor]:
    """Seconds, output, gradient of x."""
    x.grad = None
    begin = time.perf_counter()
    out = run(x, nbr)
    out.backward(torch.ones_like(out))
    seconds = time.perf_counter() - begin
    assert x.grad is not None
    return seconds, out.detach(), x.grad


def is_same(got: Tensor, want: Tensor) -> bool:
    """By norms: of two entries that differ by rounding either may be the largest, and gets the gradient."""
    return bool((got - want).norm() <= 1e-3 * want.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=16, help="neighbours of each node")
    parser.add_argument("--width", type=int, default=60, help="columns of x, a multiple of 6")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", nargs="*")
    parser.add_argument("--no-inductor", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    neighbour_layers.C = arguments.width
    found = neighbour_layers.layers()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.nodes, arguments.width, generator=generator, requires_grad=True)
    nbr = torch.randint(arguments.nodes, (arguments.nodes, arguments.count), generator=generator)
    names = ["eager", "plait"] if arguments.no_inductor else ["eager", "inductor", "plait"]
    print(f"{arguments.nodes} nodes, {arguments.count} neighbours, width {arguments.width}, {torch.get_num_threads()} threads")
    print(f"{'layer':26}" + "".join(f"{name:>12}" for name in names) + "   times faster than eager, Inductor")
    for name in arguments.layers or found:
        model = found[name]
        torch._dynamo.reset()
        runs: dict[str, Run] = {"eager": model, "inductor": torch.compile(model), "plait": plait.compile(model)}
        _, *want = step(model, x, nbr)
        for engine in names:
            for _ in range(3):
                _, *got = step(runs[engine], x, nbr)
            if not all(map(is_same, got, want)):
                print(f"{name}: {engine} is not eager's")
        times: dict[str, list[float]] = {engine: [] for engine in names}
        order = collections.deque(names)
        for _ in range(arguments.rounds):
            for engine in order:
                times[engine].append(step(runs[engine], x, nbr)[0])
            order.rotate(1)
        medians = {engine: statistics.median(items) for engine, items in times.items()}
        ratios = ", ".join(f"{medians[engine] / medians['plait']:.1f}" for engine in names[:-1])
        print(f"{name:26}" + "".join(f"{1e3 * medians[engine]:9.1f} ms" for engine in names) + f"   {ratios}", flush=True)


if __name__ == "__main__":
    main()
