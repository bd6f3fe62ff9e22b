"""The many spellings of a gather and of a scatter become `plait::gather` and `plait::segment_reduce`.

Every row of `SPELLINGS` is one aten operator with its index idiom; nothing here spans more. What does not fit a row stays as
it is, and its reason is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from plait import operators
from plait.passes.axes import swapped
from plait.passes.edit import (
    RESHAPES,
    Editor,
    argument,
    arguments,
    aten,
    is_call,
    is_integral,
    is_tensor,
    replace,
    same_shape,
    same_size,
    source_line,
    value,
)

_SCATTER_REDUCTIONS = {"sum": "sum", "mean": "mean", "amax": "max", "amin": "min"}


def canonicalize(graph: Graph) -> list[tuple[str, str]]:
    """Rewrites `graph` in place; returns (name, reason) of each gather or scatter left as it was."""
    reasons = []
    for node in list(graph.nodes):
        if _is_whole_slice(node):
            replace(node, arguments(node)[0])
            continue
        spelling = SPELLINGS.get(node.target) if node.op == "call_function" else None
        if spelling is None:
            continue
        result = spelling(node)
        if isinstance(result, str):
            reasons.append((node.name, f"{node.target}: {result}{_at(node)}"))
            continue
        replace(node, result)
    graph.eliminate_dead_code()
    return reasons


def _is_whole_slice(node: Node) -> bool:
    """Whether a slice takes everything: x[:, 0] is a slice of all rows first, and rows that are cut would be other rows."""
    if not is_call(node, aten.slice.Tensor) or any(user.op == "output" for user in node.users):
        return False
    return argument(node, 4, "step", 1) == 1 and same_shape(value(node).shape, value(arguments(node)[0]).shape)


def _at(node: Node) -> str:
    line = source_line(node)
    return f" (at {line})" if line else ""


# --- index idioms ----------------------------------------------------------------------------------------------------


def _is_vector_index(node: Any) -> bool:
    return isinstance(node, Node) and is_integral(node) and value(node).dim() == 1 and value(node).dtype != torch.bool


def broadcast_vector(index: Any, axis: int = 0) -> Node | None:
    """The int vector [E] that `index` [..., E, ...] repeats along every axis but this one, or None."""
    if _is_vector_index(index):
        return index  # type: ignore[no-any-return]
    if not is_integral(index):
        return None
    size = value(index).shape[axis]
    node = index
    while is_call(node, aten.expand.default, aten.repeat.default):
        source = arguments(node)[0]
        axis -= value(node).dim() - value(source).dim()
        node = source
        if axis < 0 or not same_size(value(node).shape[axis], size):
            return None
    if any(not same_size(other, 1) for number, other in enumerate(value(node).shape) if number != axis):
        return None
    while not _is_vector_index(node) and is_call(node, *RESHAPES):
        node = arguments(node)[0]
    return node if _is_vector_index(node) and same_size(value(node).shape[0], size) else None


def _axis(node: Node, axis: int) -> int:
    dim = value(node).dim()
    return axis + dim if axis < 0 else axis


def fill_value(node: Any) -> float | None:
    """The number that every element of a freshly made tensor holds, or None."""
    if is_call(node, aten.new_zeros.default, aten.zeros.default, aten.zeros_like.default):
        return 0.0
    if is_call(node, aten.new_ones.default, aten.ones.default, aten.ones_like.default):
        return 1.0
    if is_call(node, aten.full.default, aten.full_like.default, aten.fill.Scalar):
        return _number(arguments(node)[1])
    if is_call(node, aten.new_full.default):
        return _number(arguments(node)[2])
    return None


def _number(given: Any) -> float | None:
    return float(given) if isinstance(given, int | float | bool) else None


# --- gathers ---------------------------------------------------------------------------------------------------------


def _index_select(node: Node) -> Node | str:
    """x.index_select(0, idx) = gather(x, idx)"""
    x, axis, index = arguments(node)
    if value(x).dim() == 0 or not _is_vector_index(index):
        return "the index is not a vector"
    return _gathered(node, x, _axis(x, axis), index)


def _gathered(node: Node, x: Node, axis: int, index: Node, *more: bool) -> Node:
    """Rows along another axis than the first: transpose(gather(transpose(x), idx))"""
    edit = Editor(node.graph, node)
    return swapped(edit, edit.call(operators.gather, swapped(edit, x, axis), index, *more), axis)


def _index(node: Node) -> Node | str:
    """x[idx] = gather(x, idx); x[:, idx] along axis 1; x[matrix] row by row, with the matrix's axes back behind it"""
    x, indices = arguments(node)
    if len(indices) == 1 and is_integral(indices[0]) and value(indices[0]).dim() > 1:
        return _matrix_index(node, x, indices[0])
    axis = _only_index(indices)
    if axis is None or (axis > 0 and not value(x).dtype.is_floating_point):
        return "the index is not one int vector over the rows"
    return _gathered(node, x, axis, indices[axis], True)


