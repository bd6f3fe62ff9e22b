"""Gathers and reductions along another axis than the first: rows come in front, and stay there between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from plait.passes.axes import lead_rows
from plait.passes.domains import infer
from plait.passes.edit import aten, value
from tests.passes.tracing import E, N, assert_same_law, canonical, ends, numbers, targets, text

K, C = 2, 3
SRC, DST = ends()
X, WEIGHT = numbers(K, N, C), numbers(E, seed=1)


def led(function: Callable[..., Any], *inputs: Any) -> GraphModule:
    graph_module = canonical(function, *inputs)
    lead_rows(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def propagate(x: Tensor, src: Tensor, dst: Tensor, weight: Tensor) -> Tensor:
    """x [K, N, C] along axis 1, as layers with stacks do."""
    messages = weight.view(-1, 1) * x.index_select(-2, src)
    index = dst.view(1, -1, 1).expand_as(messages)
    return torch.zeros_like(x).scatter_add(-2, index, messages)


def test_text_of_a_propagation_along_the_middle_axis() -> None:
    graph_module = led(propagate, X, SRC, DST, WEIGHT)

    calls = [line.partition(" = ")[2] for line in text(graph_module.graph).splitlines() if "plait" in line or "mul" in line]
    assert calls[0] == "plait.gather(transpose_int, src)"
    assert calls[1].startswith("aten.mul.Tensor(transpose")
    assert calls[1].endswith("gather)")
    assert calls[2].startswith("plait.segment_reduce(mul")


def test_numbers_and_gradients_stay() -> None:
    assert_same_law(led(propagate, X, SRC, DST, WEIGHT), propagate, (X, SRC, DST, WEIGHT))


def test_messages_have_edges_in_front() -> None:
    graph = led(propagate, X, SRC, DST, WEIGHT).graph
    domains = infer(graph)

    messages = next(node for node in graph.nodes if node.target is aten.mul.Tensor)
    assert domains.is_edge(messages)
    assert value(messages).shape[0] == E


SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_select": lambda x, i: x.index_select(1, i),
    "x[:, i]": lambda x, i: x[:, i],
    "gather": lambda x, i: x.gather(1, i.view(1, -1, 1).expand(x.shape[0], -1, C)),
    "last axis": lambda x, i: x.transpose(1, 2).index_select(-1, i),
    "index_add": lambda x, i: torch.zeros_like(x).index_add(1, i[:N], x),
    "scatter amax": lambda x, i: torch.zeros_like(x).scatter_reduce(
        1, i[:N].view(1, -1, 1).expand(x.shape[0], -1, C), x, "amax"
    ),
    "added to what is there": lambda x, i: x.index_add(1, i[:N], x * 2),
    "mean": lambda x, i: torch.zeros_like(x).scatter_reduce(
        1, i[:N].view(1, -1, 1).expand(x.shape[0], -1, C), x, "mean", include_self=False
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_along_an_axis_keeps_its_numbers(name: str) -> None:
    graph_module = led(SPELLINGS[name], X, SRC)

    assert any("plait" in target for target in targets(graph_module.graph))
    assert_same_law(graph_module, SPELLINGS[name], (X, SRC))


def test_what_is_the_same_along_both_axes_is_left_as_it_is() -> None:
    def scaled(x: Tensor, src: Tensor, columns: Tensor) -> Tensor:
        return x.index_select(1, src) * columns

    columns = numbers(C, seed=2)
    graph_module = led(scaled, X, SRC, columns)

    assert "aten.mul.Tensor(gather, columns)" in text(graph_module.graph)
    assert_same_law(graph_module, scaled, (X, SRC, columns))
