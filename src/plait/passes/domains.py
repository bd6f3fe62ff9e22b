"""Which tensors of a graph have rows in the same domain, inferred from the maps they meet and never from their sizes.

A domain here is a class of values joined by operators that keep rows apart (elementwise, views of the other axes, products with
weights). Through an index map two domains meet: its own rows are *fine*, the rows it points into are *coarse*.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from plait import operators
from plait.passes.edit import (
    RESHAPES,
    SAME,
    argument,
    arguments,
    aten,
    inner_sizes,
    is_call,
    is_tensor,
    same_size,
    stored,
    value,
)

_ROW_VIEWS = frozenset(
    {
        *RESHAPES,
        *SAME,
        aten.clone.default,
        stored,
        aten._to_copy.default,
        aten.expand.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.permute.default,
        aten.transpose.int,
        aten.sum.dim_IntList,
        aten.mean.dim,
        aten.amax.default,
        aten.amin.default,
        aten.cat.default,
        aten.stack.default,
        aten.repeat.default,
        aten.slice_backward.default,
        aten.select_backward.default,
        aten.linalg_vector_norm.default,
        aten.linalg_cross.default,
        aten._softmax.default,
        aten._log_softmax.default,
        aten._softmax_backward_data.default,
        aten._log_softmax_backward_data.default,
    }
)
_AXIS_AT = {  # operators with one axis: its position among the arguments, and how many axes the operand lacks
    aten.select.int: (1, 0),
    aten.squeeze.dim: (1, 0),
    aten.slice.Tensor: (1, 0),
    aten.unsqueeze.default: (1, 1),
    aten.slice_backward.default: (2, 0),
    aten.select_backward.default: (2, 1),
    aten._softmax.default: (1, 0),
    aten._log_softmax.default: (1, 0),
    aten._softmax_backward_data.default: (2, 0),
    aten._log_softmax_backward_data.default: (2, 0),
}
# elementwise, though torch has no tag on them
_UNTAGGED = frozenset(
    {
        aten.rsub.Tensor,
        aten.where.ScalarSelf,
        aten.where.ScalarOther,
        aten.where.Scalar,
        aten.masked_fill.Tensor,
        aten.leaky_relu_backward.default,
        aten.elu_backward.default,
        aten.softplus_backward.default,
    }
)
# operators with several results, and how many of the first of them have the rows of the first operand
_RESULTS = {
    aten.native_dropout.default: 2,
    aten.log_sigmoid_forward.default: 1,
    aten._fused_rms_norm.default: 2,
    aten.native_layer_norm.default: 3,
    aten.native_layer_norm_backward.default: 1,
    aten.native_group_norm.default: 3,
    aten.native_group_norm_backward.default: 1,
    aten.native_batch_norm.default: 1,
    aten._native_batch_norm_legit.no_stats: 1,
    aten._native_batch_norm_legit_functional.default: 1,
    aten._native_batch_norm_legit_no_training.default: 1,
    aten.native_batch_norm_backward.default: 1,
}
# the same along an axis: its position among the arguments, and what it is where it is not given
_RESULTS_ALONG = {
    **dict.fromkeys((aten.max.dim, aten.min.dim, aten.var_mean.correction, aten.std_mean.correction, aten.unbind.int), (1, 0)),
    **dict.fromkeys(
        (aten.split.Tensor, aten.split_with_sizes.default, aten.unsafe_split.Tensor, aten.unsafe_chunk.default), (2, 0)
    ),
    aten.topk.default: (2, -1),
    aten.sort.default: (1, -1),
}
_ROW_OPERANDS = {aten.mm.default: (0,), aten.addmm.default: (1,), aten.bmm.default: (0, 1)}  # of products


@dataclass(frozen=True)
class Domains:
    """The result of `infer`: a representative per value, and which of them are fine and coarse."""

    parent: dict[Node, Node]
    fine: frozenset[Node]
    coarse: frozenset[Node]

    def of(self, node: Node) -> Node | None:
        """The representative of the domain of a tensor's rows; None for what has no rows (weights, scalars, numbers)."""
        if node not in self.parent:
            return None
        root = node
        while self.parent[root] is not root:
            root = self.parent[root]
        return root

    def has_new_rows(self, node: Node) -> bool:
        """Whether a value lays out anew, as these rows, what had others: a kernel of these rows cannot read that."""
        if not is_call(node, *RESHAPES):
            return False
        source: Any = node.args[0]
        return self.of(node) is not None and self.of(source) is not self.of(node)

    def is_edge(self, node: Node) -> bool:
        """Whether the rows are entries of a map and nothing points into them: edges, but not nodes pooled by a batch vector.

        Where there are none of them, whatever the input, nothing is to be moved or fused: a mean over no edges is NaN, which no
        output of theirs shows, and at the nodes it would.
        """
        domain = self.of(node)
        if domain is None or domain not in self.fine or domain in self.coarse:
            return False
        return not same_size(value(node).shape[0], 0)

    def is_fine(self, node: Node) -> bool:
        domain = self.of(node)
        return domain is not None and domain in self.fine


