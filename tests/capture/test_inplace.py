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


def edited(function: Callable[..., Any], *inputs: Any) -> tuple[list[Any], list[Any]]:
    """The targets of a graph's calls before and after the edit; it still gives the numbers of `function`."""
    graph_module = traced(function, *inputs)
    before = [node.target for node in graph_module.graph.nodes]
    write_in_place(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    kept = [item.clone() for item in inputs]
    got, want = graph_module(*inputs), function(*inputs)
    for a, b in zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))
    return before, [node.target for node in graph_module.graph.nodes]


def num_writes(function: Callable[..., Any], *inputs: Any) -> tuple[int, int]:
    """Writes in place, and copies."""
    _, targets = edited(function, *inputs)
    return sum(item in WRITES.values() for item in targets), sum(item in WRITES for item in targets)


def test_rows_written_one_part_after_the_other_copy_nothing() -> None:
    def parts(x: Tensor, i: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[i] = x[i] * 2
        return out.index_copy(0, i - 1, x[i]).index_fill(0, i, 3.0)

    assert num_writes(parts, X, INDEX.clamp(min=1)) == (3, 0)


SCATTERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "scatter": lambda out, x, i: out.scatter(0, i, x),
    "scatter, a number": lambda out, x, i: out.scatter(0, i, 2.0),
    "scatter_add": lambda out, x, i: out.scatter_add(0, i, x),
    "scatter_reduce": lambda out, x, i: out.scatter_reduce(0, i, x, "prod", include_self=False),
    "index_add": lambda out, x, i: out.index_add(0, i[:, 0], x, alpha=2),
    "index_reduce": lambda out, x, i: out.index_reduce(0, i[:, 0], x, "prod"),
}


@pytest.mark.parametrize("name", SCATTERS)
def test_what_is_scattered_onto_a_fresh_tensor_goes_there(name: str) -> None:
    index = INDEX[:, None].repeat(1, 3)
    index[0] = torch.tensor([2, 0, 5])  # another row in every column, and one that is written twice

    assert num_writes(lambda x, i: SCATTERS[name](torch.ones_like(x), x[:3], i), X, index) == (1, 0)
    assert num_writes(lambda x, i: SCATTERS[name](x, x[:3], i), X, index) == (0, 1)


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


def num_overwritten(function: Callable[..., Any], *inputs: Any) -> int:
    """Elementwise calls that write into what they read."""
    return sum(a is not b for a, b in zip(*edited(function, *inputs), strict=True))


SQUARE = numbers(N, N)
OVERWRITTEN: dict[str, tuple[int, Callable[[Tensor], Any]]] = {
    "a chain on a product": (4, lambda x: torch.tanh(2 * torch.relu(x @ x)).sub(x)),
    "the gradient of an activation": (1, lambda x: torch.ops.aten.threshold_backward(x @ x, x, 0)),
    "an input": (0, lambda x: torch.relu(x)),
    "an input first, its result next": (1, lambda x: torch.relu(x).tanh()),
    "returned": (0, lambda x: (lambda made: (made, torch.relu(made)))(x @ x)),
    "read later": (0, lambda x: (lambda made: torch.relu(made) @ made)(x @ x)),
    "seen through a view": (0, lambda x: (lambda made: (lambda part: (torch.relu(made), part * 2))(made[:1]))(x @ x)),
    "of another shape": (0, lambda x: (x @ x)[0] * x),
    "of another dtype": (0, lambda x: (x @ x).relu() if x.dtype is torch.int64 else (x.int() * 2.5)),
    "both operands": (0, lambda x: (lambda made: made * made)(x @ x)),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_elementwise_work_writes_into_what_it_reads_for_the_last_time(name: str) -> None:
    number, function = OVERWRITTEN[name]
    assert num_overwritten(function, SQUARE) == number


def test_steps_in_flight_do_not_write_into_each_other() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3), torch.nn.Tanh())

    def layer(x: Tensor, index: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, index, model(x)[index])

    run, index = compiled(layer), torch.tensor([0, 1, 1, 2, 5, 4])
    inputs = [numbers(N, 3, seed=seed).requires_grad_() for seed in range(2)]
    results = [run(x, index) for x in inputs]
    for x, result in zip(inputs, results, strict=True):
        want = layer(x, index)
        torch.testing.assert_close(result, want)
        (again,) = torch.autograd.grad(want.square().sum(), x)
        for _ in range(2):
            (got,) = torch.autograd.grad(result.square().sum(), x, retain_graph=True)
            torch.testing.assert_close(got, again)


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
