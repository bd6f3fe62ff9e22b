"""Slices of rows that were written or gathered slice by slice, as code does that gives every edge a fixed number of neighbours.

    slice_scatter(b, s, S)[S]                    =  s
    slice_scatter(b, s, S)[T]                    =  b[T]                    S and T share no place
    slice_backward(g, S) + slice_backward(h, T)  =  slice_scatter(slice_backward(g, S), h, T)    the same, and of rows
    gather(x, m)[S]                              =  gather(x, m[S])         nothing else reads the gather

The third takes a sum of mostly zeros for the writes that it is, which `capture.inplace` carries out on one tensor. Slices of
columns are left to kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from plait import operators
from plait.passes.edit import (
    Editor,
    argument,
    arguments,
    aten,
    hint,
    is_call,
    replace,
    same_shape,
    stable_topological_sort,
    value,
)

_LAST = (1 << 63) - 1
# where in the arguments the place begins
_PLACE_AT: dict[Any, int] = {aten.slice.Tensor: 1, aten.slice_scatter.default: 2, aten.slice_backward.default: 2}


@dataclass(frozen=True)
class Place:
    """Which entries of an axis a slice names; only what is known whatever the sizes are."""

    axis: int
    start: int
    end: int
    step: int

    def is_apart(self, other: Place) -> bool:
        """Whether two slices share no entry."""
        if self.axis != other.axis:
            return False
        if self.end <= other.start or other.end <= self.start:
            return True
        return self.step == other.step and self.start % self.step != other.start % self.step


def place_of(node: Node) -> Place | None:
    """The place that a slice, a write to one or the gradient of one names; None where it depends on sizes."""
    if node.target not in _PLACE_AT:
        return None
    first = _PLACE_AT[node.target]
    axis, start, end, step = (
        argument(node, first + number, name, default)
        for number, (name, default) in enumerate((("dim", 0), ("start", None), ("end", None), ("step", 1)))
    )
    start, end = 0 if start is None else start, _LAST if end is None else end
    if not all(isinstance(item, int) and item >= 0 for item in (axis, start, end, step)):
        return None
    return Place(axis, start, end, step)


def resolve_places(graph: Graph) -> None:
    """Applies the laws until none fits."""
    for node in list(graph.nodes):
        if is_call(node, aten.add.Tensor):
            _as_write(graph, node)
    for node in list(graph.nodes):
        if is_call(node, aten.slice.Tensor):
            _read_through(graph, node)
    for node in list(graph.find_nodes(op="call_function", target=operators.gather)):
        _gather_slices(graph, node)
    stable_topological_sort(graph)
    graph.eliminate_dead_code()


def _as_write(graph: Graph, node: Node) -> None:
    """A gradient of a slice, added to others of the same tensor, is written beside them."""
    left, right = arguments(node)[:2]
    if len(node.args) != 2 or node.kwargs:
        return
    for others, last in ((left, right), (right, left)):
        if not is_call(last, aten.slice_backward.default) or not isinstance(others, Node):
            continue
        place, written = place_of(last), list(_written(others))
        if (
            place is None
            or place.axis != 0
            or not written
            or not all(item is not None and place.is_apart(item) for item in written)
        ):
            continue
        if same_shape(value(others).shape, value(last).shape) and value(others).dtype is value(last).dtype:
            edit = Editor(graph, node)
            where = (place.axis, place.start, place.end, place.step)
            replace(node, edit.call(aten.slice_scatter.default, others, arguments(last)[0], *where))
            return


def _written(node: Node) -> Iterator[Place | None]:
    """The places of a chain of writes that begins with the gradient of a slice; nothing for any other value."""
    places = []
    while is_call(node, aten.slice_scatter.default):
        places.append(place_of(node))
        node = arguments(node)[0]
    if is_call(node, aten.slice_backward.default):
        yield from (*places, place_of(node))


def _read_through(graph: Graph, node: Node) -> None:
    """A slice of what was written to reads what was written there, or what was there before."""
    place, source = place_of(node), arguments(node)[0]
    if place is None or graph.output_node() in node.users:  # what is returned stays a tensor of its own
        return
    base = source
    while is_call(base, aten.slice_scatter.default):
        written = place_of(base)
        if written == place:
            rows = arguments(base)[1]
            if value(rows).dtype is value(node).dtype:  # a write converts
                node.replace_all_uses_with(rows)
            return
        if written is None or not written.is_apart(place):
            break
        base = arguments(base)[0]
    if base is not source:
        node.replace_input_with(source, base)


def _gather_slices(graph: Graph, node: Node) -> None:
    """Of rows that are gathered to be sliced, each slice gathers its own."""
    x, index, *wrap = arguments(node)
    slices = [user for user in node.users if is_call(user, aten.slice.Tensor)]
    places = [place_of(user) for user in slices]
    if len(slices) != len(node.users) or not all(place is not None and place.axis == 0 for place in places):
        return
    rows, read = hint(value(node).shape[0]), [hint(value(user).shape[0]) for user in slices]
    if rows is None or None in read or sum(item for item in read if item is not None) > rows:
        return
    for user in slices:
        edit = Editor(graph, user)
        part = edit.call(aten.slice.Tensor, index, *arguments(user)[1:], **user.kwargs)
        replace(user, edit.call(operators.gather, x, part, *wrap, **node.kwargs))