def _matrix_index(node: Node, x: Node, matrix: Node) -> Node | str:
    """x[matrix] = view(gather(x, matrix's entries))"""
    if value(matrix).dtype == torch.bool:
        return "the index is a mask"
    edit = Editor(node.graph, node)
    rows = edit.call(operators.gather, x, edit.call(aten.reshape.default, matrix, [-1]), True)
    outer = [edit.size(matrix, axis) for axis in range(value(matrix).dim())]
    return edit.call(aten.reshape.default, rows, [*outer, *(edit.size(x, axis) for axis in range(1, value(x).dim()))])


def _only_index(indices: Any) -> int | None:
    """The axis of the one int vector among the indices of x[...]; None where there is something else."""
    given = [axis for axis, item in enumerate(indices) if item is not None]
    return given[0] if len(given) == 1 and _is_vector_index(indices[given[0]]) else None


def _aten_gather(node: Node) -> Node | str:
    """x.gather(0, idx expanded over the columns) = gather(x, idx)"""
    x, axis, index = arguments(node)[:3]
    if value(x).dim() == 0:
        return "a number has no rows"
    axis = _axis(x, axis)
    vector = broadcast_vector(index, axis)
    if vector is None:
        return "the index differs between columns"
    if not same_shape(_others(value(index).shape, axis), _others(value(x).shape, axis)):
        return "only some of the columns are read"
    return _gathered(node, x, axis, vector)


def _others(shape: Any, axis: int) -> list[Any]:
    return [size for number, size in enumerate(shape) if number != axis]


def _embedding(node: Node) -> Node | str:
    """F.embedding(idx, weight) = gather(weight, idx)"""
    weight, index = arguments(node)[:2]
    if not _is_vector_index(index):
        return "the index is not a vector"
    if argument(node, 2, "padding_idx", -1) not in (-1, None) or argument(node, 3, "scale_grad_by_freq", False):
        return "padding_idx or scale_grad_by_freq changes its gradient"
    return Editor(node.graph, node).call(operators.gather, weight, index)


# --- scatters --------------------------------------------------------------------------------------------------------


def _reduced(
    node: Node, base: Node, index: Node, source: Node, reduce: str, *, include_base: bool, wrap: bool = False, axis: int = 0
) -> Node | str:
    """The reduction of `source` by `index` onto `base`, whose rows without entries keep their value."""
    if not same_shape(_others(value(source).shape, axis), _others(value(base).shape, axis)):
        return "the scattered rows do not have the shape of the result's rows"
    if not value(source).dtype.is_floating_point and reduce != "sum":
        return "an integer reduction"
    fill = fill_value(base)
    edit = Editor(node.graph, node)
    num_rows = edit.size(base, axis)
    source, base = swapped(edit, source, axis), swapped(edit, base, axis)
    result = _reduced_rows(edit, base, fill, num_rows, index, source, reduce, include_base, wrap)
    return result if isinstance(result, str) else swapped(edit, result, axis)


def _reduced_rows(
    edit: Editor,
    base: Node,
    fill: float | None,
    num_rows: Any,
    index: Node,
    source: Node,
    reduce: str,
    include_base: bool,
    wrap: bool,
) -> Node | str:
    if reduce == "mean":
        return _mean(edit, index, source, num_rows, include_base) if fill == 0.0 else "a mean onto something else than zeros"
    if reduce == "sum" and (include_base or fill == 0.0):
        result = edit.call(operators.segment_reduce, source, index, num_rows, "sum", 0.0, False, wrap)
        return result if fill == 0.0 else edit.call(aten.add.Tensor, base, result)
    if fill is None or reduce == "sum":
        return "the tensor scattered onto is not a constant that can be added to"
    return edit.call(operators.segment_reduce, source, index, num_rows, reduce, fill, include_base)


def _mean(edit: Editor, index: Node, source: Node, num_rows: Any, include_base: bool) -> Node:
    """The mean of a row's entries (and of the zero it is scattered onto, with include_base) = their sum over their number."""
    val = value(source)
    ones = edit.call(aten.full.default, [edit.size(source, 0)], 1.0, dtype=val.dtype, device=val.device)
    count = edit.call(operators.segment_reduce, ones, index, num_rows, "sum")
    if include_base:
        count = edit.call(aten.add.Scalar, count, 1.0)
    count = edit.call(aten.clamp_min.default, count, 1.0)
    if val.dim() > 1:
        count = edit.call(aten.view.default, count, [-1, *[1] * (val.dim() - 1)])
    total = edit.call(operators.segment_reduce, source, index, num_rows, "sum")
    return edit.call(aten.div.Tensor, total, count)


def _scatter_add(node: Node) -> Node | str:
    base, axis, index, source = arguments(node)
    return _scattered(node, base, axis, index, source, "sum", include_base=True)


def _scatter_reduce(node: Node) -> Node | str:
    base, axis, index, source, name = arguments(node)
    include = argument(node, 5, "include_self", True)
    reduce = _SCATTER_REDUCTIONS.get(name)
    if reduce is None:
        return f"scatter_reduce {name!r} with include_self={include} is not fused"
    return _scattered(node, base, axis, index, source, reduce, include_base=include)


