"""A linear layer behind a sum over edges: the sum goes first, and the product has node rows.

    segment_sum(e @ W + b, m) = segment_sum(e, m) @ W + count_m * b
    segment_sum(s * (e @ W + b), m) = segment_sum(s * e, m) @ W + segment_sum(s, m) * b         for one number s per edge

A mean is a sum and a division by the count here, so it is covered. The law needs the product to be read by the sum alone.
Widths do not matter: a product reads its whole operand from memory and a sum that is fused reads it from registers, so that
even a wide operand of a narrow product is cheaper summed first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Graph, Node

from plait import operators
from plait.passes import edit
from plait.passes.domains import Domains, keeps_rows
from plait.passes.edit import (
    PRODUCTS,
    RESHAPES,
    Editor,
    argument,
    arguments,
    aten,
    is_call,
    is_tensor,
    product_parts,
    same_shape,
    same_size,
    value,
)
from plait.passes.propagation import Factor, factor_of, is_one_number
from plait.passes.reorganise.guards import is_more_work
from plait.passes.structure import read_sizes_from_structure


def move_behind_sums(graph: Graph, domains: Domains) -> list[str]:
    """Applies the law to every sum over edges; returns a line per sum."""
    read_sizes_from_structure(graph)  # who wants a product's size does not read it
    graph.eliminate_dead_code()
    moved = []
    for node in list(graph.nodes):
        if not _is_sum(node):
            continue
        values, index, num_rows = arguments(node)[:3]
        if not domains.is_edge(values) or _num_products(values, domains) == 0:
            continue
        if is_more_work([(value(values).shape[0], 1)], [(value(node).shape[0], 1)]):
            continue
        sums = _Sums(Editor(graph, node), domains, node, index, num_rows)
        moved.append(f"{node.name}: {_num_products(values, domains)} product of edge rows moved behind the sum")
        edit.replace(node, sums.of(values))
    graph.eliminate_dead_code()
    return moved


def _is_sum(node: Node) -> bool:
    """Whether a call sums float rows from zero."""
    if not is_call(node, operators.segment_reduce) or not value(node).dtype.is_floating_point:
        return False
    return bool(arguments(node)[3] == "sum" and argument(node, 4, "init", 0.0) == 0)


def _num_products(node: Any, domains: Domains) -> int:
    """Products in a sum of edge values that can go behind the sum over edges."""
    if not isinstance(node, Node) or len(node.users) != 1:
        return 0
    if is_call(node, *PRODUCTS):
        return int(_is_product_of_rows(node, domains))
    return sum(_num_products(item, domains) for item in _linear_operands(node))


def _is_product_of_rows(node: Node, domains: Domains) -> bool:
    parts = product_parts(node)
    if parts is None:
        return False
    bias, rows, weight = parts
    if domains.is_edge(weight) or not domains.is_edge(rows):
        return False
    return bias is None or value(bias).dim() == 1 or same_size(value(bias).shape[0], 1)


def _linear_operands(node: Node) -> list[Any]:
    """What a linear function of edge rows is a function of."""
    if is_call(node, *RESHAPES):
        return [node.args[0]] if keeps_rows(node) and _has_same_rows(node, node.args[0]) else []
    if is_call(node, aten.neg.default):
        return [node.args[0]]
    if is_call(node, aten.add.Tensor, aten.sub.Tensor) and len(node.args) == 2 and not node.kwargs:
        return list(node.args) if all(is_tensor(item) and _same_shape(item, node) for item in node.args) else []
    scaled = _scaled(node)
    return [] if scaled is None else [scaled[0]]


def _has_same_rows(node: Node, other: Any) -> bool:
    return same_size(value(node).shape[0], value(other).shape[0])


def _same_shape(a: Any, b: Any) -> bool:
    return same_shape(value(a).shape, value(b).shape)


def _scaled(node: Node) -> tuple[Node, Factor] | None:
    """(x, factor) of a product or quotient by one number per edge, or by a number."""
    found = factor_of(node)
    if found is None:
        return None
    x, factor = found
    if not _same_shape(x, node) or value(x).dtype is not value(node).dtype:
        return None
    is_per_row = is_one_number(factor.by) or (
        _has_same_rows(node, factor.by) and all(same_size(size, 1) for size in value(factor.by).shape[1:])
    )
    return found if is_per_row else None


@dataclass(frozen=True)
class _Sums:
    """Sums over the edges of one map, built before the reduction they replace. scale: one number per edge, or None."""

    edit: Editor
    domains: Domains
    node: Node
    index: Node
    num_rows: Any
    scale: Node | None = None

    def of(self, item: Node) -> Node:
        """segment_sum(scale * item), with the products in it behind."""
        if _num_products(item, self.domains) == 0:
            return self._reduced(self._scaled(item))
        if is_call(item, *PRODUCTS):
            return self._of_product(item)
        if is_call(item, *RESHAPES):
            inner = self.of(arguments(item)[0])
            return self.edit.call(aten.reshape.default, inner, [self.edit.size(inner, 0), *value(item).shape[1:]])
        if is_call(item, aten.neg.default):
            return self.edit.call(aten.neg.default, self.of(arguments(item)[0]))
        if _scaled(item) is not None:
            return self._of_scaled(item)
        left, right = (self.of(operand) for operand in arguments(item))
        return self.edit.call(item.target, left, right)  # type: ignore[arg-type]

    def _of_product(self, item: Node) -> Node:
        parts = product_parts(item)
        assert parts is not None  # or it would not have been counted
        bias, rows, weight = parts
        product = self.edit.call(aten.mm.default, self.of(rows), weight)
        if bias is None:
            return product
        count = self._reduced(self.scale if self.scale is not None else self._ones(item))
        return self.edit.call(aten.add.Tensor, product, self.edit.call(aten.mul.Tensor, count, bias))

    def _of_scaled(self, item: Node) -> Node:
        scaled = _scaled(item)
        assert scaled is not None
        x, factor = scaled
        if is_one_number(factor.by):
            return self.edit.call(factor.target, self.of(x), factor.by)
        scale = self.edit.call(aten.reshape.default, factor.by, [self.edit.size(factor.by, 0), 1])
        if value(scale).dtype is not value(item).dtype:  # a mask is counted, and a sum of bools is no count
            scale = self.edit.call(aten._to_copy.default, scale, dtype=value(item).dtype)
        if factor.target is aten.div.Tensor:
            scale = self.edit.call(aten.reciprocal.default, scale)
        if self.scale is not None:
            scale = self.edit.call(aten.mul.Tensor, self.scale, scale)
        return replace(self, scale=scale).of(x)

    def _scaled(self, item: Node) -> Node:
        if self.scale is None:
            return item
        shape = [self.edit.size(self.scale, 0), *[1] * (value(item).dim() - 1)]
        return self.edit.call(aten.mul.Tensor, self.edit.call(aten.reshape.default, self.scale, shape), item)

    def _ones(self, item: Node) -> Node:
        val = value(item)
        return self.edit.call(aten.full.default, [self.edit.size(self.index, 0), 1], 1.0, dtype=val.dtype, device=val.device)

    def _reduced(self, item: Node) -> Node:
        return self.edit.call(operators.segment_reduce, item, self.index, self.num_rows, *arguments(self.node)[3:])
