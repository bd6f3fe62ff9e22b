"""What is written and read slice by slice: laws, and where they do not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from plait import operators
from plait.passes.canonicalize import canonicalize
from plait.passes.edit import aten
from plait.passes.places import resolve_places
from tests.passes.tracing import numbers, traced

X = numbers(8, 3)
Y, Z = numbers(4, 3, seed=1), numbers(4, 3, seed=2)
INDEX = torch.tensor([0, 5, 5, 1, 7, 2, 2, 3])


def resolved(function: Callable[..., Any], *inputs: Any) -> list[object]:
    """The targets of the calls that are left, in a graph that still gives the numbers of `function`."""
    graph_module: GraphModule = traced(function, *inputs)
    canonicalize(graph_module.graph)
    resolve_places(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    torch.testing.assert_close(graph_module(*inputs), function(*inputs), rtol=0, atol=0)
    return [node.target for node in graph_module.graph.nodes if node.op == "call_function"]


def test_a_slice_of_writes_reads_what_was_written_there() -> None:
    def one(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        out = torch.slice_scatter(torch.slice_scatter(x, y, 0, 0, None, 2), z, 0, 1, None, 2)
        return out[0::2] * 2

    assert resolved(one, X, Y, Z) == [aten.mul.Tensor]


def test_a_slice_beside_all_writes_reads_what_was_there() -> None:
    found = resolved(lambda x, y: torch.slice_scatter(x, y, 0, 4, 8)[:4] * 2, X, Y)

    assert found == [aten.slice.Tensor, aten.mul.Tensor]


@pytest.mark.parametrize(
    "read",
    [
        lambda out: out[1:5] * 2,  # some of it was written
        lambda out: out[:, :2] * 2,  # along the other axis
        lambda out: out[0::3] * 2,  # in other steps
    ],
)
def test_a_slice_that_meets_a_write_waits_for_it(read: Callable[[Tensor], Tensor]) -> None:
    found = resolved(lambda x, y: read(torch.slice_scatter(x, y, 0, 0, None, 2)), X, Y)

    assert aten.slice_scatter.default in found


def _gradients(y: Tensor, z: Tensor, starts: tuple[int, int], step: int) -> Tensor:
    parts = [
        aten.slice_backward(item, [8, 3], 0, start, start + 4 if step == 1 else 9, step)
        for item, start in zip((y, z), starts, strict=True)
    ]
    return parts[0] + parts[1]


@pytest.mark.parametrize(("starts", "step"), [((0, 1), 2), ((1, 0), 2), ((0, 4), 1)])
def test_gradients_of_slices_apart_are_written_beside_each_other(starts: tuple[int, int], step: int) -> None:
    found = resolved(lambda y, z: _gradients(y, z, starts, step), Y, Z)

    assert found == [aten.slice_backward.default, aten.slice_scatter.default]


def test_gradients_of_slices_that_overlap_are_added() -> None:
    assert aten.add.Tensor in resolved(lambda y, z: _gradients(y, z, (0, 2), 1), Y, Z)


def test_rows_gathered_to_be_sliced_are_gathered_slice_by_slice() -> None:
    def sliced(x: Tensor, index: Tensor) -> Tensor:
        rows = x.index_select(0, index)
        return rows[0::2] - rows[1::2]

    assert resolved(sliced, X, INDEX).count(operators.gather) == 2


@pytest.mark.parametrize("read", [lambda rows: rows[:7] - rows[1:], lambda rows: rows[::2].sum() + rows])
def test_rows_that_are_read_twice_are_gathered_once(read: Callable[[Tensor], Tensor]) -> None:
    assert resolved(lambda x, index: read(x.index_select(0, index)), X, INDEX).count(operators.gather) == 1
