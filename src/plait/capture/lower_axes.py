"""Lowerings that act on a row's own axes: views, parts, reductions over them, softmax; and what all lowerings need of axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from plait.capture.expressions import computing_dtype
from plait.errors import UnsupportedError
from plait.ir import ops
from plait.ir.program import Node, Type, join_spaces
from plait.passes.edit import argument, aten, inner_sizes, value

if TYPE_CHECKING:
    from plait.capture.lower import Lowering

Lower = Callable[["Lowering", fx.Node], Node]


def rank_of(node: fx.Node) -> int:
    return int(value(node).dim()) - 1


def dtype_of(node: fx.Node) -> torch.dtype:
    """What a node is computed in."""
    return computing_dtype(value(node).dtype)


def inner_of(node: fx.Node) -> tuple[int, ...]:
    sizes = inner_sizes(value(node))
    if sizes is None:
        raise UnsupportedError(f"{node.name}: feature sizes of {tuple(value(node).shape)} are not static")
    return sizes


def operands(state: Lowering, node: fx.Node, given: list[Any], dtype: torch.dtype) -> list[Node]:
    return [state.cast(state.operand(item, rank_of(node), dtype), dtype) for item in given]


def source(state: Lowering, node: fx.Node) -> Node:
    x: Any = node.args[0]
    return state.operand(x, int(value(x).dim()) - 1)


def _axis(node: fx.Node, axis: Any, *, extra: int = 0) -> int:
    """An inner axis from an aten axis argument."""
    x: Any = node.args[0]
    dim = int(value(x).dim()) + extra
    position = int(axis) % dim
    if position == 0:
        raise UnsupportedError(f"{node.target} along the rows")
    return position - 1


def _view(state: Lowering, node: fx.Node) -> Node:
    return state.reshape(source(state, node), inner_of(node))


def _expand(state: Lowering, node: fx.Node) -> Node:
    x: Any = node.args[0]
    return state.broadcast(state.operand(x, rank_of(node)), inner_of(node))


def _same(state: Lowering, node: fx.Node) -> Node:
    return state.cast(source(state, node), dtype_of(node))


def _permute(state: Lowering, node: fx.Node) -> Node:
    x = source(state, node)
    given: Any = node.args[1]
    axes = [int(axis) % (len(x.type.shape) + 1) for axis in given]
    if axes[0] != 0:
        raise UnsupportedError("a permutation that moves the rows")
    return _permuted(state, x, tuple(axis - 1 for axis in axes[1:]))


def _permuted(state: Lowering, x: Node, axes: tuple[int, ...]) -> Node:
    shape = tuple(x.type.shape[axis] for axis in axes)
    return state.builder.node(ops.Permute(axes), (x,), Type(x.type.space, shape, x.type.dtype))


def _transpose(state: Lowering, node: fx.Node) -> Node:
    x = source(state, node)
    a, b = _axis(node, node.args[1]), _axis(node, node.args[2])
    axes = list(range(len(x.type.shape)))
    axes[a], axes[b] = axes[b], axes[a]
    return _permuted(state, x, tuple(axes))


def _sliced(state: Lowering, x: Node, axis: int, start: int, step: int, size: int) -> Node:
    shape = (*x.type.shape[:axis], size, *x.type.shape[axis + 1 :])
    return state.builder.node(ops.Slice(axis, start, step), (x,), Type(x.type.space, shape, x.type.dtype))


def _slice(state: Lowering, node: fx.Node) -> Node:
    x = source(state, node)
    axis = _axis(node, argument(node, 1, "dim", 0))
    start, step = argument(node, 2, "start", 0) or 0, argument(node, 4, "step", 1)
    if not isinstance(start, int) or not isinstance(step, int):
        raise UnsupportedError("a slice with bounds that are not static")
    extent = x.type.shape[axis]
    start = max(start + extent, 0) if start < 0 else min(start, extent)
    return _sliced(state, x, axis, start, step, inner_of(node)[axis])


def _select(state: Lowering, node: fx.Node) -> Node:
    x = source(state, node)
    axis, position = _axis(node, node.args[1]), node.args[2]
    if not isinstance(position, int):
        raise UnsupportedError("a selection at a position that is not static")
    return state.reshape(_sliced(state, x, axis, position % x.type.shape[axis], 1, 1), inner_of(node))


def _joined(what: str, *, new_axis: bool) -> Lower:
    """Values beside each other, along an axis they have or along a new one."""

    def lower(state: Lowering, node: fx.Node) -> Node:
        parts: Any = node.args[0]
        rank, shape, dtype = rank_of(node), inner_of(node), dtype_of(node)
        axis = int(argument(node, 1, "dim", 0)) % (rank + 1) - 1
        if axis < 0:
            raise UnsupportedError(f"a {what} of rows")
        items = [state.cast(state.operand(part, rank - new_axis), dtype) for part in parts]
        if new_axis:
            items = [state.reshape(item, (*shape[:axis], 1, *shape[axis + 1 :])) for item in items]
        return state.builder.node(ops.Cat(axis), tuple(items), Type(join_spaces(tuple(items)), shape, dtype))

    return lower


def _repeat(state: Lowering, node: fx.Node) -> Node:
    x = source(state, node)
    times: Any = node.args[1]
    rank = rank_of(node)
    if times[0] != 1:
        raise UnsupportedError("rows that are repeated")
    x = state.pad(x, rank)
    for axis, count in enumerate(times[1:]):
        if count == 1:
            continue
        size = x.type.shape[axis]
        shape = (*x.type.shape[:axis], size * count, *x.type.shape[axis + 1 :])
        if size == 1:
            x = state.broadcast(x, shape)
        else:
            x = state.builder.node(ops.Cat(axis), (x,) * count, Type(x.type.space, shape, x.type.dtype))
    return x


def _placed(state: Lowering, x: Node, axis: int, start: int, size: int) -> Node:
    """`x` at position `start` of an axis of `size`, zeros around it."""
    shape = x.type.shape
    parts = [x]
    for position, length in ((0, start), (1, size - start - shape[axis])):
        if length > 0:
            zeros = state.broadcast(state.like(x, 0), (*shape[:axis], length, *shape[axis + 1 :]))
            parts = [*parts, zeros] if position else [zeros, *parts]
    if len(parts) == 1:
        return x
    whole = Type(x.type.space, (*shape[:axis], size, *shape[axis + 1 :]), x.type.dtype)
    return state.builder.node(ops.Cat(axis), tuple(parts), whole)


def _slice_backward(state: Lowering, node: fx.Node) -> Node:
    """The gradient of a slice: zeros where it did not read."""
    axis, start, step = _axis(node, node.args[2]), node.args[3], node.args[5]
    if not isinstance(start, int) or not isinstance(step, int):
        raise UnsupportedError("the gradient of a slice at a position that is not static")
    size, x = inner_of(node)[axis], source(state, node)
    start = max(start + size, 0) if start < 0 else min(start, size)
    if step != 1 and x.type.shape[axis] > 0:
        # each number before its step - 1 zeros, the last of which may lie behind the end
        shape, count = x.type.shape, x.type.shape[axis]
        x = _placed(state, state.reshape(x, (*shape[: axis + 1], 1, *shape[axis + 1 :])), axis + 1, 0, step)
        x = state.reshape(x, (*shape[:axis], count * step, *shape[axis + 1 :]))
        x = _sliced(state, x, axis, 0, 1, min(count * step, size - start))
    return _placed(state, x, axis, start, size)


def _select_backward(state: Lowering, node: fx.Node) -> Node:
    axis, position = _axis(node, node.args[2], extra=1), node.args[3]
    if not isinstance(position, int):
        raise UnsupportedError("a selection at a position that is not static")
    shape = inner_of(node)
    x = state.reshape(source(state, node), (*shape[:axis], 1, *shape[axis + 1 :]))
    return _placed(state, x, axis, position % shape[axis], shape[axis])


def _vector_norm(state: Lowering, node: fx.Node) -> Node:
    """The 2-norm, from the sum of squares as in aten."""
    order: Any = argument(node, 1, "ord", 2)
    axes: Any = argument(node, 2, "dim")
    if order != 2 or not axes:
        raise UnsupportedError(f"a norm of order {order} over {axes}")
    x = state.cast(source(state, node), dtype_of(node))
    inner = tuple(_axis(node, axis) for axis in axes)
    total = state.inner_reduce(state.pointwise("mul", x, x), ops.Reduce.SUM, inner)
    return state.reshape(state.pointwise("sqrt", total), inner_of(node))


def _cross(state: Lowering, node: fx.Node) -> Node:
    shape, dtype = inner_of(node), dtype_of(node)
    a, b = (state.broadcast(item, shape) for item in operands(state, node, list(node.args[:2]), dtype))
    axis = _axis(node, node.kwargs.get("dim", -1))

    def part(x: Node, position: int) -> Node:
        return _sliced(state, x, axis, position % 3, 1, 1)

    def component(i: int) -> Node:
        first = state.pointwise("mul", part(a, i + 1), part(b, i + 2))
        return state.pointwise("sub", first, state.pointwise("mul", part(a, i + 2), part(b, i + 1)))

    parts = tuple(component(i) for i in range(3))
    return state.builder.node(ops.Cat(axis), parts, Type(join_spaces(parts), shape, dtype))


def _over_axis(state: Lowering, x: Node, axis: int, reduce: ops.Reduce) -> Node:
    """A reduction over one axis, broadcast back to it."""
    shape = x.type.shape
    result = state.inner_reduce(x, reduce, (axis,))
    return state.broadcast(state.reshape(result, (*shape[:axis], 1, *shape[axis + 1 :])), shape)


def _softmax(state: Lowering, node: fx.Node) -> Node:
    x, axis = state.cast(source(state, node), dtype_of(node)), _axis(node, node.args[1])
    weight = state.pointwise("exp", state.pointwise("sub", x, _over_axis(state, x, axis, ops.Reduce.MAX)))
    return state.pointwise("div", weight, _over_axis(state, weight, axis, ops.Reduce.SUM))


def _log_softmax(state: Lowering, node: fx.Node) -> Node:
    x, axis = state.cast(source(state, node), dtype_of(node)), _axis(node, node.args[1])
    x = state.pointwise("sub", x, _over_axis(state, x, axis, ops.Reduce.MAX))
    total = _over_axis(state, state.pointwise("exp", x), axis, ops.Reduce.SUM)
    return state.pointwise("sub", x, state.pointwise("log", total))


def _softmax_backward(*, log: bool) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        dtype = dtype_of(node)
        grad, result = operands(state, node, list(node.args[:2]), dtype)
        axis = _axis(node, node.args[2])
        if log:
            total = _over_axis(state, grad, axis, ops.Reduce.SUM)
            return state.pointwise("sub", grad, state.pointwise("mul", state.pointwise("exp", result), total))
        weighted = state.pointwise("mul", grad, result)
        total = _over_axis(state, weighted, axis, ops.Reduce.SUM)
        return state.pointwise("sub", weighted, state.pointwise("mul", result, total))

    return lower


def _inner_reduction(reduce: ops.Reduce, *, mean: bool = False) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        x = state.cast(source(state, node), dtype_of(node))
        given: Any = argument(node, 1, "dim", ())
        axes = given if isinstance(given, list | tuple) else [given]
        inner = tuple(_axis(node, axis) for axis in axes)
        if not inner:
            raise UnsupportedError(f"{node.target} over all axes")
        result = state.inner_reduce(x, reduce, inner)
        if mean:
            count = math.prod(x.type.shape[axis] for axis in inner)
            result = state.pointwise("div", result, state.like(result, count))
        return state.reshape(result, inner_of(node))

    return lower


AXES: dict[Any, Lower] = {
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.reshape.default: _view,
    aten.unsqueeze.default: _view,
    aten.squeeze.dim: _view,
    aten.squeeze.dims: _view,
    aten.expand.default: _expand,
    aten.detach.default: _same,
    aten.alias.default: _same,
    aten.clone.default: _same,
    aten._to_copy.default: _same,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.cat.default: _joined("concatenation", new_axis=False),
    aten.stack.default: _joined("stack", new_axis=True),
    aten.repeat.default: _repeat,
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.linalg_cross.default: _cross,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten._softmax_backward_data.default: _softmax_backward(log=False),
    aten._log_softmax_backward_data.default: _softmax_backward(log=True),
    aten.sum.dim_IntList: _inner_reduction(ops.Reduce.SUM),
    aten.mean.dim: _inner_reduction(ops.Reduce.SUM, mean=True),
    aten.amax.default: _inner_reduction(ops.Reduce.MAX),
    aten.amin.default: _inner_reduction(ops.Reduce.MIN),
    aten.prod.dim_int: _inner_reduction(ops.Reduce.PROD),
}
