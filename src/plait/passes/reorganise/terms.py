"""Edge values as sums of terms, each of which depends on one end of the edges.

    form(v) = sum over terms of  factor * scale_e * gather(value, end)        (or `value` per edge, where end is None)

`value` is an expression over node rows that is not in the graph: a law looks at forms first and builds what it wants of them.
While views and permutations are on their way (an einsum makes a few), the rows may stand at any axis, and `block` entries
of a row may have been flattened into it: `Layout` says where they are.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Node

from plait import operators
from plait.passes.edit import Editor, Target, aten, same_size, static, value


@dataclass(frozen=True)
class End:
    """A map that rows are gathered by. `like`: a tensor whose leading axis has the rows that it points into."""

    index: Node
    wrap: bool  # whether entries may count from the end
    like: Node


@dataclass(frozen=True)
class Layout:
    """Where the rows of a value are: axis `axis` holds `block` entries of every row; a value of `rank` axes."""

    axis: int
    block: int
    rank: int

    @property
    def is_plain(self) -> bool:
        """Rows at the leading axis and nothing else in it, as a gather makes them."""
        return self.axis == 0 and self.block == 1


@dataclass(frozen=True)
class Columns:
    """A value that stands in [start, stop) of an inner axis of `size` entries, and zeros around it."""

    axis: int
    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class Count:
    """An argument of a view: `block` times the number of rows."""

    block: int


@dataclass(frozen=True, eq=False)
class Value:
    """A call on values of one domain that is not in the graph yet; a leaf (target None) stands for args[0].

    computes: whether it does more than views. products: the products of the edge program it repeats.
    """

    target: Target | None
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()
    computes: bool = False
    products: frozenset[Node] = frozenset()


@dataclass(frozen=True)
class Term:
    """factor * scale * gather(value, end). scale: [E, 1, ...] tensors of one number per edge."""

    value: Value
    end: End | None
    factor: float = 1.0
    scale: tuple[Node, ...] = ()
    columns: Columns | None = None


@dataclass(frozen=True)
class Form:
    """An edge value as the sum of `terms`. rows: a gather, whose leading axis are the edges."""

    terms: tuple[Term, ...]
    layout: Layout
    rows: Node

    @property
    def ends(self) -> tuple[End, ...]:
        return tuple(dict.fromkeys(term.end for term in self.terms if term.end is not None))

    @property
    def products(self) -> frozenset[Node]:
        """The products that building this form computes on nodes."""
        return frozenset().union(*(term.value.products for term in self.terms if term.end is not None))

    @property
    def stretches(self) -> dict[Columns | None, list[Term]] | None:
        """The terms by the columns they stand in, in order; None where columns overlap or leave some out."""
        groups: dict[Columns | None, list[Term]] = {}
        for term in sorted(self.terms, key=lambda term: term.columns.start if term.columns is not None else 0):
            groups.setdefault(term.columns, []).append(term)
        return groups if _is_partition(list(groups)) else None

    @property
    def can_be_built(self) -> bool:
        """Whether it has a row per edge and can be gathered and added, or concatenated."""
        return self.layout.is_plain and self.stretches is not None


Change = Callable[[Value, Columns | None], tuple[Value, Columns | None] | None]


@dataclass
class Values:
    """Makes values; equal calls are one object."""

    made: dict[object, Value] = field(default_factory=dict)

    def leaf(self, node: Node) -> Value:
        return self.made.setdefault(node, Value(None, (node,)))

    def call(self, target: Target, *args: Any, view: bool = False, product: Node | None = None, **kwargs: Any) -> Value:
        named = tuple(kwargs.items())
        key = (target, _key(args), _key(named))
        if key not in self.made:
            inner = [item for item in _leaves(args) if isinstance(item, Value)]
            products = frozenset().union(*(item.products for item in inner), [product] if product is not None else [])
            self.made[key] = Value(target, args, named, not view or any(item.computes for item in inner), products)
        return self.made[key]

    def full(self, term: Term, rank: int) -> Value:
        """The value of a term with its factor, and with the zeros around its columns."""
        result = term.value
        if term.factor == -1.0:
            result = self.call(aten.neg.default, result)
        elif term.factor != 1.0:
            result = self.call(aten.mul.Tensor, result, term.factor)
        return self.padded(result, term.columns, rank)

    def padded(self, inner: Value, columns: Columns | None, rank: int) -> Value:
        if columns is None:
            return inner
        pads = [0, 0] * (rank - 1 - columns.axis) + [columns.start, columns.size - columns.stop]
        return self.call(aten.constant_pad_nd.default, inner, pads, 0.0)

    def total(self, terms: list[Term], rank: int) -> Value:
        """The sum of terms of one end without scales."""
        total = self.full(terms[0], rank)
        for term in terms[1:]:
            if term.factor == -1.0:
                total = self.call(aten.sub.Tensor, total, self.full(replace(term, factor=1.0), rank))
                continue
            total = self.call(aten.add.Tensor, total, self.full(term, rank))
        return total

    def parts(self, form: Form) -> list[Term] | None:
        """The form as one term for each stretch of columns, if every stretch has one end and no scales."""
        groups = form.stretches
        if groups is None or any(term.scale or term.end is not group[0].end for group in groups.values() for term in group):
            return None
        whole = {columns: [replace(term, columns=None) for term in group] for columns, group in groups.items()}
        return [Term(self.total(group, form.layout.rank), group[0].end, columns=columns) for columns, group in whole.items()]

    def single(self, form: Form) -> tuple[End, Value] | None:
        """(end, value) of a form that is a gather of one value."""
        end = form.terms[0].end
        if end is None or any(term.end is not end or term.scale for term in form.terms):
            return None
        return end, self.total(list(form.terms), form.layout.rank)


def _is_partition(stretches: list[Columns | None]) -> bool:
    """Whether columns stand side by side along one axis, from its start to its end; None is all of it."""
    if None in stretches:
        return len(stretches) == 1
    columns = [item for item in stretches if item is not None]
    first, last = columns[0], columns[-1]
    if any(item.axis != first.axis for item in columns) or first.start != 0 or last.stop != last.size:
        return False
    return all(a.stop == b.start for a, b in itertools.pairwise(columns))


def _leaves(item: Any) -> list[Any]:
    if isinstance(item, list | tuple):
        return [leaf for part in item for leaf in _leaves(part)]
    return [item]


def _key(item: Any) -> object:
    if isinstance(item, list | tuple):
        return tuple(_key(part) for part in item)
    return item if isinstance(item, Value | Node) else (type(item), item)


# --- building --------------------------------------------------------------------------------------------------------


@dataclass
class Build:
    """Puts values into the graph before an anchor."""

    edit: Editor
    made: dict[tuple[Value, Node], Node] = field(default_factory=dict)

    def value(self, item: Value, like: Node) -> Node:
        """The node of `item` over the rows that `like` has."""
        if item.target is None:
            leaf: Node = item.args[0]
            return leaf
        key = (item, like)
        if key not in self.made:
            args = [self._argument(part, like) for part in item.args]
            self.made[key] = self.edit.call(item.target, *args, **dict(item.kwargs))
        return self.made[key]

    def _argument(self, item: Any, like: Node) -> Any:
        if isinstance(item, Value):
            return self.value(item, like)
        if isinstance(item, Count):
            size = self.edit.size(like, 0)
            return size if item.block == 1 else self._times(size, item.block)
        if isinstance(item, list | tuple):
            return [self._argument(part, like) for part in item]
        return item

    def _times(self, size: Any, block: int) -> Any:
        return size * block if isinstance(size, int) else self.edit.call(operator.mul, size, block)

    def form(self, form: Form, values: Values) -> Node:
        """The edge value of a form that `can_be_built`: what each end gives is added on nodes, gathered, and added."""
        stretches = form.stretches
        assert stretches is not None
        parts = [self._sum(replace(form, terms=tuple(group)), values) for group in stretches.values()]
        first = next(iter(stretches))
        return parts[0] if first is None else self.edit.call(aten.cat.default, parts, first.axis)

    def _sum(self, form: Form, values: Values) -> Node:
        """The sum of terms that stand in the same columns, without what is around them."""
        groups: dict[tuple[End | None, tuple[Node, ...]], list[Term]] = {}
        for term in (replace(term, columns=None) for term in form.terms):
            groups.setdefault((term.end, term.scale), []).append(term)
        total: Node | None = None
        for (end, scale), terms in groups.items():
            is_negative = total is not None and all(term.factor == -1.0 for term in terms)
            if is_negative:
                terms = [replace(term, factor=1.0) for term in terms]
            like = end.like if end is not None else form.rows
            rows = self.value(values.total(terms, form.layout.rank), like)
            if end is not None:
                rows = self.edit.call(operators.gather, rows, end.index, *([True] if end.wrap else []))
            for factor in scale:
                rows = self.edit.call(aten.mul.Tensor, self._as_column(factor, form.layout.rank), rows)
            if total is None:
                total = rows
                continue
            total = self.edit.call(aten.sub.Tensor if is_negative else aten.add.Tensor, total, rows)
        assert total is not None
        return total

    def _as_column(self, scale: Node, rank: int) -> Node:
        """[E, 1, ...] with `rank` axes from any tensor of one number per edge."""
        if value(scale).dim() == rank:
            return scale
        return self.edit.call(aten.reshape.default, scale, [self.edit.size(scale, 0), *[1] * (rank - 1)])


def inner_size(node: Node, layout: Layout) -> int | None:
    """Numbers per row of a value; None where that is not static."""
    result = layout.block
    for axis, size in enumerate(value(node).shape):
        if axis == layout.axis:
            continue
        number = static(size)
        if number is None:
            return None
        result *= number
    return result


def is_row_axis(size: Any, rows: Node, block: int) -> bool:
    """Whether an axis of `size` holds `block` entries for each of the rows of `rows`."""
    return same_size(size, value(rows).shape[0] * block)


def shape_arguments(node: Node, layout: Layout, columns: Columns | None = None) -> list[Any] | None:
    """The shape of a value in `columns` of `node`, as arguments for any number of rows; None where it is not static."""
    result: list[Any] = []
    for axis, size in enumerate(value(node).shape):
        if axis == layout.axis:
            result.append(Count(layout.block))
            continue
        number = static(size)
        if number is None:
            return None
        result.append(columns.stop - columns.start if columns is not None and columns.axis == axis else number)
    return result
