"""Views of inner axes: view(a + b) = view(a) + view(b), whatever they do, as long as rows stay rows.

A view of columns is columns where it leaves their axis whole; else the zeros around them are written out first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from plait.passes.edit import argument, arguments, aten, same_size, static, value
from plait.passes.reorganise.terms import Columns, Form, Layout, Term, Value, is_row_axis, shape_arguments

if TYPE_CHECKING:
    from plait.passes.reorganise.separate import Separation


def _same(state: Separation, node: Node) -> Form | None:
    """clone(x) = x: no pass writes to a value."""
    return state.form(node.args[0])


def _detach(state: Separation, node: Node) -> Form | None:
    """detach(a + b) = detach(a) + detach(b), if no factor per edge would keep its gradient."""
    form = state.form(node.args[0])
    if form is None or any(term.scale for term in form.terms):
        return None
    return state.changed(form, form.layout, lambda x, columns: (state.values.call(aten.detach.default, x, view=True), columns))


def _view(state: Separation, node: Node) -> Form | None:
    form = state.form(node.args[0])
    if form is None:
        return None
    source: Any = node.args[0]
    layout = _layout_of_view(source, form, node)
    return None if layout is None else _reshaped(state, node, source, form, layout)


def _layout_of_view(source: Node, form: Form, node: Node) -> Layout | None:
    """The axis of a view that has the rows: as many entries before it as before, and the others behind or inside it."""
    old, new = value(source).shape, value(node).shape
    before = _product(old[: form.layout.axis])
    inside = _product(old[form.layout.axis + 1 :])
    if before is None or inside is None:
        return None
    for axis in range(len(new)):
        left, right = _product(new[:axis]), _product(new[axis + 1 :])
        if left is None:
            return None
        if left != before or not right or (form.layout.block * inside) % right:
            continue
        block = form.layout.block * inside // right
        if is_row_axis(new[axis], form.rows, block):
            return Layout(axis, block, len(new))
    return None


def _reshaped(state: Separation, node: Node, source: Node, form: Form, layout: Layout) -> Form | None:
    """Every term in the new shape; columns stay columns where their axis does."""
    if shape_arguments(node, layout) is None:
        return None
    rank = form.layout.rank

    def change(x: Value, columns: Columns | None) -> tuple[Value, Columns | None]:
        kept = columns and _moved_columns(columns, value(source).shape, form.layout, value(node).shape, layout)
        if kept is None:
            x = state.values.padded(x, columns, rank)
        shape = shape_arguments(node, layout, kept)
        return state.values.call(aten.reshape.default, x, shape, view=True), kept

    return state.changed(form, layout, change)


def _moved_columns(columns: Columns, old: Any, before: Layout, new: Any, after: Layout) -> Columns | None:
    """The columns in the new shape, if it has their axis: as long, with as many entries on the side away from the rows."""
    is_right = columns.axis > before.axis
    rest = _product(old[columns.axis + 1 :] if is_right else old[: columns.axis])
    for axis, size in enumerate(new):
        if axis == after.axis or (axis > after.axis) is not is_right or not same_size(size, columns.size):
            continue
        if _product(new[axis + 1 :] if is_right else new[:axis]) == rest:
            return replace(columns, axis=axis)
    return None


def _product(sizes: Any) -> int | None:
    numbers = [static(size) for size in sizes]
    return None if None in numbers else math.prod(number for number in numbers if number is not None)


def _with_axes(state: Separation, node: Node, axes: list[int | None]) -> Form | None:
    """The same call on each term; `axes[k]` is the old axis that stands at k now, None for a new one of size 1."""
    form = state.form(node.args[0])
    if form is None or form.layout.axis not in axes:
        return None
    layout = Layout(axes.index(form.layout.axis), form.layout.block, len(axes))
    rank = form.layout.rank

    def change(x: Value, columns: Columns | None) -> tuple[Value, Columns | None]:
        if columns is not None and columns.axis not in axes:
            x, columns = state.values.padded(x, columns, rank), None
        moved = None if columns is None else replace(columns, axis=axes.index(columns.axis))
        return state.values.call(node.target, x, *arguments(node)[1:], view=True), moved  # type: ignore[arg-type]

    return state.changed(form, layout, change)


def _rank(node: Node) -> int:
    source: Any = node.args[0]
    return int(value(source).dim())


def _unsqueeze(state: Separation, node: Node) -> Form | None:
    axes: list[int | None] = list(range(_rank(node)))
    axes.insert(arguments(node)[1] % (_rank(node) + 1), None)
    return _with_axes(state, node, axes)


def _squeeze(state: Separation, node: Node) -> Form | None:
    source: Any = node.args[0]
    given = arguments(node)[1]
    wanted = [axis % _rank(node) for axis in (given if isinstance(given, list | tuple) else [given])]
    if any(not same_size(value(source).shape[axis], 1) for axis in wanted):
        return None  # leaves such an axis alone, but would take it from columns of width 1
    return _with_axes(state, node, [axis for axis in range(_rank(node)) if axis not in wanted])


def _permute(state: Separation, node: Node) -> Form | None:
    return _with_axes(state, node, [axis % _rank(node) for axis in arguments(node)[1]])


def _transpose(state: Separation, node: Node) -> Form | None:
    axes: list[int | None] = list(range(_rank(node)))
    a, b = (axis % _rank(node) for axis in arguments(node)[1:3])
    axes[a], axes[b] = axes[b], axes[a]
    return _with_axes(state, node, axes)


def _t(state: Separation, node: Node) -> Form | None:
    return _with_axes(state, node, list(reversed(range(_rank(node)))))


def _expand(state: Separation, node: Node) -> Form | None:
    source: Any = node.args[0]
    form = state.form(source)
    if form is None:
        return None
    layout = state.layout(node, source, form)
    return expanded(state, form, node) if is_row_axis(value(node).shape[layout.axis], form.rows, layout.block) else None


def expanded(state: Separation, form: Form, node: Node) -> Form | None:
    """A form repeated to the shape of `node`: new axes come first, axes of size 1 are filled."""
    shift = value(node).dim() - form.layout.rank
    layout = Layout(form.layout.axis + shift, form.layout.block, value(node).dim())
    if shape_arguments(node, layout) is None:
        return None

    def change(x: Value, columns: Columns | None) -> tuple[Value, Columns | None]:
        moved = None if columns is None else replace(columns, axis=columns.axis + shift)
        return state.values.call(aten.expand.default, x, shape_arguments(node, layout, moved), view=True), moved

    return state.changed(form, layout, change)


def _slice(state: Separation, node: Node) -> Form | None:
    """Of columns a part is left. What a slice does not read at all keeps its place: its gradient is zero, and not absent."""
    source: Any = node.args[0]
    form = state.form(source)
    if form is None:
        return None
    axis = argument(node, 1, "dim", 0) % form.layout.rank
    start, end, step = argument(node, 2, "start"), argument(node, 3, "end"), argument(node, 4, "step", 1)
    size = static(value(source).shape[axis])
    if axis == form.layout.axis or size is None or step != 1 or not all(isinstance(x, int | None) for x in (start, end)):
        return None
    low, high, _ = slice(start, end).indices(size)

    def change(x: Value, columns: Columns | None) -> tuple[Value, Columns | None] | None:
        if columns is None or columns.axis != axis:
            return state.values.call(aten.slice.Tensor, x, axis, low, high, view=True), columns
        first, last = max(low, columns.start), min(high, columns.stop)
        if first >= last:
            return None
        part = state.values.call(aten.slice.Tensor, x, axis, first - columns.start, last - columns.start, view=True)
        return part, Columns(axis, first - low, last - low, high - low)

    return state.changed(form, form.layout, change) if low < high else None


def _select(state: Separation, node: Node) -> Form | None:
    source: Any = node.args[0]
    form = state.form(source)
    if form is None or not isinstance(arguments(node)[2], int):
        return None
    axis = arguments(node)[1] % form.layout.rank
    size = static(value(source).shape[axis])
    if axis == form.layout.axis or size is None:
        return None
    position = arguments(node)[2] % size
    if any(term.columns is not None and term.columns.axis == axis for term in form.terms):
        return None  # the others would lose their gradient of zero
    layout = replace(form.layout, axis=form.layout.axis - (axis < form.layout.axis), rank=form.layout.rank - 1)

    def change(x: Value, columns: Columns | None) -> tuple[Value, Columns | None]:
        if columns is None:
            return state.values.call(aten.select.int, x, axis, position, view=True), None
        moved = replace(columns, axis=columns.axis - (axis < columns.axis))
        return state.values.call(aten.select.int, x, axis, position, view=True), moved

    return state.changed(form, layout, change)


def _cat(state: Separation, node: Node) -> Form | None:
    """cat(a, b) = columns of a + columns of b; a part that has no form is there per edge."""
    parts: Any = node.args[0]
    form = next((found for part in parts if (found := state.form(part)) is not None), None)
    axis = argument(node, 1, "dim", 0) % value(node).dim()
    total = static(value(node).shape[axis])
    if form is None or axis == form.layout.axis or total is None:
        return None
    terms: list[Term] = []
    start = 0
    for part in parts:
        size = static(value(part).shape[axis])
        found = state.form(part)
        if size is None or value(part).dtype != value(node).dtype or value(part).dim() != value(node).dim():
            return None
        if found is not None and found.layout != form.layout:
            return None
        added = found.terms if found is not None else (state.opaque_term(part),)
        terms += [_placed(state, term, axis, start, size, total, form.layout.rank) for term in added]
        start += size
    return Form(tuple(terms), form.layout, form.rows)


def _placed(state: Separation, term: Term, axis: int, start: int, size: int, total: int, rank: int) -> Term:
    """A term of a part of a concatenation as a term of the whole."""
    if term.columns is not None and term.columns.axis == axis:
        columns = Columns(axis, start + term.columns.start, start + term.columns.stop, total)
        return replace(term, columns=columns)
    inner = state.values.padded(term.value, term.columns, rank)
    return replace(term, value=inner, columns=Columns(axis, start, start + size, total) if size != total else None)


RULES: dict[Any, Callable[[Separation, Node], Form | None]] = {
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _detach,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.reshape.default: _view,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _t,
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.cat.default: _cat,
}
