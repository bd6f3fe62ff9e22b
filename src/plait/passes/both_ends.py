"""`x[edge_index]`, the rows of both ends of every edge at once, is a gather for each end.

    a, b = x[edge_index]                       [2, E, ...]: x[edge_index[0]], x[edge_index[1]]
    x[edge_index.t()].flatten(1)               [E, 2, ...]: cat([x[edge_index[0]], x[edge_index[1]]], 1)
    x[edge_index].sum(0)                       x[edge_index[0]] + x[edge_index[1]]

The same for three or four ends (triplets). Where anything else is done with the whole, it stays one gather of all rows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch.fx import Graph, Node

from plait.passes.edit import RESHAPES, Editor, arguments, aten, is_call, is_integral, is_transpose, same_size, static, value

_MOST = 4  # ends: a matrix with more columns is one of neighbours, see `passes.neighbours`
_TRANSPOSES = (aten.transpose.int, aten.permute.default)
_FOLDS: dict[Any, Any] = {
    aten.sum.dim_IntList: aten.add.Tensor,
    aten.mean.dim: aten.add.Tensor,
    aten.prod.dim_int: aten.mul.Tensor,
}


@dataclass
class _Ends:
    """The rows of x at each end. count: how many ends there are, None where only a running model knows."""

    edit: Editor
    x: Node
    matrix: Node
    axis: int
    count: int | None
    made: dict[int, Node] = field(default_factory=dict)

    def __getitem__(self, end: int) -> Node:
        if end not in self.made:
            self.made[end] = self.edit.call(aten.index.Tensor, self.x, [self._column(end)])
        return self.made[end]

    def all(self) -> list[Node]:
        assert self.count is not None
        return [self[end] for end in range(self.count)]

    def _column(self, end: int) -> Node:
        """edge_index[end], however the matrix has been turned since: equal maps must be seen to be equal."""
        matrix, axis = self.matrix, self.axis
        while is_transpose(matrix):
            matrix, axis = arguments(matrix)[0], 1 - axis
        return self.edit.call(aten.select.int, matrix, axis, end)


# puts what is made of each end in the place of a use of all of them
_Use = Callable[[Node, _Ends], None]


def separate_ends(graph: Graph) -> None:
    """Rewrites `graph` in place, where every use of all ends is one that is known here."""
    for node in graph.find_nodes(op="call_function", target=aten.index.Tensor):
        x, indices = arguments(node)
        if len(indices) != 1 or value(x).dim() == 0 or not _is_matrix(indices[0]):
            continue
        for axis in (0, 1):
            count = static(value(indices[0]).shape[axis])
            if (count is None or count <= _MOST) and all(_use(user, axis, count) for user in node.users):
                _replace_uses(node, axis, _Ends(Editor(graph, node), x, indices[0], axis, count))
                break
    graph.eliminate_dead_code()


def _is_matrix(index: Any) -> bool:
    return isinstance(index, Node) and is_integral(index) and value(index).dim() == 2 and value(index).dtype != torch.bool


def _replace_uses(node: Node, axis: int, ends: _Ends) -> None:
    for user in list(node.users):
        use = _use(user, axis, ends.count)
        assert use is not None
        use(user, ends)


def _use(user: Node, axis: int, count: int | None) -> _Use | None:
    """How a use of all ends is written with each of them; None where it cannot be."""
    if is_call(user, aten.select.int):
        is_end = arguments(user)[1] % (value(user).dim() + 1) == axis and (count is not None or arguments(user)[2] >= 0)
        return _selected if is_end else None
    if count is None:
        return None
    if is_call(user, aten.unbind.int):
        return _unbound if (arguments(user)[1] if len(user.args) > 1 else 0) == axis else None
    if is_call(user, *_FOLDS):
        axes = arguments(user)[1]
        axes = axes if isinstance(axes, list | tuple) else [axes]
        whole = value(arguments(user)[0])
        is_plain = len(user.args) == 2 and not user.kwargs and value(user).dtype == whole.dtype and count > 0
        return _folded if is_plain and [item % whole.dim() for item in axes] == [axis] else None
    if is_call(user, aten.clone.default):
        return _through(axis) if all(_use(item, axis, count) for item in user.users) else None
    if axis == 0 and is_call(user, *_TRANSPOSES):
        return _through(1) if _swaps_first(user) and all(_use(item, 1, count) for item in user.users) else None
    if axis == 1 and is_call(user, *RESHAPES):
        return _joined if _joins_ends(user) else None
    return None


def _selected(user: Node, ends: _Ends) -> None:
    end = arguments(user)[2]
    user.replace_all_uses_with(ends[end + ends.count if end < 0 and ends.count is not None else end])


def _unbound(user: Node, ends: _Ends) -> None:
    for item in list(user.users):
        assert is_call(item, operator.getitem)
        item.replace_all_uses_with(ends[arguments(item)[1]])


def _folded(user: Node, ends: _Ends) -> None:
    edit, fold = Editor(user.graph, user), _FOLDS[user.target]
    result = reduce(lambda a, b: edit.call(fold, a, b), ends.all())
    if is_call(user, aten.mean.dim):
        result = edit.call(aten.div.Tensor, result, float(ends.count or 1))
    user.replace_all_uses_with(result)


def _through(axis: int) -> _Use:
    """A view or a copy, behind which the ends lie along this axis."""
    return lambda user, ends: _replace_uses(user, axis, ends)


def _swaps_first(user: Node) -> bool:
    """Whether a view puts the rows of edges before their ends."""
    dim = value(user).dim()
    if is_call(user, aten.transpose.int):
        return {item % dim for item in arguments(user)[1:3]} == {0, 1}
    return [item % dim for item in arguments(user)[1]] == [1, 0, *range(2, dim)]


def _joins_ends(user: Node) -> bool:
    """Whether [E, 2, F, ...] becomes [E, 2 * F, ...]."""
    before, after = value(arguments(user)[0]).shape, value(user).shape
    if len(after) != len(before) - 1 or len(before) < 3:
        return False
    merged = [before[0], before[1] * before[2], *before[3:]]
    return all(same_size(a, b) for a, b in zip(after, merged, strict=True))


def _joined(user: Node, ends: _Ends) -> None:
    user.replace_all_uses_with(Editor(user.graph, user).call(aten.cat.default, ends.all(), 1))
