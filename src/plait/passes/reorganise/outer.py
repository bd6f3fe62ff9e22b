"""A row of an edge times a matrix that is a linear image of a vector of the edge: a product with one weight for all edges.

    bmm(x, view(t @ W + b)) = view(outer(t, x)) @ view(W) + x @ view(b)              x [E, 1, f], t [E, h], W [h, f * o]

No matrix per edge is left. The product on the right has a plain weight, [h * f, o], so the other laws know what to do with it:
a sum over edges goes first (`behind.py`), which adds outer products in a kernel; x @ view(b) goes to the nodes (`products.py`);
else it runs by tiles. The law holds for any x and t; it is applied where an outer product is no wider than the matrix was.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from plait.passes import edit
from plait.passes.domains import Domains, keeps_rows
from plait.passes.edit import PRODUCTS, Editor, arguments, aten, inner_sizes, is_call, product_parts, static, value
from plait.passes.fuse import MAX_COLUMNS
from plait.passes.reorganise.types import matrix_products

_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_TURNS = (aten.transpose.int, aten.permute.default)
_COPIES = (aten.clone.default, aten.expand.default)  # of the same shape


def move_outer_products(graph: Graph, domains: Domains) -> list[str]:
    """Applies the law to every product of edge rows with such matrices; returns a line per product."""
    moved = []
    for node in list(graph.nodes):
        if not node.users or not domains.is_edge(node):
            continue
        for rows, matrix, axis, summed, result_axis in matrix_products(node):
            image = _image(matrix, domains)
            if image is None or not domains.is_edge(rows):
                continue
            bias, t, weight, views = image
            edit_at = Editor(graph, node)
            width = _width(t, matrix, summed)
            if width is None:
                continue
            found = _reassociated(edit_at, rows, axis, t, _seen(edit_at, weight, views, summed))
            if bias is not None:
                rows_of = edit_at.call(aten.squeeze.dim, rows, axis)
                whole = _seen(edit_at, edit_at.call(aten.reshape.default, bias, [1, -1]), views, summed)
                added = edit_at.call(aten.mm.default, rows_of, edit_at.call(aten.squeeze.dim, whole, 0))
                found = edit_at.call(aten.add.Tensor, found, added)
            if result_axis is not None:
                found = edit_at.call(aten.unsqueeze.default, found, result_axis)
            moved.append(
                f"{node.name}: product with a matrix per edge is one of outer products, {width} columns, with a weight"
            )
            edit.replace(node, found)
            break
    graph.eliminate_dead_code()
    return moved


def _image(matrix: Node, domains: Domains) -> tuple[Any, Node, Node, list[Node]] | None:
    """(bias or None, t, weight, views) of a matrix per edge that is seen in the rows of t @ weight + bias."""
    views: list[Node] = []
    node = matrix
    while not is_call(node, *PRODUCTS):
        if not is_call(node, *_VIEWS, *_TURNS, *_COPIES) or not keeps_rows(node) or inner_sizes(value(node)) is None:
            return None
        operand = arguments(node)[0]
        if is_call(node, *_COPIES) and not edit.same_shape(value(operand).shape, value(node).shape):
            return None
        if not edit.same_size(value(operand).shape[0], value(node).shape[0]):
            return None
        if not is_call(node, *_COPIES):
            views.insert(0, node)
        node = operand
    parts = product_parts(node)
    if parts is None:
        return None
    bias, t, weight = parts
    if not domains.is_edge(t) or domains.is_edge(weight) or inner_sizes(value(weight), leading=False) is None:
        return None
    if bias is not None and value(bias).dim() != 1:
        return None
    return bias, t, weight, views


def _seen(at: Editor, rows: Node, views: list[Node], summed: int) -> Node:
    """Rows as the views show them, with the axis that is summed in the middle."""
    for view in views:
        if is_call(view, *_TURNS):
            rows = at.call(view.target, rows, *arguments(view)[1:])  # type: ignore[arg-type]
            continue
        rows = at.call(
            aten.reshape.default, rows, [static(value(rows).shape[0]), *(static(size) for size in value(view).shape[1:])]
        )
    return rows if summed == 1 else at.call(aten.transpose.int, rows, 1, 2)


def _width(t: Node, matrix: Node, summed: int) -> int | None:
    """The columns of an outer product; None where they are more than those of a matrix, or than kernels have."""
    inner, other = static(value(matrix).shape[summed]), static(value(matrix).shape[3 - summed])
    num_columns = static(value(t).shape[1])
    if inner is None or other is None or num_columns is None or num_columns > other:
        return None
    width = num_columns * inner
    return width if width <= MAX_COLUMNS else None


def _reassociated(at: Editor, rows: Node, axis: int, t: Node, weight: Node) -> Node:
    """view(outer(t, x)) @ view(W) for W [h, f, o]."""
    columns = rows if axis == 1 else at.call(aten.transpose.int, rows, 1, 2)  # [E, 1, f]
    outer = at.call(aten.mul.Tensor, at.call(aten.unsqueeze.default, t, 2), columns)
    num_columns, inner, other = (static(size) for size in value(weight).shape)
    assert num_columns is not None
    assert inner is not None
    flat = at.call(aten.reshape.default, outer, [at.size(rows, 0), num_columns * inner])
    return at.call(aten.mm.default, flat, at.call(aten.reshape.default, weight, [num_columns * inner, other]))