class _Classes:
    """Union-find over nodes; `coarse_of[m]` stands for the rows that map m points into."""

    def __init__(self) -> None:
        self.parent: dict[Node, Node] = {}

    def find(self, node: Node) -> Node:
        self.parent.setdefault(node, node)
        while self.parent[node] is not node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, a: Node, b: Node) -> None:
        first, second = self.find(a), self.find(b)
        if first is not second:
            self.parent[second] = first


def infer(graph: Graph) -> Domains:
    """The domains of a canonical graph."""
    classes = _Classes()
    maps: dict[Node, list[Node]] = {}  # index map -> values that have its coarse rows
    columns: dict[tuple[Node, int], Node] = {}
    for node in graph.nodes:
        if not is_tensor(node) or value(node).dim() == 0:
            continue
        if is_call(node, operators.gather):
            x, index = node.args[:2]
            classes.join(node, index)
            maps.setdefault(index, []).append(x)
            continue
        if is_call(node, operators.segment_reduce):
            values, index = node.args[:2]
            classes.join(values, index)
            maps.setdefault(index, []).append(node)
            continue
        if is_call(node, operators.grouped_mm):
            x, index = node.args[:2]
            if index is None:
                classes.join(node, x)
                continue
            classes.join(node, index)
            maps.setdefault(index, []).append(x)
            continue
        if is_call(node, operator.getitem) and is_call(node.args[0], operators.pairs):
            if node.args[1] == 0:  # the pair of each edge
                classes.join(node, arguments(node.args[0])[1])
            continue
        if is_call(node, operator.getitem):
            source = _rows_of_result(node)
            if source is not None:
                classes.join(node, source)
            continue
        if is_call(node, aten.select.int) and value(node).dim() == 1 and _axis(node) == 0:
            # edge_index[0] and edge_index[1] are columns of one table: entry k of both belongs to the same edge
            key = (node.args[0], 0)
            classes.join(columns.setdefault(key, node), node)
            continue
        for operand in aligned(node):
            classes.join(node, operand)
    return _domains(classes, maps)


def _domains(classes: _Classes, maps: dict[Node, list[Node]]) -> Domains:
    coarse: set[Node] = set()
    for index, values in maps.items():
        for number, other in enumerate(values):
            # what a map points into may be longer in one tensor than in another: such rows are not the same
            first = next(item for item in values if same_size(value(item).shape[0], value(other).shape[0]))
            if first is not other and number:
                classes.join(first, other)
        classes.find(index)
    for values in maps.values():
        coarse.update(classes.find(item) for item in values)
    fine = frozenset(classes.find(index) for index in maps)
    return Domains({node: classes.find(node) for node in classes.parent}, fine, frozenset(coarse))


def _axis(node: Node) -> int:
    axis = node.args[1]
    assert isinstance(axis, int)
    source: Any = node.args[0]
    return axis + value(source).dim() if axis < 0 else axis


