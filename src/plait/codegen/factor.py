"""A factor that is constant per row leaves the sum over the row: sum_e(v_e * r) = r * sum_e(v_e).

The sum then needs no value of its own pass: softmax's normalisation moves behind the weighted sum (two passes over a row
instead of three), and a gradient shared by ties is summed in one pass. Reassociation: the result may differ in the last bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from plait.codegen.simplify import Rebuild, rebuild
from plait.codegen.views import VIEWS
from plait.ir.ops import Const, Expand, Pointwise, Reduce, Reshape, RowLength, SegmentReduce
from plait.ir.program import Node, Program, Space, Type


@dataclass(frozen=True)
class Product:
    """edge * times[0] * ... / over[0] / ...: `edge` lives on EDGE (None: 1), the others on ROW or DENSE."""

    edge: Node | None
    times: tuple[Node, ...] = ()
    over: tuple[Node, ...] = ()


def factor(program: Program) -> Program:
    """Take factors that are constant per row out of sums over rows."""
    return rebuild(program, factor_sum)


def factor_sum(node: Node, make: Rebuild) -> Node | None:
    """segment_sum(v * r) = where(row is not empty, segment_sum(v) * r, 0), r being the same for every edge of the row."""
    if not (isinstance(node.op, SegmentReduce) and node.op.reduce is Reduce.SUM and node.op.init == 0):
        return None
    value = node.inputs[0]
    if not value.type.dtype.is_floating_point:
        return None
    product = split(value, make)
    if product.edge is None or not any(item.type.space is Space.ROW for item in (*product.times, *product.over)):
        return None
    total = make.node(node.op, (product.edge,), node.type)
    result = total
    for item in product.times:
        result = make.node(Pointwise("mul"), (result, item), node.type)
    for item in product.over:
        result = make.node(Pointwise("div"), (result, item), node.type)
    # an empty row has r = 1 / 0 or the like, and must give 0
    return make.node(Pointwise("where"), (_is_not_empty(node.type, make), result, total), node.type)


def split(value: Node, make: Rebuild) -> Product:
    """`value` as a product of an edge value and row constants, looking through products, quotients and views."""
    if value.type.space is not Space.EDGE:
        return Product(None, (value,))
    if isinstance(value.op, VIEWS):
        return _split_view(value, make)
    if value.op == Pointwise("mul"):
        left, right = (split(item, make) for item in value.inputs)
        edge = _times(left.edge, right.edge, value.type, make)
        return Product(edge, left.times + right.times, left.over + right.over)
    if value.op == Pointwise("div"):
        above, below = split(value.inputs[0], make), value.inputs[1]
        if below.type.space is not Space.EDGE:
            return Product(above.edge, above.times, (*above.over, below))
        if above.edge is not None and (above.times or above.over):
            return Product(make.node(value.op, (above.edge, below), value.type), above.times, above.over)
    return Product(value)


def _split_view(value: Node, make: Rebuild) -> Product:
    inner = split(value.inputs[0], make)
    if not inner.times and not inner.over:
        return Product(value)

    def view(item: Node) -> Node:
        return make.node(value.op, (item,), Type(item.type.space, value.type.shape, item.type.dtype))

    edge = view(inner.edge) if inner.edge is not None else None
    return Product(edge, tuple(map(view, inner.times)), tuple(map(view, inner.over)))


def _times(left: Node | None, right: Node | None, type_: Type, make: Rebuild) -> Node | None:
    if left is None or right is None:
        return right if left is None else left
    return make.node(Pointwise("mul"), (left, right), type_)


def _is_not_empty(type_: Type, make: Rebuild) -> Node:
    length = make.node(RowLength(), (), Type(Space.ROW, (), torch.float32))
    zero = make.node(Const(0.0), (), Type(Space.DENSE, (), torch.float32))
    condition = make.node(Pointwise("gt"), (length, zero), Type(Space.ROW, (), torch.bool))
    ones = make.node(Reshape(), (condition,), Type(Space.ROW, (1,) * len(type_.shape), torch.bool))
    return make.node(Expand(), (ones,), Type(Space.ROW, type_.shape, torch.bool))
