"""Products of an edge's own axes with a weight: of every head of a message, of every component of a vector.

    mm(view(x, [E * h, k]), w) = view(stack([mm(x[:, i], w) for i], 1), [E * h, n])      x [E, h, k], w [k, n]
    bmm(permute(x, [1, 0, 2]), w) = permute(stack([mm(x[:, i], w[i]) for i], 1), ...)    x [E, h, k], w [h, k, n]

`F.linear`, `matmul` and `torch.einsum` write them with the heads among the rows, or in front of them, where nothing is known to
be of an edge. Here the edges lead, and each head has a product of its own, which runs by tiles; a product of few numbers, or by
a vector, is a sum of elementwise products. It runs before autograd, so that gradients have the same form.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from plait.passes.domains import Domains, infer
from plait.passes.edit import (
    RESHAPES,
    SAME,
    Editor,
    arguments,
    aten,
    inner_sizes,
    is_call,
    product_parts,
    replace_views,
    same_size,
    static,
    value,
)

_MOST_HEADS = 32  # products that are written out
_MOST_COLUMNS = 2048  # numbers of an edge, before and behind
_FEW = 64  # multiplications of an edge, up to which they are written out one by one
_MOVES = (aten.permute.default, aten.transpose.int, aten.clone.default, *RESHAPES, *SAME)
_TARGETS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.mv.default, aten.addmv.default, aten._trilinear.default)


def spell_inner_products(graph: Graph) -> None:
    """Rewrites `graph` in place: every product of an edge's heads with a weight of static size."""
    domains = infer(graph)
    for node in list(graph.nodes):
        if not is_call(node, *_TARGETS) or value(node).dtype not in (torch.float32, torch.float64):
            continue  # bfloat16 is rounded behind every operator, and a product's terms are not
        if _SPELLINGS[node.target](Editor(graph, node), node, domains):
            domains = infer(graph)  # what comes behind a product has a domain once the product is written out
    graph.eliminate_dead_code()


# --- the operators ----------------------------------------------------------------------------------------------------


def _mm(edit: Editor, node: Node, domains: Domains) -> bool:
    parts = product_parts(node)
    if parts is None or domains.is_edge(parts[1]):
        return False
    bias, rows, weight = parts
    x = _by_head(edit, rows, domains)
    if x is None or not _is_weight(weight, domains) or not _fits(x, weight):
        return False
    if bias is not None and not (value(bias).dim() == 1 and _is_weight(bias, domains)):
        return False
    result = _product(edit, x, weight)
    _put(edit, node, result if bias is None else edit.call(aten.add.Tensor, result, bias))
    return True


def _mv(edit: Editor, node: Node, domains: Domains) -> bool:
    rows, vector = arguments(node)[-2:]
    if node.kwargs or not _is_weight(vector, domains):
        return False
    x = rows if domains.is_edge(rows) else _by_head(edit, rows, domains)
    if x is None:
        return False
    result = edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, x, vector), [-1])
    if is_call(node, aten.addmv.default):
        summand = arguments(node)[0]
        if x is not rows or value(summand).dim() != 1:
            return False
        result = edit.call(aten.add.Tensor, result, summand)
    _put(edit, node, result)
    return True


def _bmm(edit: Editor, node: Node, domains: Domains) -> bool:
    for position, (edges, head, inner) in enumerate(((1, 0, 2), (2, 0, 1))):
        found, weight = _layout(arguments(node)[position], domains.is_edge), arguments(node)[1 - position]
        if found is None or found.axes[edges] != 0 or not _is_weight(weight, domains):
            continue
        x = found.arranged(edit, (edges, head, inner))
        if position == 1:
            weight = edit.call(aten.transpose.int, weight, 1, 2)
        if not _fits(x, weight):
            return False
        result = _product(edit, x, weight)
        whole = edit.call(aten.permute.default, result, [1, 0, 2] if position == 0 else [1, 2, 0])
        node.replace_all_uses_with(whole)
        _lead_edges(whole, result)
        return True
    return False


def _trilinear(edit: Editor, node: Node, domains: Domains) -> bool:
    """`F.bilinear`: sums of a [E, i], w [n, i, j], b [E, j] over i and j"""
    a, weight, b, *axes = arguments(node)[:7]
    if axes != [[1, 3], [0], [1, 2], [2, 3]] or not (domains.is_edge(a) and domains.is_edge(b) and _is_weight(weight, domains)):
        return False
    columns, inner, others = (int(size) for size in value(weight).shape)
    if columns * others > _MOST_COLUMNS:
        return False
    flat = edit.call(aten.reshape.default, edit.call(aten.permute.default, weight, [1, 0, 2]), [inner, columns * others])
    forms = edit.call(aten.reshape.default, edit.call(aten.mm.default, a, flat), [edit.size(a, 0), columns, others])
    product = edit.call(aten.mul.Tensor, forms, edit.call(aten.unsqueeze.default, b, 1))
    _put(edit, node, edit.call(aten.sum.dim_IntList, product, [-1]))
    return True


_SPELLINGS = {
    aten.mm.default: _mm,
    aten.addmm.default: _mm,
    aten.mv.default: _mv,
    aten.addmv.default: _mv,
    aten.bmm.default: _bmm,
    aten._trilinear.default: _trilinear,
}


