"""Rows written into the tensor that is at hand, where the functional graph would copy it first.

`out[index] = rows` in a loop is a chain of calls that each copy all of `out`. Where a call makes a tensor that nobody reads
after the write, the write goes there, as it did in the model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from plait.capture.launch import Launch, write_select, write_slice
from plait.passes.canonicalize import fill_value
from plait.passes.edit import arguments, aten, hint, is_call, is_view, same_size, static, value

WRITES: dict[Any, Any] = {
    aten.index_copy.default: aten.index_copy_.default,
    aten.index_fill.int_Scalar: aten.index_fill_.int_Scalar,
    aten.index_put.default: aten.index_put_.default,
    aten.slice_scatter.default: write_slice,
    aten.select_scatter.default: write_select,
}
# what they return is a tensor of its own, whatever it is made of
_FRESH = (
    aten.clone.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.repeat.default,
    aten.slice_backward.default,
    aten.select_backward.default,
)


def write_in_place(graph: Graph) -> bool:
    """Edits a graph that is about to run: its order is that of the calls. Returns whether there was something to edit."""
    is_edited = False
    _write_without_copies(graph)
    place = {node: number for number, node in enumerate(graph.nodes)}
    fresh: set[Node] = set()
    for node in graph.nodes:
        if is_call(node, *WRITES):
            base = arguments(node)[0]
            is_last = all(user is node or _is_done(user, place[node], place) for user in base.users)
            if base in fresh and is_last and tree_leaves(node.args).count(base) == 1:
                node.target = WRITES[node.target]
                is_edited = True
            fresh.add(node)  # a copy, or a tensor that only this name stands for from here on
        elif is_call(node, *_FRESH) or fill_value(node) is not None:
            fresh.add(node)
    return is_edited


def _write_without_copies(graph: Graph) -> None:
    """What a write to a slice in the model leaves: a copy of the rows that nobody but the write reads."""
    for node in graph.nodes:
        if not is_call(node, aten.slice_scatter.default, aten.select_scatter.default):
            continue
        copy = arguments(node)[1]
        if not is_call(copy, aten.clone.default, aten.copy.default) or len(copy.users) > 1:
            continue
        rows = arguments(copy)[-1] if is_call(copy, aten.copy.default) else arguments(copy)[0]
        if is_call(rows, aten.expand.default):
            rows = arguments(rows)[0]
        if _is_plain_copy(value(copy), value(rows)):
            node.replace_input_with(copy, rows)
    graph.eliminate_dead_code()


def _is_plain_copy(copy: Tensor, rows: Tensor) -> bool:
    """Whether nothing is converted or broadcast: a size that is a symbol is not 1, so it is the other one by another name."""
    if copy.dtype is not rows.dtype or copy.device != rows.device or copy.dim() != rows.dim():
        return False
    pairs = zip(copy.shape, rows.shape, strict=True)
    return all(same_size(a, b) or (static(b) is None and None not in (hint(a), hint(b))) for a, b in pairs)


def _is_done(user: Node, now: int, place: dict[Node, int]) -> bool:
    """Whether a reader has read when call number `now` runs, and has left no view to read later."""
    return place[user] < now and not _may_alias(user)


def _may_alias(node: Node) -> bool:
    if isinstance(node.target, Launch):
        return False
    schema = getattr(node.target, "_schema", None)
    # what is no operator, and the unsafe views, hand on memory without saying so
    return schema is None or "view" in schema.name or is_view(node)
