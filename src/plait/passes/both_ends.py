"""`x[edge_index]`, the rows of both ends of every edge at once, is a gather for each end.

    a, b = x[edge_index]                       [2, E, ...]: x[edge_index[0]], x[edge_index[1]]
    x[edge_index.t()].flatten(1)               [E, 2, ...]: cat([x[edge_index[0]], x[edge_index[1]]], 1)
    x[edge_index].sum(0)                       x[edge_index[0]] + x[edge_index[1]]

Where anything else is done with the whole, it stays a gather of twice as many rows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch.fx import Graph, Node

from plait.passes.edit import RESHAPES, Editor, arguments, aten, is_call, is_integral, is_transpose, same_size, static, value

Use = Callable[[Editor, Node, list[Node]], None]
_TRANSPOSES = (aten.transpose.int, aten.permute.default)


def separate_ends(graph: Graph) -> None:
    """Rewrites `graph` in place, where every use of the pairs of rows is one of `_USES`."""
    for node in graph.find_nodes(op="call_function", target=aten.index.Tensor):
        x, indices = arguments(node)
        axis = _axis_of_ends(indices)
        if axis is None or value(x).dim() == 0 or not all(_use(user, axis) for user in node.users):
            continue
        edit = Editor(graph, node)
        ends = [edit.call(aten.index.Tensor, x, [_column(edit, indices[0], axis, end)]) for end in (0, 1)]
        _replace_uses(node, ends, axis)
    graph.eliminate_dead_code()


def _axis_of_ends(indices: Any) -> int | None:
    """The axis of size 2 of the one index, a matrix; None for any other index."""
    if len(indices) != 1 or not is_integral(indices[0]) or value(indices[0]).dim() != 2:
        return None
    sizes = [static(size) for size in value(indices[0]).shape]
    return sizes.index(2) if 2 in sizes else None


def _column(edit: Editor, matrix: Node, axis: int, end: int) -> Node:
    """edge_index[end], however the matrix has been turned since: equal maps must be seen to be equal."""
    while is_transpose(matrix):
        matrix, axis = arguments(matrix)[0], 1 - axis
    return edit.call(aten.select.int, matrix, axis, end)


def _replace_uses(node: Node, ends: list[Node], axis: int) -> None:
    for user in list(node.users):
        use = _use(user, axis)
        assert use is not None
        use(Editor(node.graph, user), user, ends)


def _use(user: Node, axis: int) -> Use | None:
    """How a use of both ends is written with each of them; None where it cannot be."""
    if is_call(user, aten.select.int):
        return _selected if arguments(user)[1] % (value(user).dim() + 1) == axis else None
    if is_call(user, aten.unbind.int):
        return _unbound if (arguments(user)[1] if len(user.args) > 1 else 0) == axis else None
    if is_call(user, *_FOLDS):
        axes = arguments(user)[1]
        axes = axes if isinstance(axes, list | tuple) else [axes]
        whole = value(arguments(user)[0])
        plain = len(user.args) == 2 and not user.kwargs and value(user).dtype == whole.dtype
        return _folded if plain and [item % whole.dim() for item in axes] == [axis] else None
    if axis == 0 and is_call(user, *_TRANSPOSES):
        return _turned if _swaps_first(user) and all(_use(item, 1) for item in user.users) else None
    if is_call(user, aten.clone.default):
        return _copied(axis) if all(_use(item, axis) for item in user.users) else None
    if axis == 1 and is_call(user, *RESHAPES):
        return _joined if _joins_ends(user) else None
    return None


def _selected(edit: Editor, user: Node, ends: list[Node]) -> None:
    user.replace_all_uses_with(ends[arguments(user)[2]])


def _unbound(edit: Editor, user: Node, ends: list[Node]) -> None:
    for item in list(user.users):
        assert is_call(item, operator.getitem)
        item.replace_all_uses_with(ends[arguments(item)[1]])


_FOLDS: dict[Any, Any] = {
    aten.sum.dim_IntList: aten.add.Tensor,
    aten.mean.dim: aten.add.Tensor,
    aten.prod.dim_int: aten.mul.Tensor,
}


def _folded(edit: Editor, user: Node, ends: list[Node]) -> None:
    assert callable(user.target)
    result = edit.call(_FOLDS[user.target], *ends)
    if is_call(user, aten.mean.dim):
        result = edit.call(aten.mul.Tensor, result, 0.5)
    user.replace_all_uses_with(result)


def _swaps_first(user: Node) -> bool:
    """Whether a view puts the rows of edges before their ends."""
    dim = value(user).dim()
    if is_call(user, aten.transpose.int):
        return {item % dim for item in arguments(user)[1:3]} == {0, 1}
    return [item % dim for item in arguments(user)[1]] == [1, 0, *range(2, dim)]


def _turned(edit: Editor, user: Node, ends: list[Node]) -> None:
    _replace_uses(user, ends, 1)


def _copied(axis: int) -> Use:
    return lambda edit, user, ends: _replace_uses(user, ends, axis)


def _joins_ends(user: Node) -> bool:
    """Whether [E, 2, F, ...] becomes [E, 2 * F, ...]."""
    before, after = value(arguments(user)[0]).shape, value(user).shape
    if len(after) != len(before) - 1 or len(before) < 3:
        return False
    merged = [before[0], before[1] * before[2], *before[3:]]
    return all(same_size(a, b) for a, b in zip(after, merged, strict=True))


def _joined(edit: Editor, user: Node, ends: list[Node]) -> None:
    user.replace_all_uses_with(edit.call(aten.cat.default, ends, 1))