def _rows_of_result(node: Node) -> Node | None:
    """The operand whose rows one of several results has: of a norm, of pieces along another axis."""
    call: Any = node.args[0]
    if call.target in _RESULTS:
        if arguments(node)[1] >= _RESULTS[call.target]:
            return None
    elif call.target in _RESULTS_ALONG:
        position, default = _RESULTS_ALONG[call.target]
        axes: Any = argument(call, position, "dim", default)
        dim = value(call.args[0]).dim()
        if axes is None or any(axis % dim == 0 for axis in (axes if isinstance(axes, list | tuple) else [axes])):
            return None
    else:
        return None
    x: Any = call.args[0]
    has_rows = value(x).dim() > 0 and same_size(value(x).shape[0], value(node).shape[0])
    return x if has_rows and not same_size(value(x).shape[0], 1) else None


def aligned(node: Node) -> list[Node]:
    """Inputs whose row r alone decides row r of the result."""
    if node.op != "call_function":
        return []
    if node.target in _ROW_OPERANDS:
        return [arguments(node)[position] for position in _ROW_OPERANDS[node.target]]
    if node.target in _ROW_VIEWS or is_elementwise(node):
        return [operand for operand in node.all_input_nodes if _shares_rows(node, operand)]
    return []


def has_one_row(node: Node) -> bool:
    """One edge alone, of which nobody can say what is a row and what is repeated: half of its work would be fused, and a
    maximum, whose gradient compares what a kernel made with what PyTorch made, could lose it over a last bit."""
    return same_size(value(node).shape[0], 1)


def is_elementwise(node: Node) -> bool:
    """Whether every number of the result is made of the numbers in its place."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in node.target.tags or node.target in _UNTAGGED


def _shares_rows(node: Node, operand: Node) -> bool:
    out, val = value(node), value(operand)
    if not isinstance(val, torch.Tensor) or val.dim() == 0 or not same_size(val.shape[0], out.shape[0]):
        return False
    if same_size(out.shape[0], 1):
        return False
    if is_elementwise(node):
        return bool(val.dim() == out.dim())
    if node.target in RESHAPES and not _same_row_sizes(val, out):
        return False  # of no rows at all: there are as many, whatever a row has
    return _keeps_rows(node)


def _same_row_sizes(a: torch.Tensor, b: torch.Tensor) -> bool:
    sizes = inner_sizes(a), inner_sizes(b)
    return None in sizes or math.prod(sizes[0] or ()) == math.prod(sizes[1] or ())


def keeps_rows(node: Node) -> bool:
    """Whether row r of a call depends on row r of its operands alone, as far as the operator decides."""
    if node.target in _ROW_VIEWS:
        return _keeps_rows(node)
    return True


def _keeps_rows(node: Node) -> bool:
    """Whether a view or inner reduction leaves axis 0 alone."""
    operand: Any = node.args[0]
    if isinstance(operand, list | tuple):  # cat, stack
        return _positive(node, 1, value(node).dim(), default=0) != 0
    dim = value(operand).dim()
    target = node.target
    if target in _AXIS_AT:
        position, missing = _AXIS_AT[target]
        return _positive(node, position, dim + missing, default=0) != 0
    if target is aten.linalg_cross.default:
        axis: Any = node.kwargs.get("dim", -1)
        return bool(axis % dim != 0)
    if target is aten.repeat.default:
        times: Any = node.args[1]
        return bool(len(times) == dim and times[0] == 1)
    if target is aten.linalg_vector_norm.default:
        axes: Any = node.args[2] if len(node.args) > 2 else None
        return bool(axes) and all(axis % dim != 0 for axis in axes)
    if target is aten.transpose.int:
        return 0 not in (_positive(node, 1, dim), _positive(node, 2, dim))
    if target is aten.permute.default:
        return bool(arguments(node)[1][0] == 0)
    if target in (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.squeeze.dims):
        axes = node.args[1] if len(node.args) > 1 else None
        return bool(axes) and all((axis + dim if axis < 0 else axis) != 0 for axis in axes)
    return True


def _positive(node: Node, position: int, dim: int, *, default: int | None = None) -> int:
    axis = node.args[position] if len(node.args) > position else default
    assert isinstance(axis, int)
    return axis + dim if axis < 0 else axis
