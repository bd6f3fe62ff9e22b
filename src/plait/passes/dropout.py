"""`plait::dropout` is decided here: on edges it draws from a counter, elsewhere it is torch's own.

Edge dropout must be drawn again in the backward with no stored mask, by any kernel and in any order of the edges. So it becomes
`x * where(uniform(seed, position) >= p, 1 / (1 - p), 0)` with one `torch.randint` for the seed, which follows
`torch.manual_seed`.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, Node

from plait import operators
from plait.passes.domains import Domains
from plait.passes.edit import Editor, arguments, aten, inner_sizes, is_call, replace, value

_SEEDS = 1 << 62


def decide_dropout(graph: Graph, domains: Domains) -> None:
    """Replaces every `plait::dropout` of `graph`."""
    for node in list(graph.nodes):
        if not is_call(node, operators.dropout):
            continue
        x, p = arguments(node)
        edit = Editor(graph, node)
        inner = inner_sizes(value(x))
        # an edge weight is known to be one by those who read what is left of it
        if not (domains.is_edge(x) or domains.is_edge(node)) or inner is None:
            dropped = edit.call(aten.native_dropout.default, x, p, True)
            replace(node, _first(edit, dropped))
            continue
        val = value(x)
        seed = edit.call(aten.randint.low, 0, _SEEDS, [], dtype=torch.int64, device=val.device)
        drawn = (
            val.dtype if val.dtype in (torch.float32, torch.float64) else torch.float32
        )  # shorter floats would round a draw to 1
        draws = edit.call(operators.uniform, seed, edit.size(x, 0), list(inner), drawn)
        kept = edit.call(aten.ge.Scalar, draws, p)
        factor = edit.call(aten.mul.Tensor, edit.call(aten._to_copy.default, kept, dtype=val.dtype), 1.0 / (1.0 - p))
        replace(node, edit.call(aten.mul.Tensor, x, factor))


def _first(edit: Editor, pair: Node) -> Node:
    with edit.graph.inserting_before(edit.anchor):
        item = edit.graph.call_function(operator.getitem, (pair, 0))
    item.meta["val"] = value(pair)[0]
    return item
