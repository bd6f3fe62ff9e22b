"""Rows chosen by a mask that depends on the graph alone: x[mask] = gather(x, positions of the mask).

The positions are structure, found once per graph, where the mask would be searched in every step, forward and backward.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from plait import operators
from plait.passes.domains import Domains
from plait.passes.edit import Editor, arguments, aten, is_call, is_integral, is_tensor, replace, same_shape, value
from plait.passes.structure import depends_on_graph_alone


def select_by_position(graph: Graph, domains: Domains) -> list[str]:
    """Rewrites `graph` in place; returns the names of what it rewrote.

    Rows that are entries of a map stay: kernels compute them over that map, but not rows that a map points into.
    """
    names = []
    for node in list(graph.nodes):
        mask = _mask_of_rows(node)
        if mask is None or domains.is_fine(arguments(node)[0]) or not depends_on_graph_alone(mask):
            continue
        names.append(node.name)
        edit = Editor(graph, node)
        replace(node, edit.call(operators.gather, _rows(edit, node, mask), _positions(edit, node, mask)))
    return names


def _mask_of_rows(node: Node) -> Node | None:
    """The mask of x[mask], where x has floats and the mask an entry per row; rows may be laid out along several axes."""
    if not is_call(node, aten.index.Tensor) or is_integral(node):
        return None
    x, indices = arguments(node)
    if len(indices) != 1 or not is_tensor(indices[0]) or value(indices[0]).dtype != torch.bool:
        return None
    shape = value(indices[0]).shape
    return indices[0] if len(shape) > 0 and same_shape(shape, value(x).shape[: len(shape)]) else None


def _rows(edit: Editor, chosen: Node, mask: Node) -> Node:
    """What the rows are chosen of, with one axis for all rows."""
    x = arguments(chosen)[0]
    rank = value(mask).dim()
    if rank == 1:
        return x  # type: ignore[no-any-return]
    inner = [edit.size(x, axis) for axis in range(rank, value(x).dim())]
    return edit.call(aten.reshape.default, x, [-1, *inner])


_HANDED_ON = (
    aten.view.default,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.select.int,
    aten._to_copy.default,
    aten.clone.default,
)


def is_selection(index: Node) -> bool:
    """Whether an index map holds the positions of a mask: no entry twice, so never more of them than there are rows."""
    node = index
    while is_call(node, *_HANDED_ON):
        node = arguments(node)[0]
    if is_call(node, aten.nonzero.default):
        return bool(value(arguments(node)[0]).dim() == 1)
    if not is_call(node, aten.index.Tensor):
        return False
    numbers, indices = arguments(node)
    is_mask = len(indices) == 1 and is_tensor(indices[0]) and value(indices[0]).dtype == torch.bool
    return is_mask and is_call(numbers, aten.arange.start, aten.arange.default)


def _positions(edit: Editor, chosen: Node, mask: Node) -> Node:
    """Where `mask` is set: int64, as many as `chosen` has rows."""
    if value(mask).dim() > 1:
        mask = edit.call(aten.reshape.default, mask, [-1])
    numbers = edit.call(aten.arange.start, 0, edit.size(mask, 0), device=value(mask).device)
    # not evaluated: the number of rows has a symbol already, and would get another one
    val = value(mask).new_empty((value(chosen).shape[0],), dtype=torch.int64)
    return edit.valued(val, aten.index.Tensor, numbers, [mask])
