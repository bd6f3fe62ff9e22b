"""Graphs and tensors for the tests of generated kernels, and the comparison with the interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plait import graph
from plait.codegen import Kernel
from plait.graph import Ordering
from plait.ir.interpret import interpret
from plait.ir.program import Program


@dataclass(frozen=True)
class Case:
    """rows [E]: the ordering map; cols [E]: the other one, into `num_cols` rows."""

    name: str
    rows: Tensor
    cols: Tensor
    num_rows: int
    num_cols: int

    @property
    def num_edges(self) -> int:
        return self.rows.numel()

    def ordering(self, program: Program) -> Ordering:
        others = [(self.cols, self.num_cols)] * len(program.maps)
        if not program.ordered:
            return graph.natural(self.num_edges, others)
        return graph.ordered(self.rows, self.num_rows, others, with_edge_id=program.needs_edge_position())


def _random(name: str, num_rows: int, num_cols: int, num_edges: int, seed: int) -> Case:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, max(num_rows - 4, 1), (num_edges,), generator=draw)  # the last rows stay empty
    return Case(name, rows, torch.randint(0, num_cols, (num_edges,), generator=draw), num_rows, num_cols)


def _hub() -> Case:
    case = _random("hub", 30, 40, 700, 3)
    return Case("hub", torch.where(torch.arange(700) % 3 > 0, 7, case.rows), case.cols, 30, 40)


EMPTY = torch.zeros(0, dtype=torch.int64)
CASES = (
    Case("no_edges", EMPTY, EMPTY, 5, 6),
    Case("nothing", EMPTY, EMPTY, 0, 0),
    Case("one_edge", torch.tensor([1]), torch.tensor([0]), 3, 1),
    Case("repeats", torch.tensor([2, 2, 2, 0, 2]), torch.tensor([1, 1, 1, 1, 3]), 4, 4),
    Case("self_loops", torch.arange(20), torch.arange(20), 20, 20),
    _random("random", 37, 23, 400, 1),
    _hub(),
)
LARGE = _random("large", 3000, 2000, 40000, 5)


def inputs(program: Program, case: Case, seed: int = 0) -> list[Tensor]:
    """Random tensors for a program's inputs. Names say what must hold: row_sum is positive, row_max large."""
    draw = torch.Generator().manual_seed(seed)
    leading = {"edge": [case.num_edges], "row": [case.num_rows], "at": [case.num_cols], "dense": []}
    found = []
    for item in program.inputs:
        size = [*leading[item.access], *item.shape]
        if item.dtype is torch.bool:
            found.append(torch.rand(size, generator=draw) > 0.5)
        elif not item.dtype.is_floating_point:
            high = 2**62 if item.name == "seed" else 4
            found.append(torch.randint(0, high, size, generator=draw).to(item.dtype))
        else:
            value = torch.randn(size, generator=draw, dtype=torch.float64).to(item.dtype)
            found.append(value.abs() + 3 if item.name in ("row_sum", "row_max") else value)
    return found


def assert_matches(kernel: Kernel, case: Case, *, tensors: list[Tensor] | None = None) -> None:
    """The kernel's outputs against the interpreter's: exact for whole numbers, to rounding for floats."""
    program = kernel.program
    tensors = inputs(program, case) if tensors is None else tensors
    ordering = case.ordering(program)
    got = kernel(tensors, ordering, case.num_rows, case.num_edges)
    expected = interpret(program, tensors, ordering)
    for output, a, b in zip(program.outputs, got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), output.name
        where = f"{program.name}, {output.name}, graph {case.name}"
        if not b.dtype.is_floating_point:
            assert torch.equal(a, b), where
            continue
        # sums are reassociated: the error grows with the largest entry, not with the entry itself
        scale = float(b.nan_to_num(0, 0, 0).abs().max()) if b.numel() else 0.0
        rtol = 1e-12 if b.dtype is torch.float64 else 2e-5
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * scale, equal_nan=True, msg=lambda text: f"{where}: {text}")  # noqa: B023
