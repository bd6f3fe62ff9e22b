"""Writes to rows go into the tensor at hand, and only where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.capture.inplace import WRITES, write_in_place
from tests.capture.compiled import compiled
from tests.check import assert_matches_eager
from tests.passes.tracing import numbers, traced

N = 6
X = numbers(N, 3)
INDEX = torch.tensor([0, 2, 5])


def num_writes(function: Callable[..., Any], *inputs: Any) -> tuple[int, int]:
    """Writes in place and copies of the graph, which still gives the numbers of `function`."""
    graph_module = traced(function, *inputs)
    write_in_place(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    kept = [item.clone() for item in inputs]
    got, want = graph_module(*inputs), function(*inputs)
    for a, b in zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))
    targets = [node.target for node in graph_module.graph.nodes]
    return sum(item in WRITES.values() for item in targets), sum(item in WRITES for item in targets)


def test_rows_written_one_part_after_the_other_copy_nothing() -> None:
    def parts(x: Tensor, i: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[i] = x[i] * 2
        return out.index_copy(0, i - 1, x[i]).index_fill(0, i, 3.0)

    assert num_writes(parts, X, INDEX.clamp(min=1)) == (3, 0)


COPIES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "an input": lambda x, i: x.index_copy(0, i, x[i] * 2),
    "a view of an input": lambda x, i: x.view(-1, 3).index_copy(0, i, x[i] * 2),
    "read later": lambda x, i: (lambda base: base.index_copy(0, i, x[i]) + base)(x.clone()),
    "returned": lambda x, i: (lambda base: (base, base.index_copy(0, i, x[i] * 2)))(x.clone()),
    "seen through a view": lambda x, i: (lambda base: (lambda part: base.index_copy(0, i, x[i] * 2) + part)(base[:1]))(
        x.clone()
    ),
    "written by itself": lambda x, i: (lambda base: base.index_copy(0, i.flip(0), base[:3]))(x.clone()),
    "its own rows": lambda x, i: (lambda base: base.index_copy(0, torch.arange(5, -1, -1), base))(x.clone()),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_stays_where_somebody_could_tell(name: str) -> None:
    assert num_writes(COPIES[name], X, INDEX) == (0, 1)


def test_a_layer_with_weights_by_degree_matches_eager() -> None:
    def by_kind(x: Tensor, kind: Tensor, weights: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], weights.shape[2])
        for number in range(weights.shape[0]):
            rows = (kind == number).nonzero().view(-1)
            out.index_copy_(0, rows, x.index_select(0, rows) @ weights[number])
        return out

    x, weights = numbers(N, 3, seed=1).requires_grad_(), numbers(2, 3, 4, seed=2).requires_grad_()
    assert_matches_eager(by_kind, x, torch.tensor([0, 1, 0, 0, 1, 1]), weights, compile=compiled, num_steps=2)


def test_slices_written_one_after_the_other_copy_nothing() -> None:
    def interleaved(x: Tensor) -> Tensor:
        out = torch.empty(2 * x.shape[0], 3)
        out[0::2] = x * 2
        out[1::2] = x.abs()
        return out

    assert num_writes(interleaved, X) == (2, 0)


def test_the_rows_of_a_write_are_not_overwritten_before_it() -> None:
    def shifted(x: Tensor) -> Tensor:
        rows = x.clone()
        out = torch.zeros(2 * x.shape[0], 3)
        out[0::2] = rows
        rows[0] = 7.0
        return out + rows.sum()

    assert num_writes(shifted, X) == (1, 1)


def test_four_neighbours_of_every_edge_match_eager() -> None:
    """As in MeshCNN: messages are read, and written, every fourth row."""

    def mesh(x: Tensor, src: Tensor, dst: Tensor, weight: Tensor) -> Tensor:
        rows = x.index_select(0, src)
        out = torch.empty(4 * x.shape[0], weight.shape[1])
        out[0::4] = (rows[0::4] - rows[2::4]).abs() @ weight
        out[1::4] = rows[0::4] + rows[2::4]
        out[2::4] = (rows[1::4] - rows[3::4]).abs() @ weight
        out[3::4] = rows[1::4] + rows[3::4]
        return torch.zeros_like(x).index_add(0, dst, out)

    x, weight = numbers(N, 3, seed=1).requires_grad_(), numbers(3, 3, seed=2).requires_grad_()
    src, dst = torch.tensor([0, 5, 5, 1] * N), torch.arange(4 * N) % N
    assert_matches_eager(mesh, x, src, dst, weight, compile=compiled, num_steps=2)
