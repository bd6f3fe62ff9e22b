"""A value per entry of a matrix, [*rows, K, ...], as one with a single axis for all entries, [E, ...]."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import Node

from plait import operators
from plait.passes.domains import is_elementwise
from plait.passes.edit import RESHAPES, SAME, Editor, argument, arguments, aten, is_call, is_tensor, same_size, value
from plait.passes.neighbours.matrix import Matrix, behind, inner_shape

_TRANSPOSES = (aten.permute.default, aten.transpose.int)
_INNER_REDUCTIONS = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default)


class Entries:
    """The values of one matrix's entries, as far as they were asked for."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self.flat: dict[Node, Node] = {}
        self.made: dict[Node, Node] = {}  # those of `flat` that an operator makes anew, instead of viewing what was there

    def of(self, node: Node) -> Node:
        """[E, ...] of a value [*rows, K, ...] whose other sizes are static."""
        if node not in self.flat:
            made = self._made(node)
            if made is not None:
                self.made[node] = made
            else:
                made = behind(node).call(aten.reshape.default, node, [-1, *self._inner(node)])
            self.flat[node] = made
        return self.flat[node]

    def is_known(self, node: Any) -> bool:
        """Whether a value has a row of static sizes per entry."""
        if not is_tensor(node) or value(node).dim() < self.matrix.rank or not self.matrix.has_entries(node):
            return False
        return inner_shape(node, self.matrix.rank) is not None

    def softmax(self, edit: Editor, x: Node, *, log: bool = False) -> Node:
        """Over the columns, x being [E, ...]: no gradient goes through the maximum, which cancels."""
        most = self.reduced(edit, edit.call(aten.detach.default, x), "max")
        shifted = edit.call(aten.sub.Tensor, x, self.spread(edit, most))
        powers = edit.call(aten.exp.default, shifted)
        total = self.reduced(edit, powers, "sum")
        if log:
            return edit.call(aten.sub.Tensor, shifted, self.spread(edit, edit.call(aten.log.default, total)))
        return edit.call(aten.div.Tensor, powers, self.spread(edit, total))

    def reduced(self, edit: Editor, x: Node, reduce: str) -> Node:
        """[R, ...] from [E, ...]. No row is without entries; a start that equals nothing is no tie of a maximum."""
        init = 0.0 if reduce == "sum" else math.nan
        return edit.call(operators.segment_reduce, x, self.matrix.rows, self.matrix.num_rows, reduce, init)

    def spread(self, edit: Editor, x: Node) -> Node:
        """[E, ...] from [R, ...]."""
        return edit.call(operators.gather, x, self.matrix.rows)

    def _inner(self, node: Node) -> list[int]:
        shape = inner_shape(node, self.matrix.rank)
        assert shape is not None
        return shape

    # --- rules: an operator on [*rows, K, ...] as one on [E, ...] -------------------------------------------------------

    def _made(self, node: Node) -> Node | None:
        """The value made of its operands' flat values; None where no rule fits."""
        if node.op != "call_function":
            return None
        edit = Editor(node.graph, node)
        if is_elementwise(node) and not any(map(is_tensor, node.kwargs.values())):
            operands = [self._operand(edit, item, node) for item in node.args]
            return self._expanded(edit, edit.call(node.target, *operands, **node.kwargs), node)  # type: ignore[arg-type]
        rule = _RULES.get(node.target)
        return rule(self, edit, node) if rule is not None else None

    def _expanded(self, edit: Editor, made: Node, node: Node) -> Node:
        """Axes of size 1, and missing ones, repeated as in `node`."""
        shape = self._inner(node)
        inner, has_rows = list(value(made).shape), value(made).dim() == len(shape) + 1
        if has_rows and self.matrix.counts_entries(inner[0]):
            return made if inner[1:] == shape else edit.call(aten.expand.default, made, [-1, *shape])
        return edit.call(aten.expand.default, made, [edit.size(self.matrix.rows, 0), *shape])

    def _operand(self, edit: Editor, item: Any, node: Node) -> Any:
        """What `node` reads, so that its axes stand against those of [E, ...]."""
        rank, dim = self.matrix.rank, value(node).dim()
        if not is_tensor(item) or value(item).dim() <= dim - rank:
            return item  # the same for all entries
        if self.is_known(item) and value(item).dim() == dim:
            return self.of(item)
        while value(item).dim() < dim:
            item = edit.call(aten.unsqueeze.default, item, 0)
        return self._repeated(edit, item, node)

    def _repeated(self, edit: Editor, item: Node, node: Node) -> Node:
        """[E, ...] of a value that has size 1 in some of the first axes of `node`."""
        rank, shape = self.matrix.rank, value(item).shape
        inner = self._inner(item)
        is_one = [same_size(size, 1) for size in shape[:rank]]
        if all(is_one):
            return edit.call(aten.reshape.default, item, inner)
        if all(is_one[:-1]):
            by_column = edit.call(aten.reshape.default, item, [self.matrix.num_columns, *inner])
            return edit.call(operators.gather, by_column, self.matrix.columns)
        if any(is_one[:-1]):
            sizes = [*self.matrix.sizes[:-1], 1 if is_one[-1] else self.matrix.sizes[-1]]
            item = edit.call(aten.expand.default, item, [*sizes, *inner])
        if not is_one[-1]:
            return edit.call(aten.reshape.default, item, [-1, *inner])
        return self.spread(edit, self._by_row(edit, item, inner))

    def _by_row(self, edit: Editor, item: Node, inner: Sequence[Any]) -> Node:
        """[R, ...] of [*rows, 1, ...]: what it was before it got an axis for the columns."""
        source: Node = item
        while is_call(source, *RESHAPES):
            source = arguments(source)[0]
            if value(source).dim() == len(inner) + 1 and list(value(source).shape[1:]) == list(inner):
                return source
        return edit.call(aten.reshape.default, item, [-1, *inner])


