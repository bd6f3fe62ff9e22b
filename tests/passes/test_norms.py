"""Layer norms of edge values are written out, those of nodes stay, and the numbers are the same."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.passes.norms import expand_norms
from tests.check import assert_same_numbers
from tests.passes.tracing import N, canonical, ends, numbers

C = 5
SRC, DST = ends()
X, WEIGHT, BIAS = numbers(N, C), numbers(C, seed=1), numbers(C, seed=2)


def twice(x: Tensor, weight: Tensor, bias: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """A norm of nodes, and two of edges, one of which reads the other."""
    x = torch.nn.functional.layer_norm(x, (C,))
    edges = torch.nn.functional.layer_norm(x[src] * x[dst], (C,), weight, bias)
    edges = torch.nn.functional.layer_norm(edges.relu() + x[src], (C,), weight)
    return x.index_add(0, dst, edges)


def test_norms_of_edges_are_written_out_and_those_of_nodes_are_not() -> None:
    inputs = (X, WEIGHT, BIAS, SRC, DST)
    graph_module = canonical(twice, *inputs)
    expand_norms(graph_module.graph)
    graph_module.recompile()

    norms = [node for node in graph_module.graph.nodes if node.target is torch.ops.aten.native_layer_norm.default]
    assert len(norms) == 1
    assert_same_numbers(graph_module(*inputs), twice(*inputs))
