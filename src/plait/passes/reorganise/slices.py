"""Slices of rows move up: rows that nobody reads are not computed, forward or backward.

    f(x, y)[:b]                    =  f(x[:b], y[:b])                     f works row by row: elementwise, products, norms
    segment_reduce(e, m, n)[:b]    =  segment_reduce(e[k], m[k], b)       k: the positions where m is below b
    gather(x, m)[k]                =  gather(x, m[k]);  of the same m:  gather(x[:b], m[k])

k and m[k] depend on the graph and b alone, so they are structure: found once per graph. What something else reads in full is
sliced, not computed a second time; edge values are in no memory, and are made again from what they are made of.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from plait import operators
from plait.passes.domains import Domains, aligned
from plait.passes.edit import (
    PRODUCTS,
    Editor,
    Target,
    argument,
    arguments,
    aten,
    hint,
    is_call,
    is_tensor,
    product_parts,
    replace,
    same_size,
    stable_topological_sort,
    static,
    value,
)
from plait.passes.structure import structural_nodes

# a slice that leaves more of the rows than this is not worth a second look at the edges
_MAX_SHARE = 0.75
_MIN_ROWS = 512  # of fewer rows nothing is concluded: the first graph seen may be tiny
# where the first argument is the new shape, or the second
_SHAPE_AT: dict[Any, int] = {
    aten.full.default: 0,
    aten.view.default: 1,
    aten._unsafe_view.default: 1,
    aten.reshape.default: 1,
    aten.expand.default: 1,
}
_NORMS = (
    aten.native_layer_norm.default,
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a domain: the first `size`, or those at `positions`.

    reduction, below: positions were chosen by the map of this reduction, whose entries there are `below`, all in rows `ends`.
    """

    size: Any
    positions: Node | None = None
    reduction: Node | None = None
    below: Node | None = None
    ends: _Rows | None = None


def move_slices(graph: Graph, domains: Domains) -> list[str]:
    """Applies the laws to every slice [:b] of rows that are computed for it alone; returns a line per slice moved."""
    if not _may_count(graph):
        return []
    _read_sizes_above(graph)
    slices = {node for node in graph.nodes if _is_slice(node) and _does_work(arguments(node)[0])}
    in_full = _above([graph.output_node()], slices)
    while True:  # what was moved reads other values in full: those need not be made a second time, and so on
        state = _Slices(graph, domains, in_full)
        new = {node: state.first_rows(node) for node in graph.nodes if node in slices and arguments(node)[0] not in in_full}
        wider = in_full | _above(state.read, slices)
        if wider == in_full:
            break
        in_full = wider
    moved = []
    for node, rows in new.items():
        if rows is not None:
            moved.append(f"{node.name}: of {arguments(node)[0].name} only the rows that are read are computed")
            replace(node, rows)
    _read_sizes_above(graph)
    stable_topological_sort(graph)
    graph.eliminate_dead_code()
    return moved


def _may_count(graph: Graph) -> bool:
    """Whether this capture can hold a size that is known when the graph is: the number of edges that are left."""
    shapes = _shapes(graph)
    return shapes is not None and bool(shapes.allow_dynamic_output_shape_ops)


def _shapes(graph: Graph) -> Any:
    mode = torch._guards.detect_fake_mode([value(node) for node in graph.nodes])
    return mode.shape_env if mode is not None else None


def _read_sizes_above(graph: Graph) -> None:
    """The number of rows of a value is asked of what it is made of, so that nobody needs the value for it."""
    for node in list(graph.find_nodes(op="call_function", target=aten.sym_size.int)):
        x, axis = arguments(node)
        while axis == 0:
            above = next((item for item in aligned(x) if same_size(value(item).shape[0], value(x).shape[0])), None)
            if above is None:
                break
            x = above
        if is_call(x, operators.segment_reduce) and axis == 0 and isinstance(arguments(x)[2], Node):
            node.replace_all_uses_with(arguments(x)[2])
            continue
        node.args = (x, axis)


