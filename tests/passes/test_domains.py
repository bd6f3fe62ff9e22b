"""What has the same rows as what is decided by the maps values meet, never by sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from plait.passes.domains import Domains, infer
from plait.passes.edit import aten
from tests.passes.tracing import E, N, canonical, ends, numbers

X = numbers(N, 3)
SRC, DST = ends()


def inferred(function: Callable[..., Any], *inputs: Any) -> tuple[Domains, dict[str, Node], Graph]:
    """The domains, and the values that `function` returns in a dictionary, by name."""
    names: list[str] = []

    def flat(*given: Any) -> tuple[Tensor, ...]:
        result = function(*given)
        names[:] = list(result)
        return tuple(result.values())

    graph = canonical(flat, *inputs).graph
    output = next(node for node in graph.nodes if node.op == "output")
    return infer(graph), dict(zip(names, output.args[0], strict=True)), graph


def propagate(x: Tensor, src: Tensor, dst: Tensor) -> dict[str, Tensor]:
    messages = torch.tanh(x.index_select(0, src))
    reduced = torch.zeros_like(x).index_add(0, dst, messages)
    return {"messages": messages, "reduced": reduced, "doubled": reduced * 2}


def test_gathered_rows_are_edges_and_reduced_rows_are_not() -> None:
    domains, named, _ = inferred(propagate, X, SRC, DST)

    assert domains.is_edge(named["messages"])
    assert not domains.is_edge(named["reduced"])
    assert domains.of(named["reduced"]) is domains.of(named["doubled"])


def test_as_many_edges_as_nodes_changes_nothing() -> None:
    """One symbol counts both here; the rows are still of two kinds."""
    src, dst = ends(N)

    domains, named, _ = inferred(propagate, X, src, dst)

    assert domains.is_edge(named["messages"])
    assert not domains.is_edge(named["reduced"])
    assert domains.of(named["messages"]) is not domains.of(named["reduced"])


def test_both_ends_of_an_edge_index_belong_to_one_domain() -> None:
    def function(x: Tensor, edge_index: Tensor) -> dict[str, Tensor]:
        return {"source": x.index_select(0, edge_index[0]), "target": x.index_select(0, edge_index[1])}

    domains, named, _ = inferred(function, X, torch.stack([SRC, DST]))

    assert domains.of(named["source"]) is domains.of(named["target"])


def test_maps_that_never_meet_are_two_domains() -> None:
    """Two edge lists of the same length: nothing says that their entries belong together."""

    def function(x: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"first": x.index_select(0, first), "second": x.index_select(0, second)}

    domains, named, _ = inferred(function, X, SRC, DST)

    assert domains.is_edge(named["first"])
    assert domains.is_edge(named["second"])
    assert domains.of(named["first"]) is not domains.of(named["second"])


def test_elementwise_operators_join_domains() -> None:
    def function(x: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        a, b = x.index_select(0, first), x.index_select(0, second)
        return {"first": a, "second": b, "sum": a + b}

    domains, named, _ = inferred(function, X, SRC, DST)

    assert domains.of(named["first"]) is domains.of(named["second"]) is domains.of(named["sum"])


def test_product_with_a_weight_keeps_rows_and_the_weight_has_none_of_them() -> None:
    def function(x: Tensor, weight: Tensor, src: Tensor) -> dict[str, Tensor]:
        messages = x.index_select(0, src)
        return {"messages": messages, "product": messages @ weight, "gram": messages.T @ messages}

    domains, named, graph = inferred(function, X, numbers(3, 3, seed=2), SRC)

    weight = graph.find_nodes(op="placeholder")[1]
    assert domains.of(named["product"]) is domains.of(named["messages"])
    assert not domains.is_edge(weight)
    assert not domains.is_edge(named["gram"])


def test_views_of_the_other_axes_keep_rows() -> None:
    def function(x: Tensor, src: Tensor) -> dict[str, Tensor]:
        messages = x.index_select(0, src)
        heads = messages.view(-1, 1, 3).expand(-1, 2, 3).transpose(1, 2)
        return {
            "heads": heads,
            "one": heads[:, 0],
            "column": messages[:, 1:2],
            "inner": messages.sum(-1),
            "all": messages.sum(0),
        }

    domains, named, _ = inferred(function, X, SRC)

    assert all(domains.is_edge(named[name]) for name in ("heads", "one", "column", "inner"))
    assert not domains.is_edge(named["all"])


def test_rows_that_are_cut_or_joined_are_other_rows() -> None:
    def function(x: Tensor, src: Tensor) -> dict[str, Tensor]:
        messages = x.index_select(0, src)
        return {"messages": messages, "some": messages[2:], "more": torch.cat([messages, x])}

    domains, named, _ = inferred(function, X, SRC)

    assert domains.of(named["some"]) is not domains.of(named["messages"])
    assert domains.of(named["more"]) is not domains.of(named["messages"])


def test_nodes_pooled_by_their_graph_are_fine_and_no_edges() -> None:
    def function(x: Tensor, src: Tensor, dst: Tensor, batch: Tensor) -> dict[str, Tensor]:
        hidden = torch.zeros_like(x).index_add(0, dst, x.index_select(0, src))
        return {"hidden": hidden, "pooled": torch.zeros(2, 3).index_add(0, batch, hidden)}

    domains, named, _ = inferred(function, X, SRC, DST, torch.tensor([0, 0, 0, 1, 1, 1, 1]))

    assert domains.is_fine(named["hidden"])
    assert not domains.is_edge(named["hidden"])
    assert not domains.is_fine(named["pooled"])


def test_triplets_edges_and_nodes_are_three_domains() -> None:
    """A map into edges: what was fine is coarse for something finer."""

    def function(x: Tensor, src: Tensor, dst: Tensor, edge: Tensor) -> dict[str, Tensor]:
        messages = x.index_select(0, src)
        triplets = messages.index_select(0, edge).sin()
        back = torch.zeros_like(messages).index_add(0, edge, triplets)
        return {"triplets": triplets, "back": back, "out": torch.zeros_like(x).index_add(0, dst, back)}

    edge = torch.arange(30) % E

    domains, named, _ = inferred(function, X, SRC, DST, edge)

    assert domains.is_edge(named["triplets"])
    assert domains.is_fine(named["back"])
    assert len({domains.of(named[name]) for name in named}) == 3


def test_scalars_and_sizes_have_no_domain() -> None:
    domains, _, graph = inferred(lambda x, src: {"total": x.index_select(0, src).sum()}, X, SRC)

    total = [node for node in graph.nodes if node.target in (aten.sum.default, aten.sum.dim_IntList)]
    assert [domains.of(node) for node in total] == [None]
