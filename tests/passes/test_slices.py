"""Slices of rows move up to what the rows are made of, with the same numbers and gradients."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from plait.passes.edit import aten, value
from plait.passes.reorganise import move_slices
from tests.passes.tracing import E, N, assert_same_law, ends, numbers, rewritten, targets, text

F, B = 4, 3
SRC, DST = ends()
X, EDGE, W = numbers(N, F), numbers(E, F, seed=1), numbers(F, F, seed=2)


def sliced(function: Callable[..., Any], *inputs: Any) -> tuple[GraphModule, list[str]]:
    return rewritten((move_slices,), function, *inputs)


def summed(values: Tensor, index: Tensor, num_rows: int) -> Tensor:
    return values.new_zeros(num_rows, *values.shape[1:]).index_add(0, index, values)


def largest(values: Tensor, index: Tensor, num_rows: int) -> Tensor:
    expanded = index.view(-1, 1).expand_as(values)
    return values.new_zeros(num_rows, values.shape[1]).scatter_reduce(0, expanded, values, "amax", include_self=False)


def num_full(graph_module: GraphModule) -> int:
    """Products, norms and reductions whose result has a row per node, or is made of a row per edge."""
    work = (aten.mm.default, aten.addmm.default, aten.native_layer_norm.default, torch.ops.plait.segment_reduce.default)
    return sum(
        any(size in (N, E) for item in (node, node.all_input_nodes[0]) for size in _sizes(item))
        for node in graph_module.graph.nodes
        if node.target in work
    )


def _sizes(node: Any) -> list[int]:
    found = value(node)
    shapes = [item.shape for item in (found if isinstance(found, tuple | list) else [found]) if isinstance(item, Tensor)]
    return [size.node.hint if isinstance(size, torch.SymInt) else size for shape in shapes for size in shape[:1]]


def test_a_sum_takes_the_edges_of_its_first_rows() -> None:
    def function(x: Tensor, src: Tensor, dst: Tensor, b: int) -> Tensor:
        return torch.relu(summed(x.index_select(0, src), dst, N))[:b]

    graph_module, moved = sliced(function, X, SRC, DST, B)

    assert re.sub(r"(\w)_\d+\b", r"\1", text(graph_module.graph)) == (
        "lt_scalar = aten.lt.Scalar(dst, size)\n"
        "nonzero = aten.nonzero(lt_scalar)\n"
        "squeeze_dim = aten.squeeze.dim(nonzero, 1)\n"
        "take = plait.take(dst, squeeze_dim)\n"
        "take = plait.take(src, squeeze_dim)\n"
        "gather = plait.gather(x, take)\n"
        "segment_reduce = plait.segment_reduce(gather, take, size, sum, 0.0, False)\n"
        "relu = aten.relu(segment_reduce)\n"
        "return relu"
    )
    assert moved == ["slice_1: of relu only the rows that are read are computed"]
    assert_same_law(graph_module, function, (X, SRC, DST, B))


def softmax(scores: Tensor, dst: Tensor) -> Tensor:
    scores = (scores - largest(scores, dst, N).index_select(0, dst)).exp()
    return scores / summed(scores, dst, N).index_select(0, dst)


Function = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # x, edge, w, src, dst

LAWS: dict[str, Function] = {
    "product": lambda x, e, w, src, dst: x @ w,
    "bias": lambda x, e, w, src, dst: torch.relu(torch.addmm(w[0], x, w)),
    "mean": lambda x, e, w, src, dst: (
        summed(x[src], dst, N) / summed(torch.ones_like(src, dtype=x.dtype), dst, N).clamp(min=1).view(-1, 1)
    ),
    "own row added": lambda x, e, w, src, dst: summed(x[src], dst, N) @ w + x @ w.T,
    "indices that wrap": lambda x, e, w, src, dst: torch.zeros_like(x).index_put((dst - N,), x[src - N], accumulate=True),
    "difference of the ends": lambda x, e, w, src, dst: largest(x[src] - x.index_select(0, dst), dst, N),
    "maximum": lambda x, e, w, src, dst: largest(x.index_select(0, src) * e, dst, N),
    "edge features": lambda x, e, w, src, dst: summed(torch.tanh(x[src] + e @ w), dst, N),
    "softmax": lambda x, e, w, src, dst: summed(softmax((x @ w)[src] + (x @ w)[dst], dst) * x.index_select(0, src), dst, N),
    "layer norm": lambda x, e, w, src, dst: torch.nn.functional.layer_norm(summed(x[src], dst, N), (F,), w[0], w[1]),
    "heads": lambda x, e, w, src, dst: (summed((x @ w).view(-1, 2, F // 2)[src], dst, N) * 2).sum(-1).view(-1, 1, 2),
    "columns": lambda x, e, w, src, dst: torch.cat([summed(x[src], dst, N)[:, 1:], x, x @ w], -1)[:, 1:],
    "other way round": lambda x, e, w, src, dst: summed(x[dst], src, N) + summed(x[src], dst, N),
    "by a function of a map": lambda x, e, w, src, dst: summed(x[(src + dst) % N], dst, N),
    "through nodes of nodes": lambda x, e, w, src, dst: summed(summed(x[src], dst, N)[src], dst, N),
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("size", [0, 1, B, -5])
def test_work_is_done_for_rows_that_are_read(name: str, size: int) -> None:
    def function(x: Tensor, edge: Tensor, w: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return LAWS[name](x, edge, w, src, dst)[:size]

    inputs = (X, EDGE, W, SRC, DST)
    graph_module, moved = sliced(function, *inputs)

    assert len(moved) == 1
    # what is read at the sources, and the number of a row's edges, which is found once per graph
    expected = {"softmax": 1, "through nodes of nodes": 1, "heads": 1, "mean": 1}
    assert num_full(graph_module) == expected.get(name, 0)
    assert_same_law(graph_module, function, inputs)


@pytest.mark.parametrize("num_edges", [0, 1, 40])
@pytest.mark.parametrize("name", LAWS)
def test_graphs_of_other_sizes_get_the_same_numbers(name: str, num_edges: int) -> None:
    def function(x: Tensor, edge: Tensor, w: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return LAWS[name](x, edge, w, src, dst)[:B]

    src, dst = ends(num_edges, seed=3)
    inputs = (X, numbers(num_edges, F, seed=4), W, src, dst)
    graph_module, _ = sliced(function, *inputs)

    assert_same_law(graph_module, function, inputs)


def test_layers_that_are_trimmed_one_after_the_other() -> None:
    def function(x: Tensor, first: Tensor, second: Tensor, src: Tensor, dst: Tensor, b: int) -> Tensor:
        hidden = torch.relu(summed(x[src], dst, N) @ first + x)[:5]
        src, dst = src[:9] % 5, dst[:9] % 5
        return (summed(hidden[src], dst, 5) @ second + hidden)[:b]

    inputs = (X, W, numbers(F, F, seed=7), SRC, DST, B)
    graph_module, moved = sliced(function, *inputs)

    assert len(moved) == 2
    assert num_full(graph_module) == 0
    assert_same_law(graph_module, function, inputs)


def test_what_others_read_in_full_is_computed_once() -> None:
    def function(x: Tensor, w: Tensor, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        hidden = summed(x[src], dst, N) @ w
        return torch.relu(hidden)[:B], hidden.sum(0)

    graph_module, _ = sliced(function, X, W, SRC, DST)

    assert targets(graph_module.graph).count("aten.mm") == 1
    assert targets(graph_module.graph).count("plait.segment_reduce") == 1
    assert_same_law(graph_module, function, (X, W, SRC, DST))


def test_two_readers_of_first_rows_share_them() -> None:
    def function(x: Tensor, w: Tensor, src: Tensor, dst: Tensor, b: int) -> tuple[Tensor, Tensor]:
        hidden = summed(x[src], dst, N) @ w
        return torch.relu(hidden)[:b], torch.tanh(hidden)[:b]

    graph_module, moved = sliced(function, X, W, SRC, DST, B)

    assert len(moved) == 2
    assert targets(graph_module.graph).count("aten.mm") == 1
    assert num_full(graph_module) == 0
    assert_same_law(graph_module, function, (X, W, SRC, DST, B))


STAYS: dict[str, Function] = {
    "statistics of all rows": lambda x, e, w, src, dst: (x @ w - (x @ w).mean(0))[:B],
    "sorted rows": lambda x, e, w, src, dst: (x @ w).cumsum(0)[:B],
    "last rows": lambda x, e, w, src, dst: (x @ w)[B:],
    "every second row": lambda x, e, w, src, dst: (x @ w)[::2],
    "columns": lambda x, e, w, src, dst: (x @ w)[:, :2],
    "a slice of an input": lambda x, e, w, src, dst: (x * 2)[:B],
    "rows of a weight": lambda x, e, w, src, dst: x @ torch.bmm(w.view(2, 2, F), w.view(2, F, 2))[:1].reshape(1, 4).T,
}


@pytest.mark.parametrize("name", STAYS)
def test_other_slices_stay(name: str) -> None:
    def function(x: Tensor, edge: Tensor, w: Tensor, src: Tensor, dst: Tensor) -> Any:
        return STAYS[name](x, edge, w, src, dst)

    inputs = (X, EDGE, W, SRC, DST)
    graph_module, moved = sliced(function, *inputs)

    assert moved == [] or name == "statistics of all rows"
    assert num_full(graph_module) == num_full(rewritten((), function, *inputs)[0])
    assert_same_law(graph_module, function, inputs)


def test_a_slice_of_nearly_everything_stays() -> None:
    src, dst = ends(900, 600)
    inputs = (numbers(600, F), src, dst)

    def function(x: Tensor, src: Tensor, dst: Tensor, b: int) -> Tensor:
        return torch.zeros_like(x).index_add(0, dst, x[src])[:b]

    assert sliced(function, *inputs, 590)[1] == []
    assert len(sliced(function, *inputs, 59)[1]) == 1


# --- random programs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """What random steps read."""

    rng: random.Random
    edge: Tensor
    w: Tensor
    src: Tensor
    dst: Tensor
    b: int

    def rows(self, a: Tensor, c: Tensor) -> Tensor:
        """A value per edge of two per node."""
        kind = self.rng.randrange(4)
        if kind == 0:
            return a[self.src]
        if kind == 1:
            return a[self.src] * c[self.dst]
        if kind == 2:
            return a.index_select(0, self.dst) - c[self.src] * self.edge
        return a[self.src] @ self.w

    def step(self, a: Tensor, c: Tensor) -> Tensor:
        """A value per node of two."""
        kind = self.rng.randrange(9)
        if kind == 0:
            return torch.tanh(a @ self.w)
        if kind == 1:
            return a * 0.5 - c
        if kind == 2:
            return torch.cat([a[:, :2], c[:, 2:]], -1)
        if kind == 3:
            return a / (1 + a.abs().sum(-1, keepdim=True))
        if kind == 4:
            return torch.cat([a[: self.b] * 2, a[self.b :]])
        index = self.rng.choice((self.src, self.dst))
        if kind == 5:
            return largest(self.rows(a, c), index, N)
        if kind == 6:
            return c + summed(softmax(torch.tanh(self.rows(a, c)), index) * self.edge, index, N)
        return torch.tanh(summed(self.rows(a, c), index, N))


def random_function(seed: int) -> Callable[..., Any]:
    """Some random steps, cut off here and there; the same for the same seed."""

    def function(x: Tensor, edge: Tensor, w: Tensor, src: Tensor, dst: Tensor, b: int) -> Any:
        rng = random.Random(seed)
        drawn = Drawn(rng, edge, w, src, dst, b)
        nodes, results = [x], []
        for _ in range(rng.randint(2, 8)):
            nodes.append(drawn.step(rng.choice(nodes), nodes[-1]))
            if rng.random() < 0.2:
                results.append(rng.choice(nodes)[:b] if rng.random() < 0.7 else rng.choice(nodes).sum(0))
        return (nodes[-1][:b], *results)

    return function


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_give_the_same_numbers(seed: int) -> None:
    function = random_function(seed)
    inputs = (X, EDGE, W, SRC, DST, B)
    graph_module, _ = sliced(function, *inputs)

    assert_same_law(graph_module, function, inputs)
