"""Activations and their gradients, spelled with the few functions that programs know. The formulas are aten's."""

from __future__ import annotations

import math

from plait.capture.expressions import Expressions
from plait.errors import UnsupportedError
from plait.ir.program import Node


def relu(e: Expressions, x: Node) -> Node:
    return e.pointwise("maximum", x, e.like(x, 0))


def leaky_relu(e: Expressions, x: Node, slope: float = 0.01) -> Node:
    return e.pointwise("where", e.pointwise("gt", x, e.like(x, 0)), x, e.pointwise("mul", x, e.like(x, slope)))


def leaky_relu_backward(e: Expressions, grad: Node, x: Node, slope: float, is_result: bool = False) -> Node:
    return e.pointwise("where", e.pointwise("gt", x, e.like(x, 0)), grad, e.pointwise("mul", grad, e.like(x, slope)))


def threshold_backward(e: Expressions, grad: Node, x: Node, threshold: float) -> Node:
    return e.pointwise("where", e.pointwise("le", x, e.like(x, threshold)), e.like(x, 0), grad)


def sigmoid_backward(e: Expressions, grad: Node, y: Node) -> Node:
    return e.pointwise("mul", grad, e.pointwise("mul", y, e.pointwise("sub", e.like(y, 1), y)))


def tanh_backward(e: Expressions, grad: Node, y: Node) -> Node:
    return e.pointwise("mul", grad, e.pointwise("sub", e.like(y, 1), e.pointwise("mul", y, y)))


def silu(e: Expressions, x: Node) -> Node:
    return e.pointwise("mul", x, e.pointwise("sigmoid", x))


def silu_backward(e: Expressions, grad: Node, x: Node) -> Node:
    s = e.pointwise("sigmoid", x)
    one = e.like(x, 1)
    slope = e.pointwise("mul", s, e.pointwise("add", one, e.pointwise("mul", x, e.pointwise("sub", one, s))))
    return e.pointwise("mul", grad, slope)


def elu(e: Expressions, x: Node, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Node:
    negative = e.pointwise("mul", e.pointwise("expm1", e.pointwise("mul", x, e.like(x, input_scale))), e.like(x, alpha * scale))
    positive = e.pointwise("mul", x, e.like(x, scale))
    return e.pointwise("where", e.pointwise("gt", x, e.like(x, 0)), positive, negative)


def elu_backward(e: Expressions, grad: Node, x: Node, alpha: float, scale: float, input_scale: float, is_result: bool) -> Node:
    if is_result:
        slope = e.pointwise("mul", e.like(x, input_scale), e.pointwise("add", x, e.like(x, alpha * scale)))
    else:
        slope = e.pointwise(
            "mul", e.pointwise("exp", e.pointwise("mul", x, e.like(x, input_scale))), e.like(x, input_scale * alpha * scale)
        )
    slope = e.pointwise("where", e.pointwise("le", x, e.like(x, 0)), slope, e.like(x, scale))
    return e.pointwise("mul", grad, slope)


def softplus(e: Expressions, x: Node, beta: float = 1.0, threshold: float = 20.0) -> Node:
    scaled = e.pointwise("mul", x, e.like(x, beta))
    soft = e.pointwise("div", e.pointwise("log1p", e.pointwise("exp", scaled)), e.like(x, beta))
    return e.pointwise("where", e.pointwise("gt", scaled, e.like(x, threshold)), x, soft)


def softplus_backward(e: Expressions, grad: Node, x: Node, beta: float, threshold: float) -> Node:
    scaled = e.pointwise("mul", x, e.like(x, beta))
    soft = e.pointwise("mul", grad, e.pointwise("sigmoid", scaled))
    return e.pointwise("where", e.pointwise("gt", scaled, e.like(x, threshold)), grad, soft)


def _gelu_parts(e: Expressions, x: Node) -> tuple[Node, Node]:
    cdf = e.pointwise("add", e.pointwise("erf", e.pointwise("mul", x, e.like(x, math.sqrt(0.5)))), e.like(x, 1))
    return e.pointwise("mul", cdf, e.like(x, 0.5)), e.pointwise("mul", x, x)


def gelu(e: Expressions, x: Node, approximate: str = "none") -> Node:
    if approximate != "none":
        raise UnsupportedError("gelu with the tanh approximation")
    return e.pointwise("mul", x, _gelu_parts(e, x)[0])


def gelu_backward(e: Expressions, grad: Node, x: Node, approximate: str = "none") -> Node:
    if approximate != "none":
        raise UnsupportedError("gelu with the tanh approximation")
    cdf, square = _gelu_parts(e, x)
    bell = e.pointwise("exp", e.pointwise("mul", square, e.like(x, -0.5)))
    pdf = e.pointwise("mul", bell, e.like(x, 1 / math.sqrt(2 * math.pi)))
    return e.pointwise("mul", grad, e.pointwise("add", cdf, e.pointwise("mul", x, pdf)))
