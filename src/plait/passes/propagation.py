"""The form y[i] = sum over the edges e into i of c[e, k] x[src e]: rows gathered, scaled, and summed at the other end.

What scales a row is the same for all of its columns, so a product with a weight can trade places with all of it
(`plait.passes.order`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from plait import operators
from plait.passes.domains import Domains
from plait.passes.edit import RESHAPES, Editor, argument, arguments, aten, is_call, is_tensor, static, value


@dataclass(frozen=True)
class Factor:
    """What scales rows: `mul` or `div` by something that is the same for all columns, or `neg`."""

    target: Any
    by: Any  # Node [E, ..., 1], a number (perhaps in a tensor), or None


@dataclass(frozen=True)
class Propagation:
    """A sum over edges of gathered rows [E, k * o], scaled per edge and per k; is_summed: whether the sum goes over k too.

    factors: from the gather on. heads: the k, or None where the rows have no such axis.
    """

    reduce: Node
    gather: Node
    factors: tuple[Factor, ...]
    heads: int | None
    is_summed: bool

    @property
    def source(self) -> Node:
        return arguments(self.gather)[0]  # type: ignore[no-any-return]


def propagation(reduce: Node, domains: Domains) -> Propagation | None:
    """The propagation that ends in a `segment_reduce`, or None where it is something else."""
    if argument(reduce, 3, "reduce") != "sum" or argument(reduce, 4, "init", 0.0) != 0.0 or value(reduce).dim() != 2:
        return None
    node = arguments(reduce)[0]
    factors: list[Factor] = []
    heads: int | None = None
    is_summed = False
    while not is_call(node, operators.gather):
        if not isinstance(node, Node) or not is_tensor(node) or not domains.is_edge(node):
            return None
        step = factor_of(node)
        if step is not None:
            node, factor = step
            factors.insert(0, factor)
        elif is_call(node, aten.neg.default):
            factors.insert(0, Factor(aten.neg.default, None))
            node = arguments(node)[0]
        elif (summed := _summed_axis(node)) is not None:
            if is_summed:
                return None
            node, heads, is_summed = arguments(node)[0], summed, True
        elif is_call(node, *RESHAPES, aten.expand.default):
            operand = arguments(node)[0]
            change = _view_change(value(operand), value(node))
            if change is None:
                return None
            if change > 1 and heads not in (None, change):
                return None
            node = operand
        else:
            return None
    if not isinstance(arguments(node)[0], Node) or value(arguments(node)[0]).dim() != 2:
        return None
    return Propagation(reduce, node, tuple(factors), heads, is_summed)


def factor_of(node: Node) -> tuple[Node, Factor] | None:
    """(what is scaled, by what): a product with, or a quotient by, what is the same for all columns of a row.

    That is a number, a tensor of one number, or a value [E, ..., 1], however it is spread over the columns.
    """
    if not is_call(node, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor):
        return None
    a, b = arguments(node)[:2]
    candidates = [(a, b)] if is_call(node, aten.div.Tensor) else [(a, b), (b, a)]
    for rows, by in candidates:
        if not isinstance(rows, Node) or not is_tensor(rows) or value(rows).shape[-1:] != value(node).shape[-1:]:
            continue
        if isinstance(by, int | float):
            return rows, Factor(node.target, by)
        if not isinstance(by, Node) or not is_tensor(by):
            continue
        if is_one_number(by) and value(rows).shape == value(node).shape:
            return rows, Factor(node.target, by)
        by = _before_spreading(by)
        if value(by).dim() == value(node).dim() > 0 and static(value(by).shape[-1]) == 1:
            return rows, Factor(node.target, by)
    return None


def is_one_number(item: Any) -> bool:
    """Whether a factor is the same for all rows, too."""
    return not isinstance(item, Node) or all(static(size) == 1 for size in value(item).shape)


def _before_spreading(by: Node) -> Node:
    """What is expanded over the last axis alone."""
    if not is_call(by, aten.expand.default):
        return by
    source: Node = arguments(by)[0]
    return source if value(source).shape[:-1] == value(by).shape[:-1] else by


def _summed_axis(node: Node) -> int | None:
    """The size k of the axis that `node` sums, which is neither the first nor the last of three."""
    if not is_call(node, aten.sum.dim_IntList):
        return None
    operand, axes = arguments(node)[:2]
    if value(operand).dim() != 3 or len(axes) != 1 or axes[0] % 3 != 1:
        return None
    return static(value(operand).shape[1])


def _view_change(before: Any, after: Any) -> int | None:
    """k where [E, k * o] becomes [E, k, o]; 1 where an axis of size 1 comes or goes; None for any other change of shape."""
    first, last = ([static(size) for size in val.shape[1:]] for val in (before, after))
    if None in first or None in last:
        return None
    if [size for size in first if size != 1] == [size for size in last if size != 1] and first[-1:] == last[-1:]:
        return 1
    if len(first) == 1 and len(last) == 2 and first[0] == (last[0] or 0) * (last[1] or 0):
        return last[0]
    return None


def propagate(edit: Editor, found: Propagation, x: Node, heads: int) -> Node:
    """The propagation of other rows: [N, heads * width of x]."""
    rows = edit.call(operators.gather, x, *arguments(found.gather)[1:])
    width = static(value(x).shape[1]) or 0
    if heads > 1:
        rows = edit.call(aten.unsqueeze.default, rows, 1)
    for factor in found.factors:
        if factor.by is None:
            rows = edit.call(factor.target, rows)
            continue
        rows = edit.call(factor.target, rows, _fitting(edit, factor.by, value(rows).dim()))
    if heads > 1:
        num_edges = edit.size(rows, 0)
        if static(value(rows).shape[1]) != heads:
            rows = edit.call(aten.expand.default, rows, [num_edges, heads, width])
        rows = edit.call(aten.reshape.default, rows, [num_edges, heads * width])
    return edit.call(operators.segment_reduce, rows, *arguments(found.reduce)[1:], **found.reduce.kwargs)


def _fitting(edit: Editor, by: Any, rank: int) -> Any:
    """A factor per edge with as many axes as the rows it scales: [E, 1] beside [E, k, 1]."""
    if not isinstance(by, Node) or is_one_number(by):
        return by
    while value(by).dim() < rank:
        by = edit.call(aten.unsqueeze.default, by, 1)
    while value(by).dim() > rank:
        by = edit.call(aten.squeeze.dim, by, 1)
    return by
