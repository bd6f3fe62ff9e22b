"""The table from aten operators to IR values: one row an operator, elementwise or acting on a row's own axes.

What is composite in aten is spelled with the few functions of `ir.ops.POINTWISE` here. Every function gets the lowering state
and the FX node and gives the IR value of that node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from plait.capture import activations
from plait.capture.expressions import computing_dtype
from plait.capture.lower_axes import AXES, Lower, dtype_of, inner_of, operands, rank_of, source
from plait.errors import UnsupportedError
from plait.ir import ops
from plait.ir.program import Node, Space, Type
from plait.passes.edit import argument, aten, product_parts, value

if TYPE_CHECKING:
    from plait.capture.lower import Lowering

# --- elementwise -----------------------------------------------------------------------------------------------------


def _arithmetic(fn: str) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        dtype = dtype_of(node)
        a, b = operands(state, node, list(node.args[:2]), dtype)
        alpha = argument(node, 2, "alpha", 1)
        if fn in ("add", "sub") and alpha != 1:
            b = state.pointwise("mul", b, state.const(alpha, dtype))
        if fn == "div" and not dtype.is_floating_point:
            raise UnsupportedError("integer division")
        if dtype == torch.bool and fn not in ("maximum", "minimum"):
            fn_bool = {"add": "logical_or", "mul": "logical_and"}.get(fn)
            if fn_bool is None:
                raise UnsupportedError(f"{fn} of bools")
            return state.broadcast(state.pointwise(fn_bool, a, b), inner_of(node))
        return state.broadcast(state.pointwise(fn, a, b), inner_of(node))

    return lower


def _rsub(state: Lowering, node: fx.Node) -> Node:
    dtype = dtype_of(node)
    a, b = operands(state, node, list(node.args[:2]), dtype)
    alpha = argument(node, 2, "alpha", 1)
    return state.pointwise("sub", b, state.pointwise("mul", a, state.const(alpha, dtype)) if alpha != 1 else a)


def _unary(fn: str) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        (x,) = operands(state, node, [node.args[0]], dtype_of(node))
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
        a, b = operands(state, node, given, computing_dtype(dtype))
        return state.broadcast(state.pointwise(fn, a, b), inner_of(node))

    return lower


def _logical(fn: str) -> Lower:
    def lower(state: Lowering, node: fx.Node) -> Node:
        if dtype_of(node) != torch.bool:
            raise UnsupportedError("bitwise functions of integers")
        given = [state.operand(item, rank_of(node), torch.bool) for item in node.args]
        if any(item.type.dtype != torch.bool for item in given):
            given = [
                item if item.type.dtype == torch.bool else state.pointwise("ne", item, state.like(item, 0)) for item in given
            ]
        return state.broadcast(state.pointwise(fn, *given), inner_of(node))

    return lower


def _isnan(state: Lowering, node: fx.Node) -> Node:
    x = source(state, node)
    return state.pointwise("ne", x, x)


def _where(state: Lowering, node: fx.Node) -> Node:
    condition = state.operand(node.args[0], rank_of(node), torch.bool)
    a, b = operands(state, node, list(node.args[1:3]), dtype_of(node))
    return state.broadcast(state.pointwise("where", condition, a, b), inner_of(node))


def _masked_fill(state: Lowering, node: fx.Node) -> Node:
    x, mask, fill = node.args
    dtype = dtype_of(node)
    a, b = operands(state, node, [fill, x], dtype)
    return state.broadcast(state.pointwise("where", state.operand(mask, rank_of(node), torch.bool), a, b), inner_of(node))


def _power(state: Lowering, node: fx.Node) -> Node:
    dtype = dtype_of(node)
    exponent = node.args[1]
    (x,) = operands(state, node, [node.args[0]], dtype)
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
    (y,) = operands(state, node, [exponent], dtype)
    return state.broadcast(state.pointwise("pow", x, y), inner_of(node))


def _clamp(state: Lowering, node: fx.Node) -> Node:
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    dtype = dtype_of(node)
    (x,) = operands(state, node, [node.args[0]], dtype)
    if low is not None:
        x = state.pointwise("maximum", x, *operands(state, node, [low], dtype))
    if high is not None:
        x = state.pointwise("minimum", x, *operands(state, node, [high], dtype))
    return state.broadcast(x, inner_of(node))


def _clamp_max(state: Lowering, node: fx.Node) -> Node:
    x, high = operands(state, node, list(node.args[:2]), dtype_of(node))
    return state.broadcast(state.pointwise("minimum", x, high), inner_of(node))


def _activation(formula: Callable[..., Node], num_tensors: int = 1) -> Lower:
    """A function of `num_tensors` tensors; further arguments are numbers and reach `formula` as they stand."""

    def lower(state: Lowering, node: fx.Node) -> Node:
        dtype = dtype_of(node)
        tensors = operands(state, node, list(node.args[:num_tensors]), dtype)
        result = formula(state, *tensors, *node.args[num_tensors:], **node.kwargs)
        return state.broadcast(result, inner_of(node))

    return lower


def _elu_backward(state: Lowering, node: fx.Node) -> Node:
    """Its second tensor is its last argument, behind the numbers."""
    given: Any = node.args
    grad, x = operands(state, node, [given[0], given[5]], dtype_of(node))
    return state.broadcast(activations.elu_backward(state, grad, x, *given[1:5]), inner_of(node))


# --- products and fills -----------------------------------------------------------------------------------------------


def _product(state: Lowering, node: fx.Node) -> Node:
    """mm(x, W), and addmm(b, x, W) = mm(x, W) + b."""
    parts = product_parts(node)
    if parts is None:
        raise UnsupportedError("a product with alpha or beta")
    bias, rows, weight = parts
    dtype = dtype_of(node)
    x, w = state.operand(rows, 1), state.operand(weight, 2)
    if x.type.space is Space.DENSE or w.type.space is not Space.DENSE:
        raise UnsupportedError("a product of other values than those of an edge and a weight")
    result = state.builder.node(ops.Product(), (x, w), Type(Space.EDGE, w.type.shape[1:], dtype))
    if bias is None:
        return result
    return state.broadcast(state.pointwise("add", result, *operands(state, node, [bias], dtype)), inner_of(node))


def _full(state: Lowering, node: fx.Node) -> Node:
    fill: Any = node.args[1]
    if not isinstance(fill, int | float | bool):
        raise UnsupportedError("a fill with a number that is not static")
    return state.broadcast(state.const(fill, dtype_of(node)), inner_of(node))


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
    aten.pow.Scalar: _arithmetic("pow"),
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: _clamp_max,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.Tensor: _clamp,
    aten.clamp_max.Tensor: _clamp_max,
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
    aten.elu_backward.default: _elu_backward,
    aten.softplus.default: _activation(activations.softplus),
    aten.softplus_backward.default: _activation(activations.softplus_backward, 2),
    aten.gelu.default: _activation(activations.gelu),
    aten.gelu_backward.default: _activation(activations.gelu_backward, 2),
    aten.full.default: _full,
    aten.mm.default: _product,
    aten.addmm.default: _product,
    **AXES,
}
