"""Products of edge rows become products of node rows, wherever the operand separates by end.

    matmul(gather(x, m), W) = gather(matmul(x, W), m)
    matmul(gather(x, m) + gather(y, n) + e, W) = gather(matmul(x, W), m) + gather(matmul(y, W), n) + matmul(e, W)

Where rows of nodes are fewer this always pays, though programs run products of edges, too. What is there per edge (edge
features beside the ends) keeps a product of edge rows, of its own columns only: unless it is narrower than before, nothing
moves.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from plait.passes.domains import Domains
from plait.passes.edit import Editor, is_call, replace, value
from plait.passes.reorganise.contractions import PRODUCTS, grouped, operand_of
from plait.passes.reorganise.guards import is_more_work, leaves_edges
from plait.passes.reorganise.separate import Separation
from plait.passes.reorganise.terms import Build, Term, inner_size


def move_products(graph: Graph, domains: Domains) -> list[str]:
    """Applies the law to every product, first ones first; returns a line per product moved."""
    moved: list[str] = []
    state = Separation()
    for node in list(graph.nodes):
        if not is_call(node, *PRODUCTS) or not node.users or not _is_cheaper(state, node, domains):
            continue
        values = _first_values(state, node, node)
        if not values:
            continue
        counts = []
        for item in dict.fromkeys(values):
            form = state.form(item)
            assert form is not None
            counts.append(len(form.ends))
            replace(item, Build(Editor(graph, item)).form(form, state.values))
        moved.append(f"{node.name}: product of edge rows moved to {max(counts)} products of node rows")
        graph.eliminate_dead_code()
        state = Separation()
    return moved


def _is_cheaper(state: Separation, node: Node, domains: Domains) -> bool:
    """Whether fewer columns are left per edge, and the others meet fewer rows."""
    found = operand_of(state, node)
    if found is None or state.form(node) is None:
        return False
    contraction, form = found
    operand = node.args[contraction.position]
    weight = node.args[contraction.weight]
    assert isinstance(operand, Node)
    width = inner_size(operand, form.layout)
    if width is None or not leaves_edges(form, domains) or domains.is_edge(weight):  # type: ignore[arg-type]
        return False
    num_edges = value(form.rows).shape[0]
    work = [
        (num_edges if group[0].end is None else value(group[0].end.like).shape[0], width * _share(group))
        for group in grouped(form, contraction)
    ]
    left = sum(width * _share(group) for group in grouped(form, contraction) if group[0].end is None)
    return left < width and not is_more_work([(num_edges, width)], work)


def _share(group: list[Term]) -> float:
    """The part of the operand's columns that a group of terms has."""
    columns = group[0].columns
    return 1.0 if columns is None else (columns.stop - columns.start) / columns.size


def _first_values(state: Separation, node: Node, product: Node) -> list[Node] | None:
    """`node`, if it has a row per edge, else the first values made of it that have; None where one of them has no form."""
    form = state.form(node)
    if form is None or product not in form.products or not node.users:
        return None
    if form.can_be_built:
        return [node]
    result: list[Node] = []
    for user in node.users:
        found = _first_values(state, user, product)
        if found is None:
            return None
        result += found
    return result