Rule = Callable[[Entries, Editor, Node], Node | None]


def _reshaped(entries: Entries, edit: Editor, node: Node) -> Node | None:
    """Of other inner axes, or of the rows of a product: they are entries already."""
    source = arguments(node)[0]
    while not entries.is_known(source) and _moves_nothing(source):
        source = arguments(source)[0]
    if entries.is_known(source):
        made = entries.of(source)
    elif value(source).dim() > 0 and entries.matrix.counts_entries(value(source).shape[0]):
        made = source
    else:
        return None
    shape = entries._inner(node)
    return made if list(value(made).shape[1:]) == shape else edit.call(aten.reshape.default, made, [-1, *shape])


def _moves_nothing(node: Node) -> bool:
    """Whether the numbers stay in order: a reshape, or a transpose that moves axes of size 1 alone."""
    if is_call(node, *RESHAPES):
        return True
    if not is_call(node, *_TRANSPOSES):
        return False
    order = _order(node)
    moved = [axis for axis in order if not same_size(value(arguments(node)[0]).shape[axis], 1)]
    return moved == sorted(moved)


def _order(node: Node) -> list[int]:
    """Where the axes of a transposed value come from."""
    axes = arguments(node)[1:]
    if is_call(node, aten.permute.default):
        return [axis % value(node).dim() for axis in axes[0]]
    order = list(range(value(node).dim()))
    first, second = (axis % value(node).dim() for axis in axes)
    order[first], order[second] = second, first
    return order


def _unary(entries: Entries, edit: Editor, node: Node) -> Node | None:
    x, *others = arguments(node)
    return edit.call(node.target, entries.of(x), *others, **node.kwargs) if entries.is_known(x) else None  # type: ignore[arg-type]


def _copied(entries: Entries, edit: Editor, node: Node) -> Node | None:
    """Where the copy lies in memory is the matrix's matter no more."""
    x = arguments(node)[0]
    return entries.of(x) if entries.is_known(x) else None


