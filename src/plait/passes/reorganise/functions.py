"""Functions of rows: sums, products with what is the same for all rows, and f(gather(x, m)) = gather(f(x), m).

A function that is moved to nodes is computed for rows that no edge reads, too. No edge sees those numbers, but they meet a
gradient of zero there, and 0 * infinity would be NaN: only functions whose derivative is finite at every finite number move.
That leaves out exp, log, square roots and quotients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from plait.passes.edit import argument, arguments, aten, is_tensor, same_shape, same_size, value
from plait.passes.reorganise.terms import Columns, Form, Layout, Term, Value, is_row_axis
from plait.passes.reorganise.views import expanded

if TYPE_CHECKING:
    from plait.passes.reorganise.separate import Separation


def _row_wise(state: Separation, node: Node) -> Form | None:
    """f(gather(x, m), w) = gather(f(x, w), m); f(cat(a, b)) = cat(f(a), f(b))."""
    forms = {item: form for item in node.all_input_nodes if (form := state.form(item)) is not None}
    if not forms or any(isinstance(item, Node) for item in node.kwargs.values()):
        return None
    layouts = {state.layout(node, item, form) for item, form in forms.items()}
    layout = next(iter(layouts))
    if len(layouts) > 1 or not all(item in forms or state.is_dense(item, layout) for item in node.all_input_nodes):
        return None
    if len(forms) == 1:
        ((operand, form),) = forms.items()
        return _by_parts(state, node, operand, form, layout)
    found = {item: state.values.single(form) for item, form in forms.items()}
    ends = {pair[0] if pair is not None else None for pair in found.values()}
    if len(ends) > 1 or None in ends:
        return None
    inner = {item: pair[1] for item, pair in found.items() if pair is not None}
    applied = _applied(state, node, inner, None, layout)
    return Form((Term(applied, next(iter(ends))),), layout, next(iter(forms.values())).rows)


def _by_parts(state: Separation, node: Node, operand: Node, form: Form, layout: Layout) -> Form | None:
    parts = state.values.parts(form)
    if parts is None:
        return None
    terms = []
    for part in parts:
        columns = part.columns and replace(part.columns, axis=part.columns.axis + layout.rank - form.layout.rank)
        terms.append(Term(_applied(state, node, {operand: part.value}, columns, layout), part.end, columns=columns))
    return Form(tuple(terms), layout, form.rows)


def _applied(state: Separation, node: Node, inner: dict[Node, Value], columns: Columns | None, layout: Layout) -> Value:
    """The call of `node` with other operands, in `columns` of it."""
    args = [inner[item] if item in inner else state.part_of(item, columns, layout) for item in node.args]  # type: ignore[index]
    return state.values.call(node.target, *args, **node.kwargs)  # type: ignore[arg-type]


def _inside_rows(state: Separation, node: Node) -> Form | None:
    """f(gather(x, m)) = gather(f(x), m) for f over whole inner axes."""
    source: Any = node.args[0]
    form = state.form(source)
    single = None if form is None else state.values.single(form)
    if form is None or single is None or node.kwargs:
        return None
    axes = _axes(node, form.layout)
    if axes is None:
        return None
    layout = form.layout
    if value(node).dim() < layout.rank:
        layout = replace(layout, axis=layout.axis - sum(axis < layout.axis for axis in axes), rank=value(node).dim())
    applied = state.values.call(node.target, single[1], *arguments(node)[1:])  # type: ignore[arg-type]
    return Form((Term(applied, single[0]),), layout, form.rows)


def _axes(node: Node, layout: Layout) -> list[int] | None:
    """The axes an inner reduction takes away, if the rows are not among them."""
    given: Any = argument(node, 1, "dim", [])
    axes = [axis % layout.rank for axis in (given if isinstance(given, list | tuple) else [given])]
    return axes if axes and layout.axis not in axes else None


def _summed(state: Separation, node: Node) -> Form | None:
    """sum(a + b) = sum(a) + sum(b) over inner axes; the zeros beside columns add nothing, but a mean counts them."""
    source: Any = node.args[0]
    form = state.form(source)
    axes = None if form is None else _axes(node, form.layout)
    if form is None or axes is None or node.kwargs:
        return None
    keep = bool(argument(node, 2, "keepdim", False))
    kept = [axis for axis in range(form.layout.rank) if keep or axis not in axes]
    layout = Layout(kept.index(form.layout.axis), form.layout.block, len(kept))
    terms = []
    for term in form.terms:
        columns, share = term.columns, 1.0
        if columns is not None and columns.axis in axes:
            share = (columns.stop - columns.start) / columns.size if node.target is aten.mean.dim else 1.0
            columns = None
        if columns is not None:
            columns = replace(columns, axis=kept.index(columns.axis))
        inner = state.values.call(node.target, term.value, axes, keep)  # type: ignore[arg-type]
        terms.append(replace(term, value=inner, columns=columns, factor=term.factor * share))
    return Form(tuple(terms), layout, form.rows)


def _negated(state: Separation, node: Node) -> Form | None:
    form = state.form(node.args[0])
    return None if form is None else _times(form, -1.0)


def _times(form: Form, factor: float) -> Form:
    return replace(form, terms=tuple(replace(term, factor=term.factor * factor) for term in form.terms))


def _added(state: Separation, node: Node) -> Form | None:
    """The terms of a sum are those of its operands; what all rows share joins a term."""
    sign = float(argument(node, 2, "alpha", 1)) * (1.0 if node.target is aten.add.Tensor else -1.0)
    operands: list[Any] = list(node.args[:2])
    if node.target is aten.rsub.Scalar:
        operands.reverse()
    found = [(item, form) for item in operands if (form := state.form(item)) is not None]
    if not found or any(is_tensor(item) and value(item).dtype != value(node).dtype for item in operands):
        return None
    layout = state.layout(node, *found[0])
    terms: list[Term] = []
    constants: list[tuple[Any, float]] = []
    for operand, factor in zip(operands, (1.0, sign), strict=True):
        if state.is_dense(operand, layout):
            constants.append((operand, factor))
            continue
        form = _addend(state, node, operand, layout, found[0][1].rows)
        if form is None:
            return None
        terms.extend(_times(form, factor).terms)
    for constant, factor in constants:
        if not _join(state, terms, constant, factor, layout):
            return None
    return Form(tuple(terms), layout, found[0][1].rows)


def _addend(state: Separation, node: Node, operand: Node, layout: Layout, rows: Node) -> Form | None:
    """An operand in the shape of the sum."""
    form = state.form(operand)
    if form is None:
        axis = layout.axis - (layout.rank - value(operand).dim())
        form = Form((state.opaque_term(operand),), Layout(axis, layout.block, value(operand).dim()), rows)
    if state.layout(node, operand, form) != layout:
        return None
    return form if same_shape(value(operand).shape, value(node).shape) else expanded(state, form, node)


def _join(state: Separation, terms: list[Term], constant: Any, factor: float, layout: Layout) -> bool:
    """gather(x, m) + c = gather(x + c, m), with the first term that is a gather."""
    for position, term in enumerate(terms):
        if term.end is not None and not term.scale:
            whole = state.values.full(term, layout.rank)
            target: Any = aten.sub.Tensor if factor < 0 else aten.add.Tensor
            joined = state.values.call(target, whole, _times_constant(state, constant, abs(factor)))
            terms[position] = Term(joined, term.end)
            return True
    return False


def _times_constant(state: Separation, constant: Any, factor: float) -> Any:
    if factor == 1.0:
        return constant
    return state.values.call(aten.mul.Tensor, constant, factor) if isinstance(constant, Node) else constant * factor


def _multiplied(state: Separation, node: Node) -> Form | None:
    """(a + b) * w = a * w + b * w for w that all rows share, for numbers, and for one number per row."""
    a, b = arguments(node)[:2]
    both = state.form(a) is not None and state.form(b) is not None
    if both and (form := _row_wise(state, node)) is not None:
        return form
    for operand, other in ((a, b), (b, a)):
        form = _scaled(state, node, operand, other)
        if form is not None:
            return form
    return None


def _scaled(state: Separation, node: Node, operand: Any, other: Any) -> Form | None:
    form = state.form(operand)
    if form is None:
        return None
    if isinstance(other, int | float) and not isinstance(other, bool):
        return _times(form, float(other))
    if not is_tensor(other) or value(other).dtype != value(node).dtype:
        return None
    layout = state.layout(node, operand, form)
    if not same_shape(value(operand).shape, value(node).shape):
        wide = expanded(state, form, node)
        if wide is None:
            return None
        form = wide
    if state.is_dense(other, layout):
        return _times_dense(state, node, form, other)
    is_number_per_row = (
        layout.is_plain and value(other).dim() == layout.rank and is_row_axis(value(other).shape[0], form.rows, 1)
    )
    if not is_number_per_row or not all(same_size(size, 1) for size in value(other).shape[1:]):
        return None
    return replace(form, terms=tuple(replace(term, scale=(*term.scale, other)) for term in form.terms))


def _times_dense(state: Separation, node: Node, form: Form, other: Node) -> Form | None:
    target: Any = aten.div.Tensor if node.target is aten.div.Tensor else aten.mul.Tensor

    def change(x: Value, columns: Columns | None) -> tuple[Value, Columns | None]:
        return state.values.call(target, x, state.part_of(other, columns, form.layout)), columns

    return state.changed(form, form.layout, change)


def _divided(state: Separation, node: Node) -> Form | None:
    """(a + b) / w = a / w + b / w for w that all rows share."""
    operand, other = arguments(node)[:2]
    form = state.form(operand)
    if form is None or len(node.args) > 2 or node.kwargs:
        return None
    if isinstance(other, int | float) and other:
        return _times(form, 1.0 / other)
    layout = state.layout(node, operand, form)
    if not is_tensor(other) or value(other).dtype != value(node).dtype or not state.is_dense(other, layout):
        return None
    wide = form if same_shape(value(operand).shape, value(node).shape) else expanded(state, form, node)
    return None if wide is None else _times_dense(state, node, wide, other)


def _power(state: Separation, node: Node) -> Form | None:
    """Whole powers from 1 on: the derivatives of others are infinite at zero."""
    exponent = arguments(node)[1]
    return _row_wise(state, node) if isinstance(exponent, int | float) and exponent >= 1 and exponent == int(exponent) else None


_TAME = (
    *(
        "abs",
        "tanh",
        "sigmoid",
        "relu",
        "leaky_relu",
        "elu",
        "silu",
        "gelu",
        "softplus",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
    ),
    *(
        "mish",
        "erf",
        "sin",
        "cos",
        "atan",
        "clamp_min",
        "clamp_max",
        "clamp",
        "maximum",
        "minimum",
        "logical_not",
        "celu",
        "selu",
    ),
)
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")

RULES: dict[Any, Callable[[Separation, Node], Form | None]] = {
    **{getattr(aten, name).default: _row_wise for name in _TAME},
    **{getattr(getattr(aten, name), kind): _row_wise for name in _COMPARISONS for kind in ("Tensor", "Scalar")},
    aten.where.self: _row_wise,
    aten._to_copy.default: _row_wise,
    aten.pow.Tensor_Scalar: _power,
    aten._softmax.default: _inside_rows,
    aten._log_softmax.default: _inside_rows,
    aten.amax.default: _inside_rows,
    aten.amin.default: _inside_rows,
    aten.sum.dim_IntList: _summed,
    aten.mean.dim: _summed,
    aten.neg.default: _negated,
    aten.add.Tensor: _added,
    aten.sub.Tensor: _added,
    aten.rsub.Scalar: _added,
    aten.mul.Tensor: _multiplied,
    aten.mul.Scalar: _multiplied,
    aten.div.Tensor: _divided,
    aten.div.Scalar: _divided,
}
