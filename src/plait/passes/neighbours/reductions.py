"""What makes a row of its own of the entries of each row: sums, means, maxima, and products that sum over the columns.

A maximum that says where it is (`x.max(1)`) gives its gradient to that entry, the first of equal ones; `amax` splits it
between them, as a segment maximum does. So where there are gradients, the former is a maximum of values, then the first column
that holds it, then a sum of that one entry.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from plait.passes.edit import (
    RESHAPES,
    Editor,
    argument,
    arguments,
    aten,
    is_call,
    is_tensor,
    replace,
    stable_topological_sort,
    value,
)
from plait.passes.neighbours.matrix import Matrix, find_matrices, inner_shape
from plait.passes.neighbours.products import expand_products
from plait.passes.neighbours.values import Entries

_REDUCTIONS: dict[Any, str] = {
    aten.sum.dim_IntList: "sum",
    aten.mean.dim: "mean",
    aten.amax.default: "max",
    aten.amin.default: "min",
}
_CHOICES: dict[Any, str] = {aten.max.dim: "max", aten.min.dim: "min"}


def flatten_neighbours(graph: Graph, *, has_gradients: bool) -> None:
    """Rewrites `graph` in place."""
    matrices = find_matrices(graph)
    for matrix in matrices:
        _flatten(graph, matrix, has_gradients)
    if matrices:
        stable_topological_sort(graph)  # sizes are read off the matrix, which may come after values of its entries
        graph.eliminate_dead_code()


def _flatten(graph: Graph, matrix: Matrix, has_gradients: bool) -> None:
    expand_products(graph, matrix, _reached(graph, matrix))
    entries, depends = Entries(matrix), _reached(graph, matrix)
    for node in list(graph.nodes):
        if node not in depends or not is_tensor(node):
            continue
        result = _result(Editor(graph, node), node, entries, has_gradients)
        if result is not None:
            replace(node, result)
    for node, made in entries.made.items():
        if node.users:  # by what no rule knows
            edit = Editor(graph, node)
            shape = [*matrix.sizes, *(inner_shape(made, 1) or [])]
            node.replace_all_uses_with(edit.call(aten.reshape.default, made, shape))


def _reached(graph: Graph, matrix: Matrix) -> set[Node]:
    """Everything that depends on rows gathered by a matrix of these sizes."""
    reached: set[Node] = set()
    for node in graph.nodes:
        if matrix.is_gather(node) or not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return reached


def _result(edit: Editor, node: Node, entries: Entries, has_gradients: bool) -> Node | None:
    """What stands for a call that reads entries and makes none; None for any other."""
    if is_call(node, *_REDUCTIONS):
        return _reduction(edit, node, entries)
    if is_call(node, operator.getitem):
        return _choice(edit, node, entries, has_gradients)
    if is_call(node, *RESHAPES):
        return _rows_of_product(edit, node, entries)
    return None


def _reduction(edit: Editor, node: Node, entries: Entries) -> Node | None:
    """Over the columns, and maybe over inner axes too."""
    x, rank = arguments(node)[0], entries.matrix.rank
    if "dtype" in node.kwargs or not _is_float(x) or not entries.is_known(x):
        return None
    axes = sorted(axis % value(x).dim() for axis in argument(node, 1, "dim") or ())
    if not axes or axes[0] != rank - 1:
        return None
    reduce, made = _REDUCTIONS[node.target], entries.of(x)
    if axes[1:]:
        made = edit.call(node.target, made, [axis - rank + 1 for axis in axes[1:]], False)  # type: ignore[arg-type]
    if reduce == "mean":
        total = entries.reduced(edit, made, "sum")
        return _as(edit, node, edit.call(aten.div.Tensor, total, entries.matrix.num_columns), entries)
    return _as(edit, node, entries.reduced(edit, made, reduce), entries)


def _choice(edit: Editor, node: Node, entries: Entries, has_gradients: bool) -> Node | None:
    """The values of `x.max(dim=columns)`, where nobody asks for the places."""
    call, number = arguments(node)
    if number != 0 or not is_call(call, *_CHOICES) or any(user.args[1] != 0 for user in call.users):
        return None
    x, reduce = arguments(call)[0], _CHOICES[call.target]
    if not _is_float(x) or not entries.is_known(x) or arguments(call)[1] % value(x).dim() != entries.matrix.rank - 1:
        return None
    made = entries.of(x)
    if not has_gradients:
        return _as(edit, node, entries.reduced(edit, made, reduce), entries)
    fixed = edit.call(aten.detach.default, made)
    best = entries.spread(edit, entries.reduced(edit, fixed, reduce))
    is_best = edit.call(aten.logical_or.default, edit.call(aten.eq.Tensor, fixed, best), edit.call(aten.isnan.default, fixed))
    column = edit.call(aten._to_copy.default, entries.matrix.columns, dtype=torch.float32)
    column = edit.call(aten.reshape.default, column, [-1, *[1] * (value(made).dim() - 1)])
    first = entries.reduced(edit, edit.call(aten.where.ScalarOther, is_best, column, float("inf")), "min")
    is_first = edit.call(aten.eq.Tensor, column, entries.spread(edit, first))
    chosen = edit.call(aten.where.ScalarOther, is_first, made, 0.0)
    return _as(edit, node, entries.reduced(edit, chosen, "sum"), entries)


def _rows_of_product(edit: Editor, node: Node, entries: Entries) -> Node | None:
    """[E, F] of [*rows, K, F], which is how a linear layer reads its rows."""
    x = arguments(node)[0]
    if not entries.is_known(x) or value(node).dim() == 0 or not entries.matrix.counts_entries(value(node).shape[0]):
        return None
    shape, made = inner_shape(node, 1), entries.of(x)
    if shape is None or list(value(made).shape[1:]) == shape:
        return None if shape is None else made
    return edit.call(aten.reshape.default, made, [-1, *shape])


def _is_float(x: Any) -> bool:
    return is_tensor(x) and bool(value(x).dtype.is_floating_point)


def _as(edit: Editor, node: Node, result: Node, entries: Entries) -> Node:
    """[R, ...] in the axes of `node`: [*rows, ...], or [*rows, 1, ...]."""
    rank, dim = entries.matrix.rank, value(node).dim()
    if rank == 2 and dim == value(result).dim():
        return result
    rows = entries.matrix.sizes[:-1]
    return edit.call(aten.reshape.default, result, [*rows, *(inner_shape(node, rank - 1) or [])])