def _is_slice(node: Node) -> bool:
    """x[:b] of rows, with b known to be less than most of them where anything is known."""
    if not is_call(node, aten.slice.Tensor) or argument(node, 1, "dim", 0) != 0 or argument(node, 4, "step", 1) != 1:
        return False
    if argument(node, 2, "start") not in (None, 0):
        return False
    left, whole = hint(value(node).shape[0]), hint(value(arguments(node)[0]).shape[0])
    return left is None or whole is None or whole < _MIN_ROWS or left <= _MAX_SHARE * whole


def _does_work(x: Node) -> bool:
    """Whether a value is made, row by row, of a product, a norm or a reduction."""
    stack, seen = [x], {x}
    while stack:
        node = stack.pop()
        if is_call(node, operators.segment_reduce, *PRODUCTS) or _norm_of(node) is not None:
            return True
        stack += [item for item in aligned(node) if item not in seen]
        seen.update(stack)
    return False


def _above(readers: Iterable[Node], slices: set[Node]) -> set[Node]:
    """What these need when the slices are given, and they themselves."""
    stack = list(readers)
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node not in seen and node not in slices:
            seen.add(node)
            stack.extend(() if is_call(node, aten.sym_size.int) else node.all_input_nodes)
    return seen


def _size_of(edit: Editor, node: Node) -> Any:
    """The number of rows of a slice as an argument that does not need the slice; None where there is none."""
    size = value(node).shape[0]
    number = static(size)
    if number is not None:
        return number
    end = argument(node, 3, "end")
    if isinstance(end, Node) and same_size(value(end), size):
        return end
    if isinstance(end, int) and end < 0:
        counted = edit.call(operator.add, edit.size(arguments(node)[0], 0), end)
        return counted if same_size(value(counted), size) else None
    return None


def _norm_of(node: Node) -> Node | None:
    """The norm whose first result a node is, if it is one of each row alone."""
    if not is_call(node, operator.getitem) or arguments(node)[1] != 0 or not is_call(arguments(node)[0], *_NORMS):
        return None
    norm: Node = arguments(node)[0]
    x = arguments(norm)[0]
    if is_call(norm, aten.native_layer_norm.default):
        return norm if value(x).dim() > len(arguments(norm)[1]) else None
    is_training = is_call(norm, aten.native_batch_norm.default) and arguments(norm)[5]
    return None if is_training else norm


