"""A maximum of an edge's own numbers that says where it is, `x.max(-1)`, whose places nobody asks for.

It gives its gradient to the first of equal entries, where `amax`, which kernels have, shares it among them. So it is written
out before autograd: which entry is the first that is as large as the largest, and the sum of what stands there.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from plait.passes.domains import infer
from plait.passes.edit import Editor, argument, arguments, aten, is_call, static, value

_FOLDS: dict[Any, Any] = {aten.max.dim: aten.amax.default, aten.min.dim: aten.amin.default}


def spell_maxima(graph: Graph) -> None:
    """Rewrites `graph` in place: every maximum and minimum along an axis of edge values, in float32 and float64."""
    for node in [item for fold in _FOLDS for item in graph.find_nodes(op="call_function", target=fold)]:
        x, axis = arguments(node)[:2]
        values = [user for user in node.users if is_call(user, operator.getitem) and user.args[1] == 0]
        if len(values) < len(node.users) or value(x).dtype not in (torch.float32, torch.float64) or axis % value(x).dim() == 0:
            continue
        # what comes behind a maximum has a domain once it is written out
        if not infer(graph).is_edge(x) or static(value(x).shape[axis]) in (None, 0):
            continue
        result = _maximum(Editor(graph, node), node, x, axis % value(x).dim())
        for user in values:
            user.replace_all_uses_with(result)
    graph.eliminate_dead_code()


def _maximum(edit: Editor, node: Node, x: Node, axis: int) -> Node:
    val, fixed = value(x), edit.call(aten.detach.default, x)
    best = edit.call(_FOLDS[node.target], fixed, [axis], True)
    # NaN is larger than everything, and smaller
    is_best = edit.call(aten.logical_or.default, edit.call(aten.eq.Tensor, fixed, best), edit.call(aten.isnan.default, fixed))
    place = edit.call(aten.arange.default, static(val.shape[axis]), dtype=val.dtype, device=val.device)
    place = edit.call(aten.reshape.default, place, [-1, *[1] * (val.dim() - 1 - axis)])
    first = edit.call(aten.amin.default, edit.call(aten.where.ScalarOther, is_best, place, float("inf")), [axis], True)
    chosen = edit.call(aten.where.ScalarOther, edit.call(aten.eq.Tensor, place, first), x, 0.0)
    return edit.call(aten.sum.dim_IntList, chosen, [axis], bool(argument(node, 2, "keepdim", False)))