def _is_weight(node: Node, domains: Domains) -> bool:
    return not domains.is_edge(node) and inner_sizes(value(node), leading=False) is not None


def _fits(x: Node, weight: Node) -> bool:
    """Whether x [E, h, k] and a weight [k, n] or [h, k, n] are worth products of their own."""
    _, heads, inner = value(x).shape
    wide = heads * value(weight).shape[-1]
    return bool(0 < heads <= _MOST_HEADS and 0 < heads * inner <= _MOST_COLUMNS and 0 < wide <= _MOST_COLUMNS)


def _product(edit: Editor, x: Node, weight: Node) -> Node:
    """x [E, h, k] and a weight [k, n], or [h, k, n], to [E, h, n]"""
    _, heads, inner = value(x).shape
    width, is_shared = value(weight).shape[-1], value(weight).dim() == 2
    if width == 1:
        vector = edit.call(aten.reshape.default, weight, [inner] if is_shared else [heads, inner])
        return edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, x, vector), [-1], True)
    if heads * inner * width <= _FEW:
        return edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, edit.call(aten.unsqueeze.default, x, 3), weight), [2])
    rows = _parts(edit, x, 1, heads)
    weights = [weight] * heads if is_shared else _parts(edit, weight, 0, heads)
    return edit.call(aten.stack.default, [edit.call(aten.mm.default, *pair) for pair in zip(rows, weights, strict=True)], 1)


def _parts(edit: Editor, x: Node, axis: int, count: int) -> list[Node]:
    parts = edit.call(aten.unbind.int, x, axis)
    return [edit.call(operator.getitem, parts, position) for position in range(count)]


def _put(edit: Editor, node: Node, result: Node) -> None:
    """In the place of a product that has the heads among its rows, or none."""
    replace_views(node, result)
    if node.users:
        sizes = [-1 if static(size) is None else size for size in value(node).shape]
        node.replace_all_uses_with(edit.call(aten.reshape.default, result, sizes))


# --- where the edges are ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """A tensor as a value of edges, moved: `axes` says which axis of `source` stands where; None has size 1."""

    source: Node
    axes: tuple[int | None, ...]

    def arranged(self, edit: Editor, order: tuple[int, ...]) -> Node:
        """The axes in another order, edges first: a value of edges again."""
        axes = [self.axes[place] for place in order]
        used = [axis for axis in axes if axis is not None]
        others = [axis for axis in range(value(self.source).dim()) if axis not in used]
        moved = edit.call(aten.permute.default, self.source, [*used, *others])
        sizes = [1 if axis is None else edit.size(self.source, axis) for axis in axes]
        return edit.call(aten.reshape.default, moved, sizes)


def _layout(node: Any, is_source: Callable[[Node], bool]) -> _Layout | None:
    """How a tensor lies, if it is nothing but a value of edges with its axes in another order, or more of size 1."""
    if is_source(node):
        sizes = value(node).shape
        return _Layout(node, tuple(axis if axis == 0 or static(size) != 1 else None for axis, size in enumerate(sizes)))
    if not is_call(node, *_MOVES):
        return None
    inner = _layout(arguments(node)[0], is_source)
    if inner is None:
        return None
    if is_call(node, aten.permute.default):
        return _Layout(inner.source, tuple(inner.axes[axis] for axis in arguments(node)[1]))
    if is_call(node, aten.transpose.int):
        axes = list(inner.axes)
        first, second = (axis % len(axes) for axis in arguments(node)[1:3])
        axes[first], axes[second] = axes[second], axes[first]
        return _Layout(inner.source, tuple(axes))
    return _reshaped(inner, value(node)) if is_call(node, *RESHAPES) else inner


def _reshaped(inner: _Layout, val: torch.Tensor) -> _Layout | None:
    left = [axis for axis in inner.axes if axis is not None]
    axes: list[int | None] = []
    for size in val.shape:
        if left and same_size(size, value(inner.source).shape[left[0]]):
            axes.append(left.pop(0))
        elif static(size) == 1:
            axes.append(None)
        else:
            return None
    return None if left else _Layout(inner.source, tuple(axes))


def _by_head(edit: Editor, rows: Node, domains: Domains) -> Node | None:
    """Rows [E * h, k] as [E, h, k]; None for what is no view of edges, or has no static sizes."""
    source, width = rows, static(value(rows).shape[1])
    while is_call(source, aten.clone.default, *RESHAPES, *SAME) and not domains.is_edge(source):
        source = arguments(source)[0]
    sizes = inner_sizes(value(source)) if domains.is_edge(source) else None
    if sizes is None or not width or math.prod(sizes) % width != 0 or (sizes and sizes[-1] == 0):
        return None
    heads = math.prod(sizes) // width
    if heads == 0 or not same_size(value(rows).shape[0], value(source).shape[0] * heads):
        return None
    return edit.call(aten.reshape.default, source, [edit.size(source, 0), heads, width])


def _lead_edges(node: Node, source: Node) -> None:
    """Views behind `node`, a view of `source`, that have the edges in front are values of edges."""
    for user in list(node.users):
        if not is_call(user, *_MOVES):
            continue
        found = _layout(user, lambda item: item is source)
        if found is None or found.axes[0] != 0:
            _lead_edges(user, source)
        else:
            user.replace_all_uses_with(found.arranged(Editor(node.graph, user), tuple(range(len(found.axes)))))
