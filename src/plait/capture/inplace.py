"""Results written into the tensor that is at hand, where the functional graph would make another one.

`out[index] = rows` in a loop is a chain of calls that each copy all of `out`. Where a call makes a tensor that nobody reads
after the write, the write goes there, as it did in the model. So does elementwise work on a product (an activation, the
gradient of one): half of its time is fresh memory.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from plait.capture.launch import Launch, write_select, write_slice
from plait.passes.canonicalize import fill_value
from plait.passes.edit import (
    PRODUCTS,
    arguments,
    aten,
    hint,
    is_call,
    is_tensor,
    is_view,
    same_shape,
    same_size,
    static,
    value,
)

WRITES: dict[Any, Any] = {
    aten.index_add.default: aten.index_add_.default,
    aten.index_copy.default: aten.index_copy_.default,
    aten.index_fill.int_Scalar: aten.index_fill_.int_Scalar,
    aten.index_put.default: aten.index_put_.default,
    aten.index_reduce.default: aten.index_reduce_.default,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter.value: aten.scatter_.value,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.scatter_reduce.two: aten.scatter_reduce_.two,
    aten.slice_scatter.default: write_slice,
    aten.select_scatter.default: write_select,
}
# the form that writes into the first operand, and the name by which it is told so where it is not by its nature
ELEMENTWISE: dict[Any, tuple[Any, str | None]] = {
    aten.add.Tensor: (aten.add_.Tensor, None),
    aten.div.Tensor: (aten.div_.Tensor, None),
    aten.elu.default: (aten.elu_.default, None),
    aten.leaky_relu.default: (aten.leaky_relu_.default, None),
    aten.mul.Tensor: (aten.mul_.Tensor, None),
    aten.relu.default: (aten.relu_.default, None),
    aten.sigmoid.default: (aten.sigmoid_.default, None),
    aten.sub.Tensor: (aten.sub_.Tensor, None),
    aten.tanh.default: (aten.tanh_.default, None),
    aten.elu_backward.default: (aten.elu_backward.grad_input, "grad_input"),
    aten.leaky_relu_backward.default: (aten.leaky_relu_backward.grad_input, "grad_input"),
    aten.sigmoid_backward.default: (aten.sigmoid_backward.grad_input, "grad_input"),
    aten.tanh_backward.default: (aten.tanh_backward.grad_input, "grad_input"),
    aten.threshold_backward.default: (aten.threshold_backward.grad_input, "grad_input"),
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
    """Edits a graph that is about to run: its order is that of the calls. Returns whether a copy was spared."""
    is_edited = False
    _write_without_copies(graph)
    place = {node: number for number, node in enumerate(graph.nodes)}
    fresh: set[Node] = set()
    for node in graph.nodes:
        is_write = is_call(node, *WRITES)
        if is_write or _is_elementwise(node):
            base = arguments(node)[0]
            is_last = all(user is node or _is_done(user, place[node], place) for user in base.users)
            if base in fresh and is_last and tree_leaves(node.args).count(base) == 1:
                _overwrite(node, base)
                is_edited |= is_write
            fresh.add(node)  # a copy, or a tensor that only this name stands for from here on
        elif is_call(node, *_FRESH, *PRODUCTS) or fill_value(node) is not None:
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


def _is_elementwise(node: Node) -> bool:
    """Whether a call makes a tensor like its first operand, number by number, and there is a form that writes into that."""
    if not is_call(node, *ELEMENTWISE) or node.kwargs or not is_tensor(node) or not is_tensor(node.args[0]):
        return False
    made, read = value(node), value(node.args[0])
    return made.dtype is read.dtype and same_shape(made.shape, read.shape)


def _overwrite(node: Node, base: Node) -> None:
    target, result = ELEMENTWISE.get(node.target) or (WRITES[node.target], None)
    if result is not None:
        node.kwargs = {result: base}
    node.target = target


def _is_done(user: Node, now: int, place: dict[Node, int]) -> bool:
    """Whether a reader has read when call number `now` runs, and has left no view to read later."""
    return place[user] < now and not _may_alias(user)


def _may_alias(node: Node) -> bool:
    if isinstance(node.target, Launch):
        return False
    schema = getattr(node.target, "_schema", None)
    # what is no operator, and the unsafe views, hand on memory without saying so
    return schema is None or "view" in schema.name or is_view(node)
