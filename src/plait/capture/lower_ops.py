"""The table from aten operators to IR values: one row an operator, elementwise or acting on a row's own axes.

What is composite in aten is spelled with the few functions of `ir.ops.POINTWISE` here. Every function gets the lowering state
and the FX node and gives the IR value of that node.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from plait.capture import activations
from plait.errors import UnsupportedError
from plait.ir import ops
from plait.ir.program import Node, Space, Type, join_spaces
from plait.passes.edit import argument, aten, inner_sizes, product_parts, value

if TYPE_CHECKING:
    from plait.capture.lower import Lowering

Lower = Callable[["Lowering", fx.Node], Node]


def _rank(node: fx.Node) -> int:
    return int(value(node).dim()) - 1


def _inner(node: fx.Node) -> tuple[int, ...]:
    sizes = inner_sizes(value(node))
    if sizes is None:
        raise UnsupportedError(f"{node.name}: feature sizes of {tuple(value(node).shape)} are not static")
    return sizes


def _operands(state: Lowering, node: fx.Node, given: list[Any], dtype: torch.dtype) -> list[Node]:
    return [state.cast(state.operand(item, _rank(node), dtype), dtype) for item in given]


# --- elementwise -----------------------------------------------------------------------------------------------------


def _arithmetic(fn: str) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        dtype = value(node).dtype
        a, b = _operands(state, node, list(node.args[:2]), dtype)
        alpha = argument(node, 2, "alpha", 1)
        if fn in ("add", "sub") and alpha != 1:
            b = state.pointwise("mul", b, state.const(alpha, dtype))
        if fn == "div" and not dtype.is_floating_point:
            raise UnsupportedError("integer division")
        if dtype == torch.bool and fn not in ("maximum", "minimum"):
            fn_bool = {"add": "logical_or", "mul": "logical_and"}.get(fn)
            if fn_bool is None:
                raise UnsupportedError(f"{fn} of bools")
            return state.broadcast(state.pointwise(fn_bool, a, b), _inner(node))
        return state.broadcast(state.pointwise(fn, a, b), _inner(node))

    return lower


def _rsub(state: Lowering, node: fx.Node) -> Node:
    dtype = value(node).dtype
    a, b = _operands(state, node, list(node.args[:2]), dtype)
    alpha = argument(node, 2, "alpha", 1)
    return state.pointwise("sub", b, state.pointwise("mul", a, state.const(alpha, dtype)) if alpha != 1 else a)


def _unary(fn: str) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        (x,) = _operands(state, node, [node.args[0]], value(node).dtype)
        return state.pointwise(fn, x)

    return lower


def _compare(fn: str) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        given = list(node.args[:2])
        tensors = [value(item) for item in given if isinstance(item, fx.Node)]
        dtype = tensors[0].dtype
        for item in tensors[1:]:
            if item.dim() == 0 and item.dtype.is_floating_point == dtype.is_floating_point:
                continue
            dtype = torch.promote_types(dtype, item.dtype)
        if dtype == torch.bool and fn not in ("eq", "ne"):
            raise UnsupportedError(f"{fn} of bools")
        a, b = _operands(state, node, given, dtype)
        return state.broadcast(state.pointwise(fn, a, b), _inner(node))

    return lower


def _logical(fn: str) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        if value(node).dtype != torch.bool:
            raise UnsupportedError("bitwise functions of integers")
        given = [state.operand(item, _rank(node), torch.bool) for item in node.args]
        if any(item.type.dtype != torch.bool for item in given):
            given = [
                item if item.type.dtype == torch.bool else state.pointwise("ne", item, state.like(item, 0)) for item in given
            ]
        return state.broadcast(state.pointwise(fn, *given), _inner(node))

    return lower


def _isnan(state: Lowering, node: fx.Node) -> Node:
    x = _source(state, node)
    return state.pointwise("ne", x, x)


def _where(state: Lowering, node: fx.Node) -> Node:
    condition = state.operand(node.args[0], _rank(node), torch.bool)
    a, b = _operands(state, node, list(node.args[1:3]), value(node).dtype)
    return state.broadcast(state.pointwise("where", condition, a, b), _inner(node))


def _masked_fill(state: Lowering, node: fx.Node) -> Node:
    x, mask, fill = node.args
    dtype = value(node).dtype
    a, b = _operands(state, node, [fill, x], dtype)
    return state.broadcast(state.pointwise("where", state.operand(mask, _rank(node), torch.bool), a, b), _inner(node))


def _power(state: Lowering, node: fx.Node) -> Node:
    dtype = value(node).dtype
    exponent = node.args[1]
    (x,) = _operands(state, node, [node.args[0]], dtype)
    if not dtype.is_floating_point:
        raise UnsupportedError("integer powers")
    if exponent == 2:
        return state.pointwise("mul", x, x)
    if exponent == 3:
        return state.pointwise("mul", state.pointwise("mul", x, x), x)
    if exponent == 1:
        return x
    if exponent == 0.5:
        return state.pointwise("sqrt", x)
    if exponent == -0.5:
        return state.pointwise("rsqrt", x)
    if exponent == -1:
        return state.pointwise("reciprocal", x)
    (y,) = _operands(state, node, [exponent], dtype)
    return state.broadcast(state.pointwise("pow", x, y), _inner(node))


def _clamp(state: Lowering, node: fx.Node) -> Node:
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    dtype = value(node).dtype
    (x,) = _operands(state, node, [node.args[0]], dtype)
    if low is not None:
        x = state.pointwise("maximum", x, *_operands(state, node, [low], dtype))
    if high is not None:
        x = state.pointwise("minimum", x, *_operands(state, node, [high], dtype))
    return state.broadcast(x, _inner(node))


def _clamp_max(state: Lowering, node: fx.Node) -> Node:
    x, high = _operands(state, node, list(node.args[:2]), value(node).dtype)
    return state.broadcast(state.pointwise("minimum", x, high), _inner(node))


def _activation(formula: Callable[..., Node], num_tensors: int = 1) -> Lower:
    """A function of `num_tensors` tensors; further arguments are numbers and reach `formula` as they stand."""

    def lower(state: Lowering, node: fx.Node) -> Node:
        dtype = value(node).dtype
        tensors = _operands(state, node, list(node.args[:num_tensors]), dtype)
        result = formula(state, *tensors, *node.args[num_tensors:], **node.kwargs)
        return state.broadcast(result, _inner(node))

    return lower


# --- a row's own axes ------------------------------------------------------------------------------------------------


def _source(state: Lowering, node: fx.Node) -> Node:
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
    return state.reshape(_source(state, node), _inner(node))


def _expand(state: Lowering, node: fx.Node) -> Node:
    x: Any = node.args[0]
    return state.broadcast(state.operand(x, _rank(node)), _inner(node))


def _same(state: Lowering, node: fx.Node) -> Node:
    return state.cast(_source(state, node), value(node).dtype)


def _permute(state: Lowering, node: fx.Node) -> Node:
    x = _source(state, node)
    given: Any = node.args[1]
    axes = [int(axis) % (len(x.type.shape) + 1) for axis in given]
    if axes[0] != 0:
        raise UnsupportedError("a permutation that moves the rows")
    return _permuted(state, x, tuple(axis - 1 for axis in axes[1:]))


def _permuted(state: Lowering, x: Node, axes: tuple[int, ...]) -> Node:
    shape = tuple(x.type.shape[axis] for axis in axes)
    return state.builder.node(ops.Permute(axes), (x,), Type(x.type.space, shape, x.type.dtype))


def _transpose(state: Lowering, node: fx.Node) -> Node:
    x = _source(state, node)
    a, b = _axis(node, node.args[1]), _axis(node, node.args[2])
    axes = list(range(len(x.type.shape)))
    axes[a], axes[b] = axes[b], axes[a]
    return _permuted(state, x, tuple(axes))


def _sliced(state: Lowering, x: Node, axis: int, start: int, step: int, size: int) -> Node:
    shape = (*x.type.shape[:axis], size, *x.type.shape[axis + 1 :])
    return state.builder.node(ops.Slice(axis, start, step), (x,), Type(x.type.space, shape, x.type.dtype))


def _slice(state: Lowering, node: fx.Node) -> Node:
    x = _source(state, node)
    axis = _axis(node, argument(node, 1, "dim", 0))
    start, step = argument(node, 2, "start", 0) or 0, argument(node, 4, "step", 1)
    if not isinstance(start, int) or not isinstance(step, int):
        raise UnsupportedError("a slice with bounds that are not static")
    extent = x.type.shape[axis]
    start = max(start + extent, 0) if start < 0 else min(start, extent)
    return _sliced(state, x, axis, start, step, _inner(node)[axis])


def _select(state: Lowering, node: fx.Node) -> Node:
    x = _source(state, node)
    axis, position = _axis(node, node.args[1]), node.args[2]
    if not isinstance(position, int):
        raise UnsupportedError("a selection at a position that is not static")
    return state.reshape(_sliced(state, x, axis, position % x.type.shape[axis], 1, 1), _inner(node))


def _cat(state: Lowering, node: fx.Node) -> Node:
    parts: Any = node.args[0]
    rank = _rank(node)
    axis = int(argument(node, 1, "dim", 0)) % (rank + 1) - 1
    if axis < 0:
        raise UnsupportedError("a concatenation of rows")
    items = [state.cast(state.operand(part, rank), value(node).dtype) for part in parts]
    joined = Type(join_spaces(tuple(items)), _inner(node), value(node).dtype)
    return state.builder.node(ops.Cat(axis), tuple(items), joined)


def _stack(state: Lowering, node: fx.Node) -> Node:
    parts: Any = node.args[0]
    rank = _rank(node)
    axis = int(argument(node, 1, "dim", 0)) % (rank + 1) - 1
    if axis < 0:
        raise UnsupportedError("a stack of rows")
    shape = _inner(node)
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    items = [state.cast(state.operand(part, rank - 1), value(node).dtype) for part in parts]
    items = [state.reshape(item, one) for item in items]
    return state.builder.node(ops.Cat(axis), tuple(items), Type(join_spaces(tuple(items)), shape, value(node).dtype))


def _repeat(state: Lowering, node: fx.Node) -> Node:
    x = _source(state, node)
    times: Any = node.args[1]
    rank = _rank(node)
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
    if step != 1 or not isinstance(start, int):
        raise UnsupportedError("the gradient of a slice with steps")
    size = _inner(node)[axis]
    start = max(start + size, 0) if start < 0 else min(start, size)
    return _placed(state, _source(state, node), axis, start, size)


def _select_backward(state: Lowering, node: fx.Node) -> Node:
    axis, position = _axis(node, node.args[2], extra=1), node.args[3]
    if not isinstance(position, int):
        raise UnsupportedError("a selection at a position that is not static")
    shape = _inner(node)
    x = state.reshape(_source(state, node), (*shape[:axis], 1, *shape[axis + 1 :]))
    return _placed(state, x, axis, position % shape[axis], shape[axis])


def _vector_norm(state: Lowering, node: fx.Node) -> Node:
    """The 2-norm, from the sum of squares as in aten."""
    order: Any = argument(node, 1, "ord", 2)
    axes: Any = argument(node, 2, "dim")
    if order != 2 or not axes:
        raise UnsupportedError(f"a norm of order {order} over {axes}")
    x = state.cast(_source(state, node), value(node).dtype)
    inner = tuple(_axis(node, axis) for axis in axes)
    total = state.inner_reduce(state.pointwise("mul", x, x), ops.Reduce.SUM, inner)
    return state.reshape(state.pointwise("sqrt", total), _inner(node))


def _cross(state: Lowering, node: fx.Node) -> Node:
    shape, dtype = _inner(node), value(node).dtype
    a, b = (state.broadcast(item, shape) for item in _operands(state, node, list(node.args[:2]), dtype))
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
    x, axis = state.cast(_source(state, node), value(node).dtype), _axis(node, node.args[1])
    weight = state.pointwise("exp", state.pointwise("sub", x, _over_axis(state, x, axis, ops.Reduce.MAX)))
    return state.pointwise("div", weight, _over_axis(state, weight, axis, ops.Reduce.SUM))


def _log_softmax(state: Lowering, node: fx.Node) -> Node:
    x, axis = state.cast(_source(state, node), value(node).dtype), _axis(node, node.args[1])
    x = state.pointwise("sub", x, _over_axis(state, x, axis, ops.Reduce.MAX))
    total = _over_axis(state, state.pointwise("exp", x), axis, ops.Reduce.SUM)
    return state.pointwise("sub", x, state.pointwise("log", total))


def _softmax_backward(*, log: bool) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        dtype = value(node).dtype
        grad, result = _operands(state, node, list(node.args[:2]), dtype)
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
        x = state.cast(_source(state, node), value(node).dtype)
        given: Any = argument(node, 1, "dim", ())
        axes = given if isinstance(given, list | tuple) else [given]
        inner = tuple(_axis(node, axis) for axis in axes)
        if not inner:
            raise UnsupportedError(f"{node.target} over all axes")
        result = state.inner_reduce(x, reduce, inner)
        if mean:
            count = math.prod(x.type.shape[axis] for axis in inner)
            result = state.pointwise("div", result, state.like(result, count))
        return state.reshape(result, _inner(node))

    return lower


def _product(state: Lowering, node: fx.Node) -> Node:
    """mm(x, W), and addmm(b, x, W) = mm(x, W) + b."""
    parts = product_parts(node)
    if parts is None:
        raise UnsupportedError("a product with alpha or beta")
    bias, rows, weight = parts
    dtype = value(node).dtype
    x, w = state.operand(rows, 1), state.operand(weight, 2)
    if x.type.space is Space.DENSE or w.type.space is not Space.DENSE:
        raise UnsupportedError("a product of other values than those of an edge and a weight")
    result = state.builder.node(ops.Product(), (x, w), Type(Space.EDGE, w.type.shape[1:], dtype))
    if bias is None:
        return result
    return state.broadcast(state.pointwise("add", result, *_operands(state, node, [bias], dtype)), _inner(node))


def _full(state: Lowering, node: fx.Node) -> Node:
    fill: Any = node.args[1]
    if not isinstance(fill, int | float | bool):
        raise UnsupportedError("a fill with a number that is not static")
    return state.broadcast(state.const(fill, value(node).dtype), _inner(node))


LOWERINGS: dict[Any, Lower] = {
    aten.add.Tensor: _arithmetic("add"),
    aten.add.Scalar: _arithmetic("add"),
    aten.sub.Tensor: _arithmetic("sub"),
    aten.sub.Scalar: _arithmetic("sub"),
    aten.rsub.Scalar: _rsub,
    aten.rsub.Tensor: _rsub,
    aten.mul.Tensor: _arithmetic("mul"),
    aten.mul.Scalar: _arithmetic("mul"),
    aten.div.Tensor: _arithmetic("div"),
    aten.div.Scalar: _arithmetic("div"),
    aten.maximum.default: _arithmetic("maximum"),
    aten.minimum.default: _arithmetic("minimum"),
    aten.atan2.default: _arithmetic("atan2"),
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Tensor_Tensor: _power,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: _clamp_max,
    aten.where.self: _where,
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.logical_and.default: _logical("logical_and"),
    aten.logical_or.default: _logical("logical_or"),
    aten.logical_not.default: _logical("logical_not"),
    aten.bitwise_and.Tensor: _logical("logical_and"),
    aten.bitwise_or.Tensor: _logical("logical_or"),
    aten.bitwise_not.default: _logical("logical_not"),
    **{
        getattr(aten, name).default: _unary(name)
        for name in (
            *("neg", "abs", "sign", "reciprocal", "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh"),
            *("sigmoid", "erf", "floor", "ceil", "round", "trunc"),
        )
    },
    **{
        getattr(getattr(aten, name), kind): _compare(name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for kind in ("Tensor", "Scalar")
    },
    aten.isnan.default: _isnan,
    aten.relu.default: _activation(activations.relu),
    aten.leaky_relu.default: _activation(activations.leaky_relu),
    aten.leaky_relu_backward.default: _activation(activations.leaky_relu_backward, 2),
    aten.threshold_backward.default: _activation(activations.threshold_backward, 2),
    aten.sigmoid_backward.default: _activation(activations.sigmoid_backward, 2),
    aten.tanh_backward.default: _activation(activations.tanh_backward, 2),
    aten.silu.default: _activation(activations.silu),
    aten.silu_backward.default: _activation(activations.silu_backward, 2),
    aten.elu.default: _activation(activations.elu),
    aten.elu_backward.default: _activation(activations.elu_backward, 2),
    aten.softplus.default: _activation(activations.softplus),
    aten.softplus_backward.default: _activation(activations.softplus_backward, 2),
    aten.gelu.default: _activation(activations.gelu),
    aten.gelu_backward.default: _activation(activations.gelu_backward, 2),
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
    aten.cat.default: _cat,
    aten.stack.default: _stack,
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
    aten.full.default: _full,
    aten.mm.default: _product,
    aten.addmm.default: _product,
}