def _expand(entries: Entries, edit: Editor, node: Node) -> Node | None:
    x = arguments(node)[0]
    if is_call(node, aten.repeat.default):
        padded = [1] * (value(node).dim() - value(x).dim()) + list(value(x).shape)
        if not all(
            same_size(value(times), 1) or same_size(size, 1) for times, size in zip(arguments(node)[1], padded, strict=True)
        ):
            return None
    return entries._expanded(edit, entries._operand(edit, x, node), node)


def _cat(entries: Entries, edit: Editor, node: Node) -> Node | None:
    axis = argument(node, 1, "dim", 0) % value(node).dim() - entries.matrix.rank
    parts = arguments(node)[0]
    if axis < 0 or not all(map(entries.is_known, parts)):
        return None
    return edit.call(aten.cat.default, [entries.of(item) for item in parts], axis + 1)


def _inner_reduction(entries: Entries, edit: Editor, node: Node) -> Node | None:
    x, axes, *others = (*arguments(node), None)[: max(2, len(node.args))]
    axes = _inner_axes(entries, x, axes)
    return edit.call(node.target, entries.of(x), axes, *others, **node.kwargs) if axes else None  # type: ignore[arg-type]


def _inner_axes(entries: Entries, x: Node, axes: Any) -> list[int] | None:
    """Axes of [*rows, K, ...] as those of [E, ...]; None where one is of the matrix."""
    if not entries.is_known(x) or not axes:
        return None
    found = [axis % value(x).dim() - entries.matrix.rank for axis in axes]
    return [axis + 1 for axis in found] if min(found) >= 0 else None


def _part(entries: Entries, edit: Editor, node: Node) -> Node | None:
    x, axis, *others = (*arguments(node), 0)[: max(2, len(node.args))]
    axes = _inner_axes(entries, x, [axis])
    return edit.call(node.target, entries.of(x), axes[0], *others, **node.kwargs) if axes else None  # type: ignore[arg-type]


def _permuted(entries: Entries, edit: Editor, node: Node) -> Node | None:
    if _moves_nothing(node):
        return _reshaped(entries, edit, node)
    rank, order, x = entries.matrix.rank, _order(node), arguments(node)[0]
    while is_call(x, *_TRANSPOSES) and not (entries.is_known(x) and order[:rank] == list(range(rank))):
        order, x = [_order(x)[axis] for axis in order], arguments(x)[0]  # one transpose takes back another
    if order[:rank] != list(range(rank)) or not entries.is_known(x):
        return None
    return edit.call(aten.permute.default, entries.of(x), [0, *(axis - rank + 1 for axis in order[rank:])])


def _softmax(entries: Entries, edit: Editor, node: Node) -> Node | None:
    x, axis, to_float = arguments(node)
    if to_float or not entries.is_known(x):
        return None
    axes = _inner_axes(entries, x, [axis])
    if axes is not None:
        return edit.call(node.target, entries.of(x), axes[0], False)  # type: ignore[arg-type]
    if axis % value(x).dim() != entries.matrix.rank - 1:
        return None
    return entries.softmax(edit, entries.of(x), log=is_call(node, aten._log_softmax.default))


def _item(entries: Entries, edit: Editor, node: Node) -> Node | None:
    """The result of a layer norm over inner axes."""
    norm, number = arguments(node)
    if number != 0 or not is_call(norm, aten.native_layer_norm.default):
        return None
    x, shape, *others = arguments(norm)
    if not entries.is_known(x) or len(shape) > value(x).dim() - entries.matrix.rank:
        return None
    return edit.call(operator.getitem, edit.call(aten.native_layer_norm.default, entries.of(x), shape, *others), 0)


_RULES: dict[Any, Rule] = {
    **dict.fromkeys(RESHAPES, _reshaped),
    **dict.fromkeys((*SAME, aten._to_copy.default, operators.dropout), _unary),
    aten.clone.default: _copied,
    aten.expand.default: _expand,
    aten.repeat.default: _expand,
    aten.cat.default: _cat,
    **dict.fromkeys(_INNER_REDUCTIONS, _inner_reduction),
    aten.select.int: _part,
    aten.slice.Tensor: _part,
    aten.permute.default: _permuted,
    aten.transpose.int: _permuted,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _softmax,
    operator.getitem: _item,
}
