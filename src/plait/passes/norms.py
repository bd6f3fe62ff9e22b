"""Layer norms of edge values are written out: a mean, a variance and their use, which are fused like any other edge work.

The operator gives three results and has a gradient of its own, so nothing could be fused through it. Norms of nodes stay.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from torch.fx import Graph, Node

from plait.passes.domains import infer
from plait.passes.edit import Editor, arguments, aten, inner_sizes, is_call, value


def expand_norms(graph: Graph) -> None:
    """Applies it to every layer norm over the last axes of an edge value whose statistics nobody else reads."""
    for node in list(graph.nodes):
        if not is_call(node, aten.native_layer_norm.default):
            continue
        x, shape, weight, bias, epsilon = arguments(node)
        parts = {user.args[1]: user for user in node.users if is_call(user, operator.getitem)}
        # what comes behind a norm has a domain once the norm is written out
        if not infer(graph).is_edge(x) or inner_sizes(value(x)) is None or len(parts) < len(node.users) or set(parts) - {0}:
            continue
        if 0 in parts:
            parts[0].replace_all_uses_with(_normed(Editor(graph, node), x, shape, weight, bias, epsilon))
    graph.eliminate_dead_code()


def _normed(edit: Editor, x: Node, shape: Any, weight: Node | None, bias: Node | None, epsilon: float) -> Node:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, over the last axes."""
    axes = list(range(-len(shape), 0))
    count = math.prod(int(size) for size in shape)
    centred = edit.call(aten.sub.Tensor, x, edit.call(aten.mean.dim, x, axes, True))
    squares = edit.call(aten.sum.dim_IntList, edit.call(aten.mul.Tensor, centred, centred), axes, True)
    variance = edit.call(aten.div.Tensor, squares, float(count))
    scale = edit.call(aten.rsqrt.default, edit.call(aten.add.Tensor, variance, epsilon))
    result = edit.call(aten.mul.Tensor, centred, scale)
    if weight is not None:
        result = edit.call(aten.mul.Tensor, result, weight)
    return result if bias is None else edit.call(aten.add.Tensor, result, bias)
