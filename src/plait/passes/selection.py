"""Rows chosen by a mask that depends on the graph alone: x[mask] = gather(x, positions of the mask).

The positions are structure, found once per graph, where the mask would be searched in every step, forward and backward.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from plait import operators
from plait.passes.domains import Domains
from plait.passes.edit import Editor, arguments, aten, is_call, is_integral, is_tensor, replace, same_size, value
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
        replace(node, edit.call(operators.gather, arguments(node)[0], _positions(edit, node, mask)))
    return names


def _mask_of_rows(node: Node) -> Node | None:
    """The mask of x[mask], where x has floats and the mask an entry per row."""
    if not is_call(node, aten.index.Tensor) or is_integral(node):
        return None
    x, indices = arguments(node)
    if len(indices) != 1 or not is_tensor(indices[0]) or value(indices[0]).dtype != torch.bool or value(indices[0]).dim() != 1:
        return None
    return indices[0] if same_size(value(x).shape[0], value(indices[0]).shape[0]) else None


_SAME = (aten.view.default, aten.reshape.default, aten.squeeze.dim, aten.select.int, aten._to_copy.default, aten.clone.default)


def is_selection(index: Node) -> bool:
    """Whether an index map holds the positions of a mask: no entry twice, so never more of them than there are rows."""
    node = index
    while is_call(node, *_SAME):
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
    numbers = edit.call(aten.arange.start, 0, edit.size(mask, 0), device=value(mask).device)
    # not evaluated: the number of rows has a symbol already, and would get another one
    return edit.valued(value(mask).new_empty((value(chosen).shape[0],), dtype=torch.int64), aten.index.Tensor, numbers, [mask])
