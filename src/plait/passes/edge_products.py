"""Matrix products by `bmm`, as `torch.einsum` and `matmul` write them: of one matrix, and of an edge's own.

    bmm(a[None], b[None]) = mm(a, b)[None]     a [E, k], b [k, n]: a product with a weight, which can move, or run by tiles

Products of an edge's own matrices, which kernels do not have, become sums of elementwise products, which they do.

    bmm(a, b) = sum(a[..., None] * b[:, None], 2)         a [E, m, k], b [E, k, n]

`torch.einsum`, `matmul` and attention scores over heads come here as such a product, with the heads and the edges merged into
one axis: bmm of views [E * h, m, k] and [E * h, k, n]. They are one axis each again, since a kernel takes edges.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Graph, Node

from plait.passes.domains import Domains, infer
from plait.passes.edit import (
    RESHAPES,
    Editor,
    arguments,
    aten,
    inner_sizes,
    is_call,
    replace_views,
    same_shape,
    same_size,
    static,
    value,
)

# multiplications of an edge: kernels write out an edge's columns
_MOST = 4096


def flatten_single_products(graph: Graph) -> None:
    """Rewrites `graph` in place: every bmm of one matrix by one matrix."""
    for node in graph.find_nodes(op="call_function", target=aten.bmm.default):
        if static(value(node).shape[0]) != 1:
            continue
        edit = Editor(graph, node)
        result = edit.call(aten.mm.default, *(_flat(edit, item) for item in arguments(node)[:2]))
        replace_views(node, result)
        if node.users:
            node.replace_all_uses_with(edit.call(aten.unsqueeze.default, result, 0))
    graph.eliminate_dead_code()


def _flat(edit: Editor, factor: Node) -> Node:
    """[1, m, k] as [m, k], from what it is a view of: rows of that are rows then."""
    sizes = [edit.size(factor, axis) for axis in (1, 2)]
    source = factor
    while is_call(source, *RESHAPES):
        source = arguments(source)[0]
    if value(source).dim() > 0 and same_size(value(source).shape[0], value(factor).shape[1]):
        sizes[0] = edit.size(source, 0)
    return edit.call(aten.reshape.default, source, sizes)


def spell_edge_products(graph: Graph) -> None:
    """Rewrites `graph` in place: every bmm of two values of the same edges, with static sizes."""
    domains = infer(graph)
    for node in graph.find_nodes(op="call_function", target=aten.bmm.default):
        edit = Editor(graph, node)
        factors = [_by_edge(item, domains, edit) for item in arguments(node)[:2]]
        a, b = factors
        if a is None or b is None or not same_shape(value(a).shape[:-2], value(b).shape[:-2]) or _work(a, b) > _MOST:
            continue
        result = _product(edit, a, b)
        replace_views(node, result)
        if node.users:
            rows, *matrix = (static(size) for size in value(node).shape)
            whole = edit.call(aten.reshape.default, result, [-1 if rows is None else rows, *matrix])
            node.replace_all_uses_with(whole)
        domains = infer(graph)  # what comes behind a product has a domain once the product is written out
    graph.eliminate_dead_code()


def _by_edge(node: Any, domains: Domains, edit: Editor) -> Node | None:
    """A factor [E * h, m, k] as [E, h, m, k], or [E, m, k] as it is; None for one that is not of edges."""
    # bfloat16 is rounded behind every operator, and a product's terms are not
    if inner_sizes(value(node)) is None or value(node).dtype not in (torch.float32, torch.float64):
        return None
    if domains.is_edge(node):
        return node  # type: ignore[no-any-return]
    if is_call(node, aten.expand.default) and same_shape(value(node).shape, value(arguments(node)[0]).shape):
        return _by_edge(arguments(node)[0], domains, edit)
    if _swaps_matrix(node):
        inner = _by_edge(arguments(node)[0], domains, edit)
        return None if inner is None else _swapped(edit, inner)
    if not is_call(node, *RESHAPES):
        return None
    source, rows = arguments(node)[0], value(node).shape[0]
    sizes = inner_sizes(value(source))
    if sizes is None or not domains.is_edge(source):
        return None
    matrix = tuple(value(node).shape[1:])
    if math.prod(sizes) == 0 or math.prod(sizes) % math.prod(matrix) != 0:
        return None
    heads = math.prod(sizes) // math.prod(matrix)
    if not same_size(rows, value(source).shape[0] * heads):
        return None
    return edit.call(aten.reshape.default, source, [edit.size(source, 0), heads, *matrix])


def _swaps_matrix(node: Node) -> bool:
    if is_call(node, aten.transpose.int):
        return {axis % 3 for axis in arguments(node)[1:3]} == {1, 2}
    return is_call(node, aten.permute.default) and list(arguments(node)[1]) == [0, 2, 1]


def _swapped(edit: Editor, node: Node) -> Node:
    return edit.call(aten.transpose.int, node, -1, -2)


def _work(a: Node, b: Node) -> int:
    return math.prod(int(size) for size in (*value(a).shape[1:], value(b).shape[-1]))


def _product(edit: Editor, a: Node, b: Node) -> Node:
    """[..., m, k] and [..., k, n] to [..., m, n]"""
    (rows, inner), columns = value(a).shape[-2:], value(b).shape[-1]
    if inner == 1:
        return edit.call(aten.mul.Tensor, a, b)
    if columns == 1:
        return edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, a, _swapped(edit, b)), [-1], True)
    if rows == 1:
        return edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, _swapped(edit, a), b), [-2], True)
    a, b = edit.call(aten.unsqueeze.default, a, -1), edit.call(aten.unsqueeze.default, b, -3)
    return edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, a, b), [-2])