def _scattered(node: Node, base: Node, axis: int, index: Node, source: Node, reduce: str, *, include_base: bool) -> Node | str:
    if value(base).dim() == 0:
        return "a number has no rows"
    axis = _axis(base, axis)
    vector = broadcast_vector(index, axis)
    if vector is None:
        return "the index differs between columns"
    if not same_shape(value(index).shape, value(source).shape):
        return "the index covers only a part of the source"
    return _reduced(node, base, vector, source, reduce, include_base=include_base, axis=axis)


def _index_add(node: Node) -> Node | str:
    base, axis, index, source = arguments(node)
    if value(base).dim() == 0 or not _is_vector_index(index):
        return "not a sum of rows"
    if argument(node, 4, "alpha", 1) != 1:
        return "alpha is not 1"
    return _reduced(node, base, index, source, "sum", include_base=True, axis=_axis(base, axis))


def _index_reduce(node: Node) -> Node | str:
    base, axis, index, source, name = arguments(node)
    include = argument(node, 5, "include_self", True)
    reduce = _SCATTER_REDUCTIONS.get(name)
    if value(base).dim() == 0 or reduce in (None, "sum"):
        return f"index_reduce {name!r} is not fused"
    assert reduce is not None
    return _reduced(node, base, index, source, reduce, include_base=include, axis=_axis(base, axis))


def _index_put(node: Node) -> Node | str:
    base, indices, source = arguments(node)[:3]
    if not argument(node, 3, "accumulate", False):
        return _masked(node, base, indices, source) or "it overwrites instead of adding"
    if len(indices) != 1 or not _is_vector_index(indices[0]):
        return "the index is not one int vector over the rows"
    if not same_shape(value(source).shape, (value(indices[0]).shape[0], *value(base).shape[1:])):
        return "the values are broadcast"
    return _reduced(node, base, indices[0], source, "sum", include_base=True, wrap=True)


def _masked(node: Node, base: Node, indices: Any, source: Node) -> Node | None:
    """base[mask] = number: where(mask, number, base)"""
    if len(indices) != 1 or not is_tensor(indices[0]) or value(indices[0]).dtype != torch.bool:
        return None
    mask = indices[0]
    missing = value(base).dim() - value(mask).dim()
    if any(not same_size(size, 1) for size in value(source).shape) or missing < 0:
        return None
    if not same_shape(value(mask).shape, value(base).shape[: value(mask).dim()]):
        return None
    edit = Editor(node.graph, node)
    for _ in range(missing):
        mask = edit.call(aten.unsqueeze.default, mask, -1)
    if value(source).dim() > 0:
        source = edit.call(aten.view.default, source, [])
    return edit.call(aten.where.self, mask, source, base)


SPELLINGS: dict[Any, Callable[[Node], Node | str]] = {
    aten.index_select.default: _index_select,
    aten.index.Tensor: _index,
    aten.gather.default: _aten_gather,
    aten.embedding.default: _embedding,
    aten.scatter_add.default: _scatter_add,
    aten.scatter_reduce.two: _scatter_reduce,
    aten.index_add.default: _index_add,
    aten.index_reduce.default: _index_reduce,
    aten.index_put.default: _index_put,
    aten._unsafe_index_put.default: _index_put,
    aten._unsafe_index.Tensor: _index,
}


def materialize_fills(graph: Graph) -> None:
    """`new_zeros(x, ...)`, `ones_like(x)`, ... become `full`: they read no data of x, and must not look as if they did."""
    for node in list(graph.nodes):
        number = fill_value(node)
        if number is None or is_call(node, aten.full.default) or not is_tensor(node):
            continue
        val = value(node)
        if not val.is_contiguous() and val.dim() > 1:
            continue
        edit = Editor(graph, node)
        shape = [_shape_argument(edit, node, axis) for axis in range(val.dim())]
        if any(size is None for size in shape):
            continue
        fill = int(number) if not val.dtype.is_floating_point else number
        replace(node, edit.call(aten.full.default, shape, fill, dtype=val.dtype, device=val.device))
    graph.eliminate_dead_code()


def _shape_argument(edit: Editor, node: Node, axis: int) -> Any:
    """Size `axis` of a fill, taken from what the fill was made of, never from the fill itself."""
    size = value(node).shape[axis]
    if isinstance(size, int):
        return size
    given = arguments(node)[0] if is_call(node, aten.full.default, aten.zeros.default, aten.ones.default) else None
    if given is None and len(arguments(node)) > 1 and isinstance(arguments(node)[1], list | tuple):
        given = arguments(node)[1]
    if given is not None:
        return given[axis]
    like = arguments(node)[0]
    while is_call(like, aten.empty_like.default):
        like = arguments(like)[0]
    return edit.call(aten.sym_size.int, like, axis) if isinstance(like, Node) else None
