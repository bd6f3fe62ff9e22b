"""Random layers, compiled and not: the same outputs, buffers and gradients.

    python -m tests.fuzz --minutes 10              # what `make fuzz` runs: new seeds every time
    python -m tests.fuzz --seed 1234 --count 1     # one case again

Every case is compiled by `plait.compile` in strict mode, where a fallback is an error, and run on several graphs. A case that
fails is cut down to the statements that its first wrong value needs, and printed as source text.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import pathlib
import random
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import plait
from plait.errors import MemoryBudgetError
from plait.passes import shared
from tests.awkward import AWKWARD, RandomGraph, random_graph
from tests.check import TOLERANCES, Numbers, assert_same_numbers, assert_same_step, finite, magnitude_of, training_step
from tests.random_layers import random_model
from tests.random_models import RandomModel, inputs_for, module_of

# Sizes of 0 and 1 are compiled on their own, and most layers do nothing interesting there: one case in eight has them.
TINY = tuple(name for name, graph in AWKWARD.items() if min(graph.num_nodes, graph.num_edges) < 2)
GRAPHS = {name: graph for name, graph in AWKWARD.items() if name not in TINY} | {"other": random_graph(50, 120, 6)}


@dataclass(frozen=True)
class Case:
    """A model, and how it is run."""

    source: str
    graphs: tuple[str, ...]
    dtype: torch.dtype = torch.float64
    index_dtype: torch.dtype = torch.int64
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0
    stores: bool = False  # whether all is written that two programs make, which models of many layers have

    def inputs(self, graph: RandomGraph, dtype: torch.dtype | None = None, *, long: bool = False) -> tuple[Tensor, ...]:
        return inputs_for(graph, self.seed, dtype or self.dtype, torch.int64 if long else self.index_dtype)

    def module(self, dtype: torch.dtype | None = None) -> nn.Module:
        return module_of(self.source, self.seed).to(dtype or self.dtype)


def random_case(seed: int) -> tuple[RandomModel, Case]:
    rng = random.Random(seed)
    index_dtype = torch.int32 if rng.random() < 0.15 else torch.int64
    model = random_model(seed, short_indices=index_dtype is torch.int32)
    graphs = [rng.choice(sorted(GRAPHS)) for _ in range(3)]
    if rng.random() < 0.125:
        graphs.insert(rng.randrange(3), rng.choice(TINY))
    dtype = torch.float32 if rng.random() < 0.3 else torch.float64
    options: dict[str, Any] = {}
    if rng.random() < 0.2:
        options["order"] = rng.choice(("as_written", "first", "behind"))
    if rng.random() < 0.1:
        options["rest"] = rng.choice(("eager", "inductor"))
    if rng.random() < 0.15:
        options["edge_scalars"] = rng.choice(("cached", "auto"))
    if rng.random() < 0.1:
        options["memory_budget"] = 1  # the smallest there is, see `_Compiled`
    stores = rng.random() < 0.3
    return model, Case(model.source(), tuple(dict.fromkeys(graphs)), dtype, index_dtype, tuple(options.items()), seed, stores)


def mismatch(case: Case) -> str:
    """What differs between the compiled and the un-compiled model, or how compiling fails; nothing if all is well."""
    with patch.multiple(shared, MIN_PROGRAMS=2, MARGIN=0.0) if case.stores else contextlib.nullcontext():
        return _mismatch(case)


def _mismatch(case: Case) -> str:
    torch._dynamo.reset()
    model = case.module()
    start = copy.deepcopy(model.state_dict())
    compiled = _Compiled(model, dict(case.options))
    for name in case.graphs:
        graph = (AWKWARD | GRAPHS)[name]
        try:
            want = training_step(case.module(), None, case.inputs(graph, long=True))
        except (RuntimeError, ValueError, IndexError):  # some operators refuse empty tensors
            continue
        model.load_state_dict(start)
        try:
            got = compiled.step(case.inputs(graph))
        except Exception:  # noqa: BLE001 (whatever it is, it was looked for)
            return f"graph {name}: {traceback.format_exc()}"
        difference = _difference(case, graph, got, want)
        if difference:
            return f"graph {name}: {difference}"
    return ""


class _Compiled:
    """A compiled model whose budget, if it has one, grows to what each graph needs at least."""

    def __init__(self, model: nn.Module, options: dict[str, Any]) -> None:
        self.model = model
        self.options = options
        self.call = plait.compile(model, dynamic=True, **options)

    def step(self, inputs: tuple[Tensor, ...]) -> Numbers:
        try:
            return training_step(self.model, self.call, inputs)
        except MemoryBudgetError as error:
            if error.smallest <= self.options["memory_budget"]:
                raise
            return _Compiled(self.model, {**self.options, "memory_budget": error.smallest}).step(inputs)


def _difference(case: Case, graph: RandomGraph, got: Numbers, want: Numbers) -> str:
    try:
        assert_same_step(got, want)
    except AssertionError as error:
        message = str(error)
    else:
        return ""
    # Not the same to usual rounding: allowed is what rounding does to this very model. It is seen in eager PyTorch: float32
    # against float64, float64 against inputs and parameters that are changed in their last bits.
    other = _disturbed(case, graph)
    for kind in ("outputs", "gradients", "buffers"):
        values, others, found = getattr(want, kind), getattr(other, kind), getattr(got, kind)
        for name, value in values.items():
            if value is None or found[name] is None or name not in others:
                if (value is None) != (found[name] is None):
                    return message
                continue
            noise = magnitude_of(finite(value) - finite(others[name]))
            try:
                magnitude = max(_largest(want), 1e12 * noise * _SHARE[case.dtype], _rounding(want, case.dtype, graph.num_edges))
                assert_same_numbers(found[name], value, name=name, magnitude=magnitude)
            except AssertionError as error:
                return str(error)
    return ""


# `assert_same_numbers` allows `absolute * magnitude`: turned into ten times the noise that was seen.
_SHARE = {torch.float64: 10 / 1e-11 / 1e12, torch.float32: 10 / 3e-5 / 1e12}


def _largest(want: Numbers) -> float:
    return 0.05 * max((magnitude_of(item) for item in want.gradients.values() if item is not None), default=0.0)


def _rounding(want: Numbers, dtype: torch.dtype, num_edges: int) -> float:
    """The last bits of the largest output, for gradients that are nothing but what cancels (softmax over equal entries is one
    over their number, whatever they are): eager may get exactly 0, and another order of the same sum its rounding. A node's
    gradient is a sum of as many terms as it has edges, each of them rounded: so many last bits, and 50 at least."""
    largest = max((magnitude_of(item) for item in want.outputs.values()), default=0.0)
    return max(50, num_edges) * torch.finfo(dtype).eps * largest / TOLERANCES[dtype].absolute


def _disturbed(case: Case, graph: RandomGraph) -> Numbers:
    if case.dtype is torch.float32:
        return training_step(case.module(torch.float64), None, case.inputs(graph, torch.float64, long=True))
    draw = torch.Generator().manual_seed(7)

    def shaken(item: Tensor) -> Tensor:
        if not item.is_floating_point():
            return item
        noise = torch.randn(item.shape, generator=draw, dtype=item.dtype)
        return (item.detach() * (1 + 1e-15 * noise)).requires_grad_(item.requires_grad)

    model = case.module()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(shaken(parameter))
    return training_step(model, None, pytree.tree_map_only(Tensor, shaken, case.inputs(graph, long=True)))


def reduced(model: RandomModel, case: Case) -> Case:
    """The case with the first value alone that comes out wrong, on the fewest graphs that show it."""
    for item in model.statements:
        smaller = replace(case, source=model.without_unused([item.value.name]).source())
        if mismatch(smaller):
            case = smaller
            break
    for name in case.graphs:
        if mismatch(replace(case, graphs=(name,))):
            return replace(case, graphs=(name,))
    return case


def report(seed: int, case: Case, what: str) -> str:
    kind = f"{case.dtype}, {case.index_dtype}, {dict(case.options)},{' stores,' * case.stores} graphs {', '.join(case.graphs)}"
    return f"seed {seed}: {kind}\n\n{case.source}\n{what}\n"


def run(seed: int, *, reduce: bool = True) -> str:
    """The case of a seed: what is wrong with it, as a report; nothing if all is well."""
    model, case = random_case(seed)
    what = mismatch(case)
    if not what:
        return ""
    if reduce:
        smaller = reduced(model, case)
        case, what = smaller, mismatch(smaller) or what
    return report(seed, case, what)


def main() -> int:
    parser = argparse.ArgumentParser(description="Random layers, compiled and not.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="the first seed; the next ones follow (default: by the clock)")
    parser.add_argument("--count", type=int, default=sys.maxsize, help="at most so many cases")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/fuzz"), help="where reports go")
    arguments = parser.parse_args()
    os.environ["PLAIT_STRICT"] = "1"
    warnings.simplefilter("ignore")
    seed = arguments.seed if arguments.seed is not None else time.time_ns() // 1_000_000
    began, count, failures = time.monotonic(), 0, 0
    with torch._dynamo.config.patch(specialize_float=True):
        while count < arguments.count and time.monotonic() - began < 60 * arguments.minutes:
            found = run(seed + count)
            if found:
                failures += 1
                arguments.out.mkdir(parents=True, exist_ok=True)
                (arguments.out / f"{seed + count}.txt").write_text(found)
                sys.stdout.write(found)
                sys.stdout.flush()
            count += 1
    sys.stdout.write(f"{count} random layers from seed {seed}, {failures} wrong, {time.monotonic() - began:.0f} s\n")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