@dataclass
class _Slices:
    """Values of some rows only. in_full: values that others read whatever is sliced; read: those that were found to be."""

    graph: Graph
    domains: Domains
    in_full: set[Node]
    read: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.edit = Editor(self.graph, self.graph.output_node())
        self.structure = frozenset(structural_nodes(self.graph))
        self.found: dict[tuple[Node, _Rows], Node] = {}
        self.edges: dict[tuple[Node, Any, bool], _Rows] = {}

    def first_rows(self, node: Node) -> Node | None:
        """What stands for a slice."""
        self.edit = Editor(self.graph, node)
        size = _size_of(self.edit, node)
        return self.of(arguments(node)[0], _Rows(size)) if size is not None else None

    def of(self, node: Node, rows: _Rows) -> Node:
        """Those rows of a value."""
        key = (node, rows)
        if key not in self.found:
            # chains of user code can be long: what is below comes first, so that no call goes deep
            for item in self._below(node, rows):
                self.of(*item)
            made = None if self._is_there(node) else self._made(node, rows)
            self.found[key] = made if made is not None else self._cut(node, rows)
        return self.found[key]

    def _below(self, node: Node, rows: _Rows) -> list[tuple[Node, _Rows]]:
        order: list[tuple[Node, _Rows]] = []
        seen = {node}
        level = [node]
        while level:
            level = [
                item
                for above in level
                if not self._is_there(above)
                for item in aligned(above)
                if item not in seen and (item, rows) not in self.found
            ]
            seen.update(level)
            order += [(item, rows) for item in level]
        return order[::-1]

    def _is_there(self, node: Node) -> bool:
        """Whether a value is in memory anyway."""
        if node.op != "call_function" or node in self.structure:
            return True
        return node in self.in_full and not self.domains.is_edge(node)

    def _cut(self, node: Node, rows: _Rows) -> Node:
        self.read.add(node)
        if rows.positions is not None:
            return self.edit.call(operators.take, node, rows.positions)
        return self.edit.call(aten.slice.Tensor, node, 0, 0, rows.size)

    def _made(self, node: Node, rows: _Rows) -> Node | None:
        """The rows, made of rows of what the value is made of; None where no law fits."""
        if is_call(node, operators.gather):
            return self._gathered(node, rows)
        if is_call(node, operators.segment_reduce):
            return self._reduced(node, rows)
        norm = _norm_of(node)
        if norm is not None:
            x, *others = arguments(norm)
            self.read.update(item for item in others if isinstance(item, Node))
            normed = self.edit.call(_target(norm), self.of(x, rows), *others, **norm.kwargs)
            return self.edit.call(operator.getitem, normed, 0)
        return self._row_by_row(node, rows)

    def _gathered(self, node: Node, rows: _Rows) -> Node:
        x, index, *wrap = arguments(node)
        reduction, ends = rows.reduction, rows.ends
        is_same_map = reduction is not None and index is arguments(reduction)[1]
        if not is_same_map or ends is None or not same_size(value(x).shape[0], value(reduction).shape[0]):
            self.read.add(x)
            return self.edit.call(operators.gather, x, self.of(index, rows), *wrap)
        return self.edit.call(operators.gather, self.of(x, ends), rows.below)

    def _reduced(self, node: Node, rows: _Rows) -> Node | None:
        if rows.positions is not None:
            return None
        values, _, _, *how = arguments(node)
        wrap = bool(argument(node, 6, "wrap", False))
        kept = self._edges_into(node, rows, wrap=wrap)
        others = {name: item for name, item in node.kwargs.items() if name != "wrap"}
        return self.edit.call(operators.segment_reduce, self.of(values, kept), kept.below, rows.size, *how[:3], **others)

    def _edges_into(self, reduction: Node, rows: _Rows, *, wrap: bool) -> _Rows:
        """The edges that a reduction sums into the first rows."""
        index, num_rows = arguments(reduction)[1:3]
        key = (index, rows.size, wrap)
        if key not in self.edges:
            call = self.edit.call
            entries = index
            if wrap:
                entries = call(aten.where.self, call(aten.lt.Scalar, index, 0), call(aten.add.Tensor, index, num_rows), index)
            is_below = call(aten.lt.Scalar, entries, rows.size)
            with _shapes(self.graph).ignore_fresh_unbacked_symbols():  # this size is none that the capture has to account for
                found = call(aten.nonzero.default, is_below)
            positions = call(aten.squeeze.dim, found, 1)
            below = call(operators.take, entries, positions)
            self.edges[key] = _Rows(self.edit.size(positions, 0), positions, reduction, below, rows)
        return self.edges[key]

    def _row_by_row(self, node: Node, rows: _Rows) -> Node | None:
        own = aligned(node)
        others = [item for item in node.all_input_nodes if item not in own and is_tensor(item)]
        if is_call(node, aten.full.default):
            own = [node]  # a fill is as long as it is asked to be
        if not own or static(value(node).shape[0]) == 1 or not all(_is_for_all_rows(node, item) for item in others):
            return None
        if is_call(node, aten.expand.default) and value(own[0]).dim() != value(node).dim():
            return None
        self.read.update(others)
        args, kwargs = map_arg((arguments(node), node.kwargs), lambda item: self.of(item, rows) if item in own else item)
        place = _SHAPE_AT.get(node.target)
        if place is not None:
            args = (*args[:place], [rows.size, *args[place][1:]], *args[place + 1 :])
        return self.edit.call(_target(node), *args, **kwargs)


def _is_for_all_rows(node: Node, item: Node) -> bool:
    """Whether an operand is the same for all rows of the result: a weight, or one row."""
    if is_call(node, *PRODUCTS):
        parts = product_parts(node)
        if parts is None:
            return False
        bias, _, weight = parts
        return item is weight or (item is bias and (value(item).dim() == 1 or static(value(item).shape[0]) == 1))
    if is_call(node, aten.bmm.default):
        return False
    return bool(value(item).dim() < value(node).dim()) or static(value(item).shape[0]) == 1


def _target(node: Node) -> Target:
    assert callable(node.target)
    return node.target
