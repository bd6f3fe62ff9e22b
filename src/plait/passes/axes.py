"""Rows first: what is gathered or reduced along another axis than the first gets that axis in front, and keeps it there.

`canonicalize` spells x.index_select(k, index) as a transpose, a gather of rows and the transpose back. Here the transposes back
move behind elementwise operators, until one meets the transpose in front of a reduction and both are gone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from plait import operators
from plait.passes.edit import Editor, arguments, aten, is_call, is_tensor, replace, same_size, value

_ROW_OPERATORS = (operators.gather, operators.segment_reduce)


def swapped(edit: Editor, x: Node, axis: int) -> Node:
    """`x` with `axis` in front; a tensor that was swapped so is what it was made of."""
    if axis == 0:
        return x
    return _swapped_source(x, axis) or edit.call(aten.transpose.int, x, 0, axis)


def _swapped_source(node: Node, axis: int) -> Node | None:
    if not is_call(node, aten.transpose.int):
        return None
    x, a, b = arguments(node)
    dim = value(x).dim()
    return x if sorted((a % dim, b % dim)) == [0, axis] else None


def lead_rows(graph: Graph) -> None:
    """f(transpose(a), b) = transpose(f(a, transpose(b))) for elementwise f, where transpose(a) is of `canonicalize`."""
    moved: dict[Node, int] = {}  # transpose(source, 0, axis), source having its rows in front
    for node in list(graph.nodes):
        axis = _made_axis(node)
        if axis is not None:
            moved[node] = axis
            continue
        axes = {moved[item] for item in node.all_input_nodes if item in moved and value(item).dim() == _dim(node)}
        if len(axes) != 1:
            continue
        (axis,) = axes
        source = node.args[0]
        if isinstance(source, Node) and source in moved and _swapped_source(node, axis) is source:
            replace(node, arguments(source)[0])
        elif _is_elementwise(node):
            edit = Editor(graph, node)
            result = edit.call(aten.transpose.int, _elementwise(edit, node, axis, moved), 0, axis)
            replace(node, result)
            moved[result] = axis
    graph.eliminate_dead_code()


def _dim(node: Node) -> int:
    return int(value(node).dim()) if is_tensor(node) else -1


def _made_axis(node: Node) -> int | None:
    """The axis that a transpose gives back to the rows of a gather or of a reduction."""
    if not is_call(node, aten.transpose.int) or not is_call(node.args[0], *_ROW_OPERATORS):
        return None
    axes = sorted(int(item) % _dim(node) for item in arguments(node)[1:])
    return axes[1] if axes[0] == 0 and axes[1] != 0 else None


def _is_elementwise(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def _elementwise(edit: Editor, node: Node, axis: int, moved: dict[Node, int]) -> Node:
    dim = _dim(node)

    def operand(item: Any) -> Any:
        if not is_tensor(item):
            return item
        if item in moved:
            return arguments(item)[0]
        missing = dim - _dim(item)
        has_axis = axis >= missing and not same_size(value(item).shape[axis - missing], 1)
        if not has_axis and (missing > 0 or same_size(value(item).shape[0], 1)):
            return item  # the same along both axes
        for _ in range(missing):
            item = edit.call(aten.unsqueeze.default, item, 0)
        return edit.call(aten.transpose.int, item, 0, axis)

    return edit.call(node.target, *(operand(item) for item in node.args), **node.kwargs)  # type: ignore[arg-type]
